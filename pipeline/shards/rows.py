"""Rows out of shards: read, what rides along with them, and which entries are bad.

Each read opens the file and closes it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline import signals
from pipeline.errors import DataError, shown
from pipeline.formats import missing_value
from pipeline.hdf5.layout import Layout
from pipeline.hdf5.values import read_values
from pipeline.shards.rowforms import read_rows
from pipeline.shards.shard import Block, Rider, Shard, blocks, row_dtype

__all__ = [
    "absent",
    "bad_entries",
    "bad_rows",
    "read",
    "read_riders",
    "salvage_riders",
    "to_dask",
    "told",
]

log = logging.getLogger(__name__)

_RIDER_ROWS = 1024  # of which a damaged rider that knows no chunks loses all


def read(block: Block, out: np.ndarray | None = None) -> np.ndarray:
    """The rows of a block.

    Parameters
    ----------
    block : Block
    out : ndarray, optional
        What is to hold them, if memory is to be used again: of the result's shape and dtype, C order.

    Returns
    -------
    ndarray of shape (len(block), n_inputs), the shard's `dtype`, C order

    Raises
    ------
    DataError
        When they are damaged, or the file has changed.
    ReadFailed, NotPermitted, SystemLimit
        When the system fails.
    """
    shard = block.shard
    if out is None:
        out = np.empty((len(block), shard.n_inputs), dtype=shard.dtype)
    return read_rows(shard, block.start, out)


def read_riders(block: Block) -> dict[str, np.ndarray]:
    """The riding datasets' values for a block, by name; strings as objects. Raises like `read`."""
    shard = block.shard
    return {rider.name: read_rider(shard, rider, block.start, block.stop) for rider in shard.riders}


def to_dask(shards: Sequence[Shard], block_rows: int) -> Any:
    """All rows as one lazy array.

    Returns
    -------
    dask.array.Array of shape (n_rows, n_inputs), dtype `row_dtype`
        One chunk for each block.
    """
    import dask
    import dask.array as da

    dtype, n_inputs = row_dtype(shards), shards[0].n_inputs
    lazy = [
        da.from_delayed(
            dask.delayed(partial(read, block), pure=False)(), (len(block), n_inputs), dtype=block.shard.dtype
        ).astype(dtype)
        for block in blocks(shards, block_rows)
    ]
    return da.concatenate(lazy)


# -- bad entries -----------------------------------------------------------------------------------------------


def bad_rows(rows: np.ndarray, missing: float | None = None, stored: str | None = None) -> np.ndarray:
    """Positions, int64, of the rows that hold NaN, Inf or the missing value."""
    return np.flatnonzero(bad_entries(rows, missing, stored).any(axis=1))


def bad_entries(rows: np.ndarray, missing: float | None = None, stored: str | None = None) -> np.ndarray:
    """Which entries of rows are NaN, Inf or the missing value: bool, of the same shape.

    Parameters
    ----------
    rows : ndarray
    missing : float, optional
    stored : str, optional
        The dtype that they were stored in, if that is another one.
    """
    bad = ~np.isfinite(rows) if rows.dtype.kind == "f" else np.zeros(rows.shape, dtype=bool)
    held = None if missing is None else _held(missing, np.dtype(stored or rows.dtype))
    return bad if held is None else bad | (rows == rows.dtype.type(held))


def _held(missing: float, dtype: np.dtype) -> Any:
    """The missing value as files of a dtype spell it; None where nothing in them can be it."""
    if dtype.kind == "f":
        # Rounded: -999.9 in a file of float32 is not the number that a user types. But 1e-99 there is not 0.
        with np.errstate(over="ignore", under="ignore"):
            held = np.float64(missing).astype(dtype)
        return held if np.isfinite(held) and bool(held) == bool(missing) else None
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(missing) if low <= missing <= high and missing == int(missing) else None


# -- what rides along ------------------------------------------------------------------------------------------


def salvage_riders(
    source: Block, check: Callable[[], object] = signals.check
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The riding datasets' values where some cannot be read: what stands for a missing one is there for each of them.

    Which ones depends on the file alone, and not on where the block begins. What is said of them comes along: the
    dataset, the rows and the reason. `check` is called between pieces, and may raise.
    """
    bad: list[dict[str, Any]] = []
    found = {rider.name: absent(len(source), rider) for rider in source.shard.riders}
    for rider in source.shard.riders:
        if rider.layout is None:
            continue
        lost: list[tuple[int, str]] = []
        for start, stop in _pieces(source, chunk_rows(source.shard, rider.layout) or _RIDER_ROWS):
            check()
            place = slice(start - source.start, stop - source.start)
            try:
                found[rider.name][place] = read_rider(source.shard, rider, start, stop)
            except DataError as error:
                lost.append((stop - start, str(error)))
                if rider.mask:
                    found[rider.mask][place] = False
                bad.append({"dataset": rider.layout.name, "row": [start, stop], "columns": [], "reason": str(error)})
        if lost:
            log.warning(
                "%s: %d values of %s, which rides along, cannot be read and become %s: %s",
                *(source, sum(n for n, _ in lost), shown(rider.name), told(rider), lost[0][1]),
            )
    return found, bad


def _pieces(source: Block, size: int) -> Iterator[tuple[int, int]]:
    """Cut a block where a rider's chunks of so many rows begin."""
    starts = [source.start, *range((source.start // size + 1) * size, source.stop, size)]
    return zip(starts, [*starts[1:], source.stop], strict=True)


def read_rider(shard: Shard, rider: Rider, start: int, stop: int) -> np.ndarray:
    """A riding dataset's values for rows `start` to `stop`: shape (stop - start,); raises like `read_values`."""
    if rider.layout is None:
        return absent(stop - start, rider)
    if rider.codes is not None:
        return _recoded(replace(rider, dtype=rider.layout.dtype, codes=None), rider, shard, start, stop)
    axis = -1 if _lies_across(rider.layout, shard.n_rows) else 0
    values = np.empty(stop - start, rider.dtype)  # has the axes of an array for each row, where that rides along
    return read_values(shard.path, shard.identity, rider.layout, start, values, axis)


def _recoded(as_stored: Rider, rider: Rider, shard: Shard, start: int, stop: int) -> np.ndarray:
    """Codes of all shards' categories; -1 where there is none."""
    assert rider.layout is not None
    assert rider.codes is not None
    codes = read_rider(shard, as_stored, start, stop).astype(np.int64)
    odd = np.flatnonzero((codes < -1) | (codes >= len(rider.codes)))
    if len(odd):
        raise DataError(
            f"file={shown(shard.path)} dataset={shown(rider.layout.name)} rows={start + int(odd[0])}: code "
            f"{codes[odd[0]]}, expected -1 to {len(rider.codes) - 1} for its categories. Write it anew."
        )
    return np.array([*rider.codes, -1], rider.dtype)[codes]


def chunk_rows(shard: Shard, layout: Layout) -> int | None:
    """Rows of a riding dataset's chunk; None where there are no chunks."""
    return layout.chunks[-1 if _lies_across(layout, shard.n_rows) else 0] if layout.chunks else None


def _lies_across(layout: Layout, n_rows: int) -> bool:
    """Whether its axes of length 1 come first, as MATLAB's do."""
    return layout.shape[0] != n_rows


def absent(n: int, rider: Rider) -> np.ndarray:
    """What stands for `n` values that are not there: shape (n,)."""
    values = np.zeros(n, rider.dtype)
    values[...] = missing_value(values.dtype) if rider.fill is None else rider.fill
    return values


def told(rider: Rider) -> str:
    """What stands for a value that is not there, in words."""
    value = missing_value(rider.dtype) if rider.fill is None else rider.fill
    return "empty" if isinstance(value, bytes) and not value.strip(b"\0") else str(value)
