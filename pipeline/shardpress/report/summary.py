"""The report of a result: its facts, with the numbers and the judgment that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shardpress.model.about import TargetFacts, TrainingFacts
from shardpress.report.judgment import judge
from shardpress.result.facts import Judgment, Summary
from shardpress.result.finished import Result
from shardpress.result.records import RunFacts, plain
from shardpress.settings.config import Config
from shardpress.settings.kinds import time_in_words
from shardpress.training.complaints import kept_start

_MAX_RUNS = 200  # runs that `Report.as_json` lists; the facts list all of them


@dataclass(frozen=True)
class Report:
    """Everything that the report shows."""

    facts: RunFacts
    encoder: str  # fingerprint of the model
    training: TrainingFacts | None  # None if the model was not trained on exactly these rows
    target: TargetFacts | None
    summary: Summary
    judgment: Judgment

    def as_json(self) -> dict[str, object]:
        """Return plain values."""
        model = self.facts.model
        rows = self.facts.rows
        last = self.facts.last
        details = self.facts.details
        values: dict[str, object] = {
            "config": rows.config,
            "made": last.made,
            "command": last.command,
            "versions": last.versions,
            "summary": self.summary,
            "judgment": self.judgment,
            "fingerprints": {"features": rows.key, "model": self.encoder},
            "target": self.target,
            "training": self.training,
            "runs": self.facts.runs[-_MAX_RUNS:],
        }
        for name in ("scan", "generation", "generations", "maps"):
            values[name] = getattr(model, name)
        for name in ("storage", "inputs", "bad", "drift", "sample", "sample_run", "verification", "verification_run"):
            values[name] = getattr(rows, name)
        return {name: plain(value) for name, value in values.items()} | plain(details)


def report_of(result: Result) -> Report:
    facts = result.facts
    is_trained = facts.model.source == "trained" and not facts.appends
    training = result.model.about.training if is_trained else None
    summary = _summary(result, training)
    judgment = judge(summary, facts.rows.sample, Config.from_flat(facts.rows.config))
    return Report(facts, result.encoder, training, result.model.target, summary, judgment)


def _summary(result: Result, training: TrainingFacts | None) -> Summary:
    """Return the numbers of a result and of its last run, with those of the training if the rows are the same."""
    facts = result.facts
    append = facts.last.append
    verdict = None if append is None else append.verdict
    rows = [row_range for _, row_range in result.ranges]
    if append is not None:
        rows = [row_range for row_range in rows if result.by_id[row_range.shard].append_id == append.id]
    baseline = None if training is None else training.baseline
    return Summary(
        n_rows=result.n_rows,
        n_inputs=result.model.n_columns,
        n_features=result.n_features,
        n_bad=result.n_bad,
        n_parts=len(result.parts),
        device=facts.last.device,
        cost=None if training is None else training.best_cost,
        seconds=facts.last.seconds,
        n_bad_shards=facts.rows.bad.shards.n,
        n_outside=sum(row_range.n_outside for row_range in rows),
        components=None if baseline is None else baseline.components,
        mean=None if baseline is None else baseline.mean,
        outlier=None if baseline is None else baseline.outlier,
        compiling=facts.last.compiling,
        gave_up="" if training is None else gave_up(training),
        kept_start="" if training is None else kept_start(result.model.about, result.model.network),
        n_components=result.model.network.n_features,
        appended=append,
        verdict=verdict.level if verdict is not None and verdict.n_sampled else None,
    )


def gave_up(training: TrainingFacts) -> str:
    """Return a sentence about the epochs that a deadline prevented, or an empty string."""
    deadline = training.deadline
    if deadline is None or deadline.n_epochs is None:
        return ""
    n_trained = len(training.history) - 1 + deadline.last_epoch_part
    stopped_early = len(training.history) < deadline.n_epochs  # because the validation cost did not improve
    if stopped_early or n_trained >= deadline.of:
        return ""
    ends_by = time_in_words(datetime.fromisoformat(deadline.ends_by).timestamp())
    return f"Trained {n_trained:.3g} of {deadline.of} epochs to finish by {ends_by}."
