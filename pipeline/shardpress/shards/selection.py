"""Selection of the rows of a shard by a condition on an extra."""

from __future__ import annotations

import numpy as np

from shardpress.conditions import fulfils
from shardpress.errors import printable
from shardpress.hdf5.shard import Block, Extra, Shard
from shardpress.settings.condition import Condition
from shardpress.shards.rows import stream_extra


def selected_rows(shard: Shard, extra: Extra, condition: Condition) -> np.ndarray:
    """Return whether each row of a shard fulfils a condition: (n_rows,), bool. No row does if the extra is missing.

    Raise the same errors as `shardpress.shards.rows.read`.
    """
    selected = np.zeros(shard.n_rows, dtype=bool)
    if extra.layout is None:
        return selected
    start = 0
    for values in stream_extra(Block(shard, 0, shard.n_rows), extra, {}):
        selected[start : start + len(values)] = fulfils(condition, values, extra.categories)
        start += len(values)
    return selected


def check_condition(extra: Extra, condition: Condition) -> None:
    """Raise `ValueError` if the values of an extra cannot be compared as in a condition."""
    if extra.dtype.shape:
        raise ValueError(f"{printable(extra.name)} has an array for each row, expected one value for each row")
    fulfils(condition, np.zeros(0, dtype=extra.dtype), extra.categories)
