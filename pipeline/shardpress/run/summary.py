"""The result of a run in numbers and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardpress.errors import quantity

_VERDICTS = {
    "keep": "The new rows are like the rows of the training: keep the model.",
    "watch": "The new rows differ from the rows of the training: watch them (see the report).",
    "retrain": "The new rows differ so much from the rows of the training that a new model is needed (see the report).",
}


@dataclass(frozen=True)
class Summary:
    """The result of a run in numbers; as a string, the last line of its log.

    Attributes
    ----------
    output : str
        The output directory.
    n_rows, n_inputs, n_features : int
        Rows, columns and features.
    n_bad : int
        Rows whose features are NaN.
    n_parts : int
        Feature files.
    device : str
        Device of the computation, and why it was chosen.
    cost : float or None
        Validation cost of the best epoch, or its training cost if there are no validation rows. None if no model was
        trained.
    components, mean : float or None
        The same cost for principal components, and for the column means; None if the costs were not computed.
    seconds : dict of str to float
        Seconds of each stage.
    n_bad_shards : int
        Shards that were left out or could not be read.
    n_outside : int
        Rows outside the range that a given model was trained on.
    compiling : float
        Seconds of the compiler, which stages do not include.
    gave_up : str
        A sentence about the epochs that a deadline prevented, or an empty string.
    judgment : str
        Sentences on the features compared with baselines, or an empty string.
    before : bool
        Whether an earlier run had finished everything.
    n_components : int or None
        Number of principal components that were compared: the width of the code. None means `n_features`.
    appended : dict of str to int, optional
        For an append, the number of files that are new, have changed, were copied and were removed (``n_new``,
        ``n_changed``, ``n_copied``, ``n_dropped``), and the number of rows that were encoded (``n_rows``).
    verdict : str, optional
        For an append, the verdict on the new rows: ``keep``, ``watch`` or ``retrain``.
    generation : int, optional
        Number of the generation, if it is not the first one.
    """

    output: str
    n_rows: int
    n_inputs: int
    n_features: int
    n_bad: int
    n_parts: int
    device: str
    cost: float | None
    seconds: dict[str, float]
    n_bad_shards: int = 0
    n_outside: int = 0
    before: bool = False
    components: float | None = None
    mean: float | None = None
    compiling: float = 0.0
    gave_up: str = ""
    judgment: str = ""
    n_components: int | None = None
    appended: dict[str, int] | None = None
    verdict: str | None = None
    generation: int | None = None

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
    def of_manifest(cls, manifest: Mapping[str, Any], output: str) -> Summary:
        """Return the summary of a finished run, without times; `output` is the directory that contains it now."""
        stored = manifest["summary"]
        return cls(**{**stored, "output": output, "seconds": {}, "compiling": 0.0, "before": True})

    @staticmethod
    def _appended_in_words(appended: Mapping[str, int]) -> str:
        """Return what an append has changed."""
        words = []
        if appended["n_new"]:
            words.append(f"Added {quantity(appended['n_new'], 'file')}")
        if appended["n_changed"]:
            words.append(f"Replaced {quantity(appended['n_changed'], 'changed file')}")
        if appended["n_copied"]:
            words.append(f"Copied the features of {quantity(appended['n_copied'], 'file')}")
        if appended["n_dropped"]:
            words.append(f"Removed {quantity(appended['n_dropped'], 'file')}")
        encoded = f"{quantity(appended['n_rows'], 'row')} encoded. " if appended["n_rows"] else ""
        changes = ", ".join(words).capitalize() or "Added the requested files"
        return f"{changes}. {encoded}Now"

    def _errors(self) -> str:
        if self.cost is None:
            return ""
        baseline = ""
        if self.components is not None and self.mean is not None:
            components = quantity(self.n_components or self.n_features, "principal component")
            baseline = f" ({components}: {self.components:.3g}, the mean: {self.mean:.3g})"
        return f" Mean squared error {self.cost:.3g} in scaled units{baseline}."

    def _remarks(self) -> str:
        remarks = []
        if self.generation is not None:
            remarks.append(f"These are the features of generation {self.generation}.")
        if self.judgment:
            remarks.append(self.judgment)
        if self.verdict is not None and not self.before:
            remarks.append(_VERDICTS[self.verdict])
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
