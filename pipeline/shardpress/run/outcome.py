"""The last line of a run."""

from __future__ import annotations

from dataclasses import dataclass

from shardpress.base.errors import quantity
from shardpress.report.words import VERDICTS
from shardpress.result.facts import AppendCounts, Summary


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run; as a string, the last line of its log."""

    output: str
    summary: Summary
    remark: str  # on the features, if this run has measured a sample of rows
    generation: int
    is_repetition: bool = False  # whether an earlier run had finished everything

    def __str__(self) -> str:
        summary = self.summary
        verb = "Already complete" if self.is_repetition else "Done"
        if summary.appended is not None and not self.is_repetition:
            verb = _appended_in_words(summary.appended)
        rows = quantity(summary.n_rows, "row")
        features = quantity(summary.n_features, "feature")
        parts = quantity(summary.n_parts, "part")
        return (
            f"{verb}: {rows} x {summary.n_inputs} columns -> {features} in {self.output}/index.h5 ({parts})."
            f"{_errors(summary)}{self._remarks()} Device: {summary.device}. Time: {_times(summary)}."
        )

    def _remarks(self) -> str:
        summary = self.summary
        remarks = []
        if self.generation > 1:
            remarks.append(f"These are the features of generation {self.generation}.")
        remarks += [summary.kept_start, self.remark]
        if summary.verdict is not None and not self.is_repetition:
            remarks.append(f"{VERDICTS[summary.verdict]} (see the report).")
        if summary.n_bad:
            remarks.append(f"{quantity(summary.n_bad, 'bad row')} with NaN features.")
        if summary.n_bad_shards:
            remarks.append(f"{quantity(summary.n_bad_shards, 'bad shard')}.")
        if summary.n_outside:
            remarks.append(f"{quantity(summary.n_outside, 'row')} outside the model's range.")
        remarks.append(summary.gave_up)
        return "".join(f" {remark}" for remark in remarks if remark)


def _appended_in_words(counts: AppendCounts) -> str:
    words = []
    if counts.n_new:
        words.append(f"Added {quantity(counts.n_new, 'file')}")
    if counts.n_changed:
        words.append(f"Replaced {quantity(counts.n_changed, 'changed file')}")
    if counts.n_dropped:
        words.append(f"Removed {quantity(counts.n_dropped, 'file')}")
    new = f"{quantity(counts.n_rows, 'new row')}. " if counts.n_rows else ""
    return f"{', '.join(words).capitalize()}. {new}Now"


def _errors(summary: Summary) -> str:
    if summary.cost is None:
        return ""
    outlier = summary.outlier
    remark = ""
    if outlier is not None and outlier.has_most:
        usual = f"{outlier.cost:.3g}{_baseline(summary, outlier.components, outlier.mean)}"
        share = f"{100 * outlier.share:.3g} %"
        remark = f" One row ({outlier}) has {share} of it; without outliers, the error is {usual}."
    baseline = _baseline(summary, summary.components, summary.mean)
    return f" Mean squared error {summary.cost:.3g} in scaled units{baseline}.{remark}"


def _baseline(summary: Summary, components: float | None, mean: float | None) -> str:
    if components is None or mean is None:
        return ""
    return f" ({quantity(summary.n_components, 'principal component')}: {components:.3g}, the mean: {mean:.3g})"


def _times(summary: Summary) -> str:
    times = [f"{stage} {seconds:.1f} s" for stage, seconds in summary.seconds.items()]
    if summary.compiling:
        times.append(f"compiling kernels (cached for later runs) {summary.compiling:.1f} s")
    return ", ".join(times)
