"""Quality of a trained model: comparison with components, units that carry nothing, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.activations import ACTIVATIONS
from kernels.network import Network
from pipeline.settings.resolve import ResolvedTraining
from pipeline.training.components import NOTHING

if TYPE_CHECKING:
    from pipeline.training.epochs import Training

__all__ = ["Units", "complaints", "count_units", "measured"]

_MOST_ROWS = 4096  # rows whose features are examined
_BYTES = 2**25  # of these rows, and of their features
_MANY = 0.1  # of the features

# As many epochs again make about as much better as the second half of them did: so the histories of wine, digits and
# breast cancer have it (40 to 240 epochs, with and without hidden layers). Below ten, the rate's fall is all there is.
_STILL_IMPROVING = 0.1
_LEAST_EPOCHS = 10


# A feature is dead when it varies less than this share of what the liveliest one does, or than by rounding alone.
_DEAD = 1e-3
_ROUNDING = 1e-6
# A unit is saturated within this share of the range of its activation's outputs from either end: there the slope of a
# sigmoid is below a twenty-fifth of the steepest.
_END = 0.01
_SAME = 0.999  # correlation
_COLUMNS = 256  # features that are compared with all before them at once


@dataclass(frozen=True)
class Units:
    """Counts of features that carry little information, by their values for some rows.

    Attributes
    ----------
    dead : int
        Features that hardly vary.
    saturated : int
        Features of which more than half of the activations are saturated; only those of a bounded code can be.
    duplicate : int
        Features that repeat an earlier one up to sign, scale and offset.
    saturated_share : float
        Share of all activations.
    """

    n_rows: int
    n_features: int
    dead: int
    saturated: int
    duplicate: int
    saturated_share: float


def measured(training: Training) -> dict[str, Any]:
    """Plain values about the trained parameters, for reports."""
    baseline = training.baseline
    errors = training.autoencoder.errors
    beside = None if baseline is None else baseline.beside(errors(training.validation))
    return {"start_cost": training.start_cost, "baseline": beside, "units": asdict(_units(training))}


def complaints(about: Mapping[str, Any], settings: ResolvedTraining, network: Network) -> Iterator[str]:
    """What a user should know of a training, each with what usually mends it.

    Parameters
    ----------
    about : mapping
        What `measured` has found, and the history. Of a model that an earlier version has trained it may be less.
    """
    beside = about.get("baseline")
    if beside and beside["is_worse"] and not settings.hides_much:  # which is to make other features, not nearer ones
        yield (
            f"the features say less than {beside['n_components']} principal components would, whose mean squared error "
            f"on the validation rows is {beside['components']:.3g}. {_remedies(settings, network)} usually mend that."
        )
    gained = _gained_at_last(about.get("history", []), settings, beside["mean"] if beside else 0.0)
    if gained > _STILL_IMPROVING:
        yield (
            f"still improving at the last epoch: the second half of {settings.epochs} has made the error {gained:.0%} "
            "smaller. Raise --epochs."
        )
    if units := about.get("units"):
        yield from _of_units(Units(**units), network)


def _remedies(settings: ResolvedTraining, network: Network) -> str:
    """The options that are not in use yet and bring features to the level of components, or beyond."""
    options = {
        "--start components": settings.start == "components",
        "--decoder-gain": network.gain or ACTIVATIONS[network.code].limits is None,
        "a hidden layer (--hidden 512)": len(network.widths) > 2,
    }
    words = [*(option for option, is_used in options.items() if not is_used), "more --epochs"]
    found = " and ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)
    return found[0].upper() + found[1:]


def _gained_at_last(history: Sequence[Mapping[str, Any]], settings: ResolvedTraining, mean: float) -> float:
    """By which share of itself the error has fallen over the second half of the epochs; 0 unless all were made.

    Nor is it told of an error that is almost nothing beside the mean's.
    """
    n = settings.epochs
    if len(history) < max(n, _LEAST_EPOCHS):
        return 0.0
    # The validation's rows, though few, are the same in every epoch; but they are whole where the others are corrupted.
    is_told = history[-1]["validation_cost"] is not None and not settings.hides_much
    costs = [epoch["validation_cost" if is_told else "cost"] for epoch in history]
    before, after = (float(np.mean(costs[end - n // 10 : end])) for end in (n // 2, n))
    return 1 - after / before if before > NOTHING * mean else 0.0


def _of_units(units: Units, network: Network) -> Iterator[str]:
    said = {
        "hardly vary": (units.dead, "Fewer --n-features would say as much"),
        "are saturated": (units.saturated, "Lower --learning-rate" if network.gain else "Try --decoder-gain"),
        "repeat another one": (units.duplicate, "Fewer --n-features would say as much"),
    }
    for what, (n, advice) in said.items():
        if n > _MANY * units.n_features:
            yield f"{n} of {units.n_features} features {what}. {advice}."


def _units(training: Training) -> Units:
    watched = training.validation
    network = training.autoencoder.network
    row_bytes = max(watched.itemsize * watched.shape[1], 4 * network.n_features)
    most = min(_MOST_ROWS, max(2, _BYTES // row_bytes))
    if training.is_watched:  # these are in memory
        rows = watched[:: -(-len(watched) // most)]
    else:
        rows = training.rows.take(training.order.sample(most))
    features = np.empty((len(rows), network.n_features), dtype=np.float32)
    # As the rows of the shards are going to be encoded: nothing more has to be compiled.
    training.autoencoder.encode_checked(np.ascontiguousarray(rows), features)
    return count_units(features, network.code)


def count_units(features: np.ndarray, code: str) -> Units:
    """Count the units of features (n_rows, n_features), float32, of two rows or more, by the code's activation."""
    n_rows, n_features = features.shape
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
    """Return how many features correlate with an earlier one; not all correlations are in memory at once."""
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred /= np.linalg.norm(centred, axis=0)
    n_found = 0
    for start in range(0, centred.shape[1], _COLUMNS):
        these = centred[:, start : start + _COLUMNS]
        among = np.triu(these.T @ these, 1)  # each pair once
        before = centred[:, :start].T @ these
        is_repeated = (np.abs(before) > _SAME).any(axis=0) | (np.abs(among) > _SAME).any(axis=0)
        n_found += int(is_repeated.sum())
    return n_found
