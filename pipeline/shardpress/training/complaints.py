"""Quality of a trained model: comparison with components, features without information, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from shardpress.base.outliers import outliers
from shardpress.model.about import About, BaselineErrors, Epoch, TrainingFacts, Units
from shardpress.settings.resolve import ResolvedTraining
from shardpress.training.components import NOTHING
from shardpress.training.start import has_room
from shardpress_kernels.activations import ACTIVATIONS
from shardpress_kernels.network import Network

if TYPE_CHECKING:
    from shardpress.training.epochs import Training

_MOST_ROWS = 4096  # rows whose features are examined
_BYTES = 2**25  # bytes of these rows, and of their features
_MANY = 0.1  # share of the features above which a warning is given

# Training for the same number of epochs again improves the error about as much as the second half of the epochs did.
# The histories of wine, digits and breast cancer (40 to 240 epochs, with and without hidden layers) show this. With
# fewer than ten epochs the history shows only the fall of the learning rate.
_STILL_IMPROVING = 0.1
_LEAST_EPOCHS = 10


# A feature is dead if it varies less than this share of the most variable one, or no more than by rounding.
_DEAD = 1e-3
_ROUNDING = 1e-6
# An output is saturated if it is within this share of the activation's range from either end, where the slope of a
# sigmoid is below 4 % of its maximum.
_END = 0.01
_SAME = 0.999  # correlation
_COMPARED = 256  # features that are compared at once with all earlier ones


def measured(training: Training) -> TrainingFacts:
    """Return facts about a finished training. An outlier is named by its number among all rows."""
    return TrainingFacts(
        best_epoch=training.state.best_epoch,
        history=list(training.state.history),
        start_cost=training.start_cost,
        units=_units(training),
        baseline=_baseline(training),
    )


def _baseline(training: Training) -> BaselineErrors | None:
    if training.baseline is None:
        return None
    errors = training.baseline.comparison(training.autoencoder.errors(training.validation))
    if errors.outlier is None:
        return errors
    assert training.validation_numbers is not None
    number = int(training.validation_numbers[errors.outlier.row])
    return replace(errors, outlier=replace(errors.outlier, row=number))


def complaints(about: About, settings: ResolvedTraining, network: Network) -> Iterator[str]:
    """Yield warnings about a training run, each with advice."""
    training = about.training
    if training is None:
        return
    baseline = training.baseline
    outlier = None if baseline is None else baseline.outlier
    is_of_one_row = outlier is not None and outlier.has_most
    if outlier is not None and outlier.has_most:
        yield (
            f"{outlier}: this validation row has {outlier.share:.1%} of the squared error of all validation rows. "
            "Comparisons with principal components leave it out. Check its values."
        )
    # Training with strong corruption or with targets aims at other features, not at a smaller error.
    if baseline is not None and baseline.is_worse and not settings.hides_much and settings.target is None:
        components = baseline.components if outlier is None else outlier.components
        yield (
            f"the features reconstruct the validation rows worse than {baseline.n_components} principal components, "
            f"whose mean squared error is {components:.3g}. {_remedies(settings, network)} usually help."
        )
    improvement = _late_improvement(training.history, settings, 0.0 if baseline is None else baseline.mean)
    if improvement > _STILL_IMPROVING and not is_of_one_row:
        yield (
            f"the training was still improving at its end: the second half of {settings.epochs} epochs reduced the "
            f"error by {improvement:.0%}. Raise --epochs."
        )
    yield from _unit_warnings(training.units, network)


def kept_start(about: About, network: Network) -> str:
    """Return a sentence on features that are principal components because the training did not improve them, or ""."""
    training = about.training
    starts_from_components = about.config["start"] == "components" and has_room(network)
    if training is None or training.best_epoch >= 0 or not starts_from_components:
        return ""
    features = "principal components"
    if network.output.code != "linear" or network.output_layer == "hidden":
        features = "functions of principal components"
    history = training.history
    reason = "no epoch was trained"
    if history:
        reason = f"no epoch of {len(history)} reduced the error enough"
        before = training.start_cost
        if before and training.target is None:
            best = min(epoch.validation_cost for epoch in history if epoch.validation_cost is not None)
            reason += f": {before:.4g} at the start, {best:.4g} in the best epoch"
    return f"The features are {features}, because the training kept its start ({reason})."


def _remedies(settings: ResolvedTraining, network: Network) -> str:
    """Return a phrase with the changes that usually make features as good as components, or better."""
    options = {
        "no --preset": settings.preset is None,
        "a hidden layer (--hidden 512)": len(network.widths) > 2,
    }
    words = [*(option for option, is_used in options.items() if not is_used), "more --epochs"]
    sentence = " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)
    return sentence[0].upper() + sentence[1:]


def _late_improvement(history: Sequence[Epoch], settings: ResolvedTraining, mean: float) -> float:
    """Return the relative decrease of the error over the second half of the epochs.

    The result is 0 if not all epochs were trained, or if the error is negligible compared with the error of the mean.
    """
    n = settings.epochs
    if len(history) < max(n, _LEAST_EPOCHS):
        return 0.0
    costs = _comparable_costs(history, settings)
    before = float(np.mean(costs[n // 2 - n // 10 : n // 2]))
    after = float(np.mean(costs[n - n // 10 : n]))
    if before <= NOTHING * mean:
        return 0.0
    return 1 - after / before


def _comparable_costs(history: Sequence[Epoch], settings: ResolvedTraining) -> list[float]:
    """Return the cost of each epoch: the validation cost, if there are validation rows, since these never change.

    Validation rows are complete, so their cost is not used if the training rows are corrupted.
    """
    of_validation = [epoch.validation_cost for epoch in history if epoch.validation_cost is not None]
    if len(of_validation) == len(history) and not settings.hides_much:
        return of_validation
    return [epoch.cost for epoch in history]


def _unit_warnings(units: Units, network: Network) -> Iterator[str]:
    faults = {
        "hardly vary": (units.dead, "Lower --n-features: fewer features would carry as much information"),
        "are saturated": (units.saturated, "Lower --learning-rate" if network.gain else "Omit --preset"),
        "duplicate another one": (
            units.duplicate,
            "Lower --n-features: fewer features would carry as much information",
        ),
    }
    for problem, (n, advice) in faults.items():
        if n > _MANY * units.n_features:
            yield f"{n} of {units.n_features} features {problem}. {advice}."


def _units(training: Training) -> Units:
    """Count the units that compute the written features, from their values for some rows."""
    output = training.autoencoder.network.output
    rows = _sample(training)
    features = np.empty((len(rows), output.n_features), dtype=np.float32)
    # Use the function that will encode the rows of the shards, so that no other function has to be compiled.
    training.autoencoder.encode_checked(np.ascontiguousarray(rows), features)
    return count_units(features, output.code)


def _sample(training: Training) -> np.ndarray:
    """Return some rows: validation rows if there are enough, otherwise training rows."""
    validation = training.validation
    row_bytes = max(validation.itemsize * validation.shape[1], 4 * training.autoencoder.network.n_outputs)
    most = min(_MOST_ROWS, max(2, _BYTES // row_bytes))
    if training.is_watched:  # these are in memory
        stride = -(-len(validation) // most)
        return validation[::stride]
    return training.rows.take(training.order.sample(most))


def count_units(features: np.ndarray, code: str) -> Units:
    """Count the units that carry little information, from float32 features (n_rows, n_features) of two rows or more.

    Outliers are left out, because other rows hardly vary compared with them.
    """
    n_rows, n_features = features.shape
    centred = features - features.mean(axis=0, dtype=np.float64)
    features = features[~outliers(np.square(centred).sum(axis=1))]
    ends = np.zeros(n_features)
    limits = ACTIVATIONS[code].limits
    if limits is not None:
        low, high = limits
        margin = _END * (high - low)
        ends = ((features < low + margin) | (features > high - margin)).mean(axis=0)
    deviations = features.std(axis=0, dtype=np.float64)
    is_dead = deviations <= max(_DEAD * deviations.max(), _ROUNDING)
    return Units(
        n_rows=n_rows,
        n_features=n_features,
        dead=int(is_dead.sum()),
        saturated=int((ends > 0.5).sum()),
        duplicate=_n_duplicates(features[:, ~is_dead]),
        saturated_share=float(ends.mean()),
    )


def _n_duplicates(features: np.ndarray) -> int:
    """Return how many features correlate with an earlier one, in blocks that bound the memory."""
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred /= np.linalg.norm(centred, axis=0)
    n_found = 0
    for start in range(0, centred.shape[1], _COMPARED):
        these = centred[:, start : start + _COMPARED]
        among = np.triu(these.T @ these, 1)  # each pair once
        before = centred[:, :start].T @ these
        is_repeated = (np.abs(before) > _SAME).any(axis=0) | (np.abs(among) > _SAME).any(axis=0)
        n_found += int(is_repeated.sum())
    return n_found
