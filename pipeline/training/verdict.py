"""Whether a training was worth it: what its features are held against, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kernels.network import Network
from pipeline.settings.resolve import ResolvedTraining
from pipeline.training.baseline import NOTHING
from pipeline.training.epochs import Training
from pipeline.training.units import Units, count_units

__all__ = ["complaints", "measured"]

_MOST_ROWS, _BYTES = 4096, 2**25  # whose features are looked at, and of these rows and features each
_MANY = 0.1  # of the features

# As many epochs again make about as much better as the second half of them did: so the histories of wine, digits and
# breast cancer have it (40 to 240 epochs, with and without hidden layers). Below ten, the rate's fall is all there is.
_STILL_IMPROVING, _LEAST_EPOCHS = 0.1, 10


def measured(training: Training) -> dict[str, Any]:
    """Plain values about the trained parameters, for reports."""
    baseline, errors = training.baseline, training.autoencoder.errors
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
        "--decoder-gain": network.gain or network.code != "sigmoid",
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
