"""Runs that extend a result: they change neither its model nor its rows, and keep what is known about these.

Such a run encodes damaged parts again, adds extras, or judges the features with other labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import structs

from shardpress.base.runlog import MAX_WARNINGS
from shardpress.hdf5.shard import UnreadableShard
from shardpress.result.facts import ReportFacts, Summary, WarningFacts
from shardpress.result.records import RunFacts
from shardpress.run.resume import has_other_labels
from shardpress.run.task import Task


@dataclass(frozen=True)
class _Extension:
    """The result that a run extends, and what the run keeps of it."""

    before: RunFacts
    keeps_sample: bool  # whether the facts about sampled rows stay

    def summary(self, summary: Summary) -> Summary:
        """Return the summary of a run with the facts about the run that brought the rows."""
        before = self.before.summary
        return structs.replace(
            summary,
            appended=before.appended,
            verdict=before.verdict,
            n_outside=before.n_outside,
            seconds=before.seconds,
            compiling=before.compiling,
            device=before.device,
        )

    def report(self, report: ReportFacts) -> ReportFacts:
        """Return the report of a run with the facts about the run that brought the rows, and the warnings of both."""
        before = self.before.report
        return structs.replace(
            report,
            device=before.device,
            stages=before.stages,
            cluster=before.cluster,
            memory=before.memory,
            taken_over=before.taken_over,
            drift=before.drift,
            last=before.last,
            warnings=self._warnings(report.warnings),
        )

    def _warnings(self, found: WarningFacts) -> WarningFacts:
        before = self.before.report.warnings
        kept = before.first
        if not self.keeps_sample:  # then the earlier labels are of no interest
            kept = [line for line in kept if not line.startswith("labels=")]
        new = [line for line in found.first if line not in kept]
        n_others = before.n - len(before.first) + found.n - len(found.first)
        return WarningFacts(len(kept) + len(new) + n_others, [*kept, *new][:MAX_WARNINGS])


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
    if any(isinstance(shard, UnreadableShard) for shard in task.inputs.shards):
        return False
    has_others = has_other_labels(task.settings, before) or bool(change.relabelled)
    return has_others or change.encodes_again or bool(change.moved(task.base, task.wanted))
