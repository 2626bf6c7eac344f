"""The result of a run in numbers and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardpress.base.errors import quantity
from shardpress.base.outliers import MOST_OF_ALL, place_of
from shardpress.report.words import VERDICTS
from shardpress.result.finished import Result


@dataclass(frozen=True)
class Summary:
    """The result of a run in numbers; as a string, the last line of its log."""

    output: str
    n_rows: int
    n_inputs: int
    n_features: int
    n_bad: int  # rows whose features are NaN
    n_parts: int
    device: str  # that computed, and why it was chosen
    cost: float | None  # of validation rows in the best epoch, or of its training rows; None with a given model
    seconds: dict[str, float]  # of each stage
    n_bad_shards: int = 0  # left out or unreadable
    n_outside: int = 0  # rows outside the range that a given model was trained on
    before: bool = False  # whether an earlier run had finished everything
    components: float | None = None  # `cost` for principal components
    mean: float | None = None  # `cost` for the column means
    # The row with the largest error, its share of all errors, and the same errors without outliers; None if there are
    # no outliers.
    outlier: dict[str, Any] | None = None
    compiling: float = 0.0  # seconds of the compiler, which stages do not include
    gave_up: str = ""  # a sentence about the epochs that a deadline prevented
    kept_start: str = ""  # a sentence on features that are principal components, because the training kept its start
    judgment: str = ""  # sentences on the features compared with baselines
    n_components: int | None = None  # number of principal components, if it is not `n_features`
    appended: dict[str, int] | None = None  # numbers of files and rows, see `shardpress.run.finish`
    verdict: str | None = None  # on the new rows: ``keep``, ``watch`` or ``retrain``
    generation: int | None = None  # if it is not the first one

    def __str__(self) -> str:
        verb = "Already complete" if self.before else "Done"
        if self.appended is not None and not self.before:
            verb = self._appended_in_words(self.appended)
        rows = quantity(self.n_rows, "row")
        features = quantity(self.n_features, "feature")
        parts = quantity(self.n_parts, "part")
        return (
            f"{verb}: {rows} x {self.n_inputs} columns -> {features} in {self.output}/index.h5 ({parts})."
            f"{self._errors()}{self._remarks()} Device: {self.device}. Time: {self._times()}."
        )

    @classmethod
    def of_result(cls, result: Result, output: str, seconds: dict[str, float]) -> Summary:
        """Return the summary of a finished run; `output` is its directory now, and `seconds` the times of this run."""
        return cls(**{**result.facts.summary, "output": output, "seconds": seconds, "compiling": 0.0, "before": True})

    @staticmethod
    def _appended_in_words(appended: Mapping[str, int]) -> str:
        words = []
        if appended["n_new"]:
            words.append(f"Added {quantity(appended['n_new'], 'file')}")
        if appended["n_changed"]:
            words.append(f"Replaced {quantity(appended['n_changed'], 'changed file')}")
        if appended["n_dropped"]:
            words.append(f"Removed {quantity(appended['n_dropped'], 'file')}")
        new = f"{quantity(appended['n_rows'], 'new row')}. " if appended["n_rows"] else ""
        return f"{', '.join(words).capitalize()}. {new}Now"

    def _errors(self) -> str:
        if self.cost is None:
            return ""
        outlier = self.outlier
        remark = ""
        if outlier is not None and outlier["share"] >= MOST_OF_ALL:
            usual = f"{outlier['cost']:.3g}{self._baseline(outlier['components'], outlier['mean'])}"
            share = f"{100 * outlier['share']:.3g} %"
            remark = f" One row ({place_of(outlier)}) has {share} of it; without outliers, the error is {usual}."
        baseline = self._baseline(self.components, self.mean)
        return f" Mean squared error {self.cost:.3g} in scaled units{baseline}.{remark}"

    def _baseline(self, components: float | None, mean: float | None) -> str:
        if components is None or mean is None:
            return ""
        n_components = quantity(self.n_components or self.n_features, "principal component")
        return f" ({n_components}: {components:.3g}, the mean: {mean:.3g})"

    def _remarks(self) -> str:
        remarks = []
        if self.generation is not None:
            remarks.append(f"These are the features of generation {self.generation}.")
        if self.kept_start:
            remarks.append(self.kept_start)
        if self.judgment:
            remarks.append(self.judgment)
        if self.verdict is not None and not self.before:
            remarks.append(f"{VERDICTS[self.verdict]} (see the report).")
        if self.n_bad:
            remarks.append(f"{quantity(self.n_bad, 'bad row')} with NaN features.")
        if self.n_bad_shards:
            remarks.append(f"{quantity(self.n_bad_shards, 'bad shard')}.")
        if self.n_outside:
            remarks.append(f"{quantity(self.n_outside, 'row')} outside the model's range.")
        if self.gave_up:
            remarks.append(self.gave_up)
        return "".join(f" {remark}" for remark in remarks)

    def _times(self) -> str:
        times = [f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()]
        if self.compiling:
            times.append(f"compiling kernels (cached for later runs) {self.compiling:.1f} s")
        return ", ".join(times)
