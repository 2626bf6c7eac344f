"""The use of each row: the training, its validation, or nothing, because it was left out or arrived later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from shardpress.hdf5.shard import first_rows
from shardpress.result.finished import Result, Use
from shardpress.result.records import Part, with_digests
from shardpress.run.prepare import Prepared
from shardpress.scan.ranges import Scan, readable
from shardpress.training.fit import validation_rows


def use_of_rows(prepared: Prepared, scan: Scan | None, parts: Sequence[Part], base: Result | None) -> np.ndarray:
    """Return the `Use` of each row, uint8 (n_rows,), in the order of the rows."""
    if prepared.keeps_model:
        assert base is not None
        return _with_later_rows(prepared, parts, base)
    use = np.full(prepared.n_rows, Use.TRAINING, np.uint8)
    if prepared.given_model is None:
        assert scan is not None
        use[_validation_numbers(prepared, scan)] = Use.VALIDATION
        use[prepared.not_fitted()] = Use.LEFT_OUT
    return use


def _validation_numbers(prepared: Prepared, scan: Scan) -> np.ndarray:
    """Return the sorted numbers of the validation rows, numbered over all shards."""
    config = prepared.config
    usable, usable_scan = readable(prepared.shards, prepared.as_trained(scan))
    found = validation_rows(
        usable_scan,
        config.validation.validation_fraction,
        prepared.budget.max_validation_rows,
        config.training.seed,
    )
    starts = first_rows(usable)
    shifts = np.array([first for i, first in enumerate(first_rows(prepared.shards)[:-1]) if i not in scan.unreadable])
    shard_of = np.searchsorted(starts, found, side="right") - 1
    return found - starts[shard_of] + shifts[shard_of]


def _with_later_rows(prepared: Prepared, parts: Sequence[Part], base: Result) -> np.ndarray:
    """Return the use of rows of which some arrived after the training.

    If rows of the training are unknown, or are no longer in the files as they were, all rows that arrived later can be
    the same ones in other files.
    """
    assert prepared.base is not None
    before = base.use()
    earlier = prepared.base.request.shards
    starts = np.cumsum([0, *(shard.shape[0] for shard in base.facts.request.shards)])
    shards = with_digests(prepared.request.shards, parts)
    trained = Counter(base.facts.trained)
    pieces = []
    for place, shard in zip(prepared.change.places, shards, strict=True):
        # The rows of a changed file can be the same, with other extras.
        if place.base is not None and (place.is_same or shard.has_rows_of(earlier[place.base])):
            pieces.append(before[starts[place.base] : starts[place.base + 1]])
        else:
            pieces.append(np.full(shard.shape[0], Use.TRAINING if shard.rows in trained else Use.LATER, np.uint8))
    use = np.concatenate(pieces)
    if not trained or trained - Counter(shard.rows for shard in shards if shard.rows is not None):
        use[use == Use.LATER] = Use.TRAINING
    return use
