"""Whether a training was worth it: what its features are held against, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.training.epochs import Training
from pipeline.training.units import Units, count_units

__all__ = ["complaints", "measured"]

_MOST_ROWS, _BYTES = 4096, 2**25  # whose features are looked at, and of these rows and features each
_MANY = 0.1  # of the features

_BETTER = "More --epochs usually mend that."


def measured(training: Training) -> dict[str, Any]:
    """Plain values about the trained parameters, for reports."""
    baseline, errors = training.baseline, training.autoencoder.errors
    beside = None if baseline is None else baseline.beside(errors(training.validation))
    return {"start_cost": training.start_cost, "baseline": beside, "units": asdict(_units(training))}


def complaints(about: Mapping[str, Any]) -> Iterator[str]:
    """What `measured` has found that a user should know, each with what usually mends it.

    Of a model that an earlier version has trained it may know nothing.
    """
    if (beside := about.get("baseline")) and beside["is_worse"]:
        yield (
            f"the features say less than {beside['n_components']} principal components would: on the validation rows "
            f"these have a mean squared error of {beside['components']:.3g}. {_BETTER}"
        )
    if units := about.get("units"):
        yield from _of_units(Units(**units))


def _of_units(units: Units) -> Iterator[str]:
    said = {
        "hardly vary": (units.dead, "Fewer --n-features would say as much"),
        "are saturated": (units.saturated, "Lower --learning-rate"),
        "repeat another one": (units.duplicate, "Fewer --n-features would say as much"),
    }
    for what, (n, advice) in said.items():
        if n > _MANY * units.n_features:
            yield f"{n} of {units.n_features} features {what}. {advice}."


def _units(training: Training) -> Units:
    watched = training.validation
    row_bytes = max(watched.itemsize * watched.shape[1], 4 * training.config.n_features)
    most = min(_MOST_ROWS, max(2, _BYTES // row_bytes))
    if training.is_watched:  # these are in memory
        rows = watched[:: -(-len(watched) // most)]
    else:
        rows = training.rows.take(training.order.sample(most))
    features = np.empty((len(rows), training.config.n_features), dtype=np.float32)
    # As the rows of the shards are going to be encoded: nothing more has to be compiled.
    training.autoencoder.encode_checked(np.ascontiguousarray(rows), features)
    return count_units(features, training.config.code_activation)
