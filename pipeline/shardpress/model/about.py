"""Facts about the training of a model, which its file contains as JSON."""

from __future__ import annotations

from typing import Any

from msgspec import field, to_builtins

from shardpress.base.formats import Facts
from shardpress.base.outliers import Outlier


class Epoch(Facts, frozen=True):
    """One finished epoch in the history of a training run."""

    epoch: int
    cost: float  # mean squared error per scaled entry before a step, averaged over the steps with a computed error
    validation_cost: float | None  # the same for the validation rows at the end of the epoch
    seconds: float
    loss: float | None = None  # mean loss of the targets of the validation rows, times its weight
    accuracy: float | None = None  # share of the validation rows that the head assigns to the right class

    @property
    def objective(self) -> float | None:
        """Quantity whose minimum decides which epoch is the best; None without validation rows."""
        if self.validation_cost is None:
            return None
        return self.validation_cost + (self.loss or 0.0)

    def __str__(self) -> str:
        validation = "" if self.validation_cost is None else f", validation {self.validation_cost:.4g}"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.3f}"
        return f"cost {self.cost:.4g}{validation}{accuracy}"


class BaselineErrors(Facts, frozen=True):
    """Mean squared errors of the validation rows if principal components, or the column means, reconstruct them."""

    n_components: int
    n_fitted: int  # training rows of the components
    components: float
    mean: float
    is_worse: bool  # whether the features are worse than the components
    outlier: Outlier | None = None  # None if there are no outliers


class Units(Facts, frozen=True):
    """Numbers of features that carry little information, found from their values for some rows."""

    n_rows: int
    n_features: int
    dead: int  # features that hardly vary
    saturated: int  # features with more than half of their activations saturated; 0 if the code is unbounded
    duplicate: int  # features that repeat an earlier one up to sign, scale and offset
    saturated_share: float  # share of saturated activations among all activations


class TargetFacts(Facts, frozen=True):
    """The extra whose values trained the features."""

    name: str
    kind: str  # ``classes`` or ``numbers``
    n_classes: int
    share: float  # of the rows that have a value
    fit_on: str | None = None  # condition that selected the rows; None if all rows were used


class DeadlineFacts(Facts, frozen=True):
    ends_by: str  # time
    n_epochs: int | None  # None if the deadline did not limit the epochs
    last_epoch_part: float
    of: int  # requested epochs


class TrainingFacts(Facts, frozen=True):
    best_epoch: int  # -1 for the initial parameters
    history: list[Epoch]
    start_cost: float | None  # of the validation rows before the first epoch
    units: Units
    baseline: BaselineErrors | None = None
    target: TargetFacts | None = None
    deadline: DeadlineFacts | None = None

    @property
    def best_cost(self) -> float | None:
        """Cost of the best epoch; None if a training run without validation had no time."""
        if self.best_epoch < 0:
            return self.start_cost
        best = self.history[self.best_epoch]
        return best.cost if best.validation_cost is None else best.validation_cost


class About(Facts, frozen=True):
    """Facts about the origin of a model. Programs can also read them as plain values: ``about["training"]``."""

    config: dict[str, Any] = field(default_factory=dict)  # all settings, by their names
    training: TrainingFacts | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    stopped: str = ""  # why the training failed

    def __getitem__(self, name: str) -> Any:
        """Return the plain value of a field. Raise `KeyError` if there is none with this name."""
        return to_builtins(self)[name]


NOTHING_KNOWN = About()
