"""Runs that extend a result: they change neither its model nor its rows, and keep what is known about these.

Such a run encodes damaged parts again, adds extras, or judges the features with other labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardpress.base.runlog import MAX_WARNINGS
from shardpress.hdf5.shard import UNREADABLE
from shardpress.result.records import RunFacts
from shardpress.run.resume import has_other_labels
from shardpress.run.task import Task

# Facts about the run that brought the rows.
_OF_SUMMARY = ("appended", "verdict", "n_outside", "seconds", "compiling", "device")
_OF_REPORT = ("device", "stages", "cluster", "memory", "taken_over", "drift", "last")


@dataclass(frozen=True)
class _Extension:
    """The result that a run extends, and what the run keeps of it."""

    before: RunFacts
    keeps_sample: bool  # whether the facts about sampled rows stay

    def summary(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return the summary of a run with the facts about the run that brought the rows."""
        return {**summary, **{name: self.before.summary[name] for name in _OF_SUMMARY}}

    def report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Return the report of a run with the facts about the run that brought the rows, and the warnings of both."""
        kept = {name: self.before.report.get(name) for name in _OF_REPORT}
        return {**report, **kept, "warnings": self._warnings(report["warnings"])}

    def _warnings(self, found: Mapping[str, Any]) -> dict[str, Any]:
        before = self.before.report["warnings"]
        kept = before["first"]
        if not self.keeps_sample:  # then the earlier labels are of no interest
            kept = [line for line in kept if not line.startswith("labels=")]
        new = [line for line in found["first"] if line not in kept]
        n_others = before["n"] - len(before["first"]) + found["n"] - len(found["first"])
        return {"n": len(kept) + len(new) + n_others, "first": [*kept, *new][:MAX_WARNINGS]}


def extension_of(task: Task) -> _Extension | None:
    """Return what a run keeps of the earlier result, or None if it changes its model, its rows or its settings."""
    has_other_settings = task.change.settings.keys() - {"include", "row_error"}
    if task.kept is None or task.appends or has_other_settings:
        return None
    return _Extension(task.kept.facts, not _changes_sample(task, task.kept.facts))


def _changes_sample(task: Task, before: RunFacts) -> bool:
    """Return whether a run changes facts about the sampled rows of a result: labels, errors, or paths of files.

    If a file can no longer be read, the earlier facts stay, because its rows could not be judged again.
    """
    change = task.change
    assert task.base is not None
    if any(shard.form == UNREADABLE for shard in task.inputs.shards):
        return False
    has_others = has_other_labels(task.settings, before) or bool(change.relabelled)
    return has_others or change.encodes_again or bool(change.moved(task.base, task.wanted))
