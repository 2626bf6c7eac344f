"""Rows out of shards: read, what rides along with them, and which entries are bad.

Each read opens the file and closes it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline import signals
from pipeline.errors import DataError, shown
from pipeline.hdf5.layout import Layout
from pipeline.hdf5.values import read_values
from pipeline.shards.rowforms import read_rows
from pipeline.shards.shard import Block, Rider, Shard, aligned

__all__ = ["bad_entries", "bad_rows", "read", "read_riders", "salvage_riders"]

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
    read_rows(block, out)
    return out


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


def read_riders(block: Block) -> dict[str, np.ndarray]:
    """The riding datasets' values for a block, by name; strings as objects. Raises like `read`."""
    return {rider.name: _read_rider(block, rider) for rider in block.shard.riders}


def salvage_riders(
    block: Block, check: Callable[[], object] = signals.check
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What can be read of what rides along, once `read_riders` has failed.

    Which values are lost depends on the file alone, and not on where the block begins.

    Parameters
    ----------
    block : Block
    check : callable
        Called before each piece; what it raises ends the reading.

    Returns
    -------
    dict of str to ndarray
        As of `read_riders`, with what stands for a missing value in place of those that are lost.
    list of dict
        For each lost piece, its ``dataset``, its rows (``row``: first, and last but one) and the ``reason``.
    """
    values = {rider.name: _absent(len(block), rider) for rider in block.shard.riders}
    reports: list[dict[str, Any]] = []
    for rider in block.shard.riders:
        if rider.layout is None:
            continue
        lost = _salvage(block, rider, rider.layout, values[rider.name], check)
        for piece, error in lost:
            rows = [piece.start, piece.stop]
            reports.append({"dataset": rider.layout.name, "row": rows, "columns": [], "reason": str(error)})
            if rider.mask:
                values[rider.mask][piece.start - block.start : piece.stop - block.start] = False
        if lost:
            log.warning(
                "%s: %d values of %s, which rides along, cannot be read and become %s: %s",
                *(block, sum(len(piece) for piece, _ in lost), shown(rider.name), rider.absent_in_words, lost[0][1]),
            )
    return values, reports


def _salvage(
    block: Block, rider: Rider, layout: Layout, out: np.ndarray, check: Callable[[], object]
) -> list[tuple[Block, DataError]]:
    """Read what can be of a rider; which pieces cannot, and why."""
    lost = []
    chunk_rows = layout.chunks[_axis(block.shard, layout)] if layout.chunks else _RIDER_ROWS
    for start, stop in aligned(block.start, block.stop, chunk_rows):
        check()
        piece = Block(block.shard, start, stop)
        try:
            out[start - block.start : stop - block.start] = _read_rider(piece, rider)
        except DataError as error:
            lost.append((piece, error))
    return lost


def _read_rider(block: Block, rider: Rider) -> np.ndarray:
    """A riding dataset's values for a block, shape (len(block),); with an array for each row, these axes behind it."""
    shard, layout = block.shard, rider.layout
    if layout is None:
        return _absent(len(block), rider)
    values = np.empty(len(block), rider.dtype if rider.codes is None else layout.dtype)
    read_values(shard.path, shard.identity, layout, block.start, values, _axis(shard, layout))
    if rider.codes is None:
        return values
    codes = values.astype(np.int64)  # beyond it, unsigned ones become negative
    odd = np.flatnonzero((codes < -1) | (codes >= len(rider.codes)))
    if len(odd):
        raise DataError(
            f"file={shown(shard.path)} dataset={shown(layout.name)} rows={block.start + int(odd[0])}: code "
            f"{codes[odd[0]]}, expected -1 to {len(rider.codes) - 1} for its categories. Write it anew."
        )
    return np.array([*rider.codes, -1], rider.dtype)[codes]  # the last one is what -1 stands for, too


def _axis(shard: Shard, layout: Layout) -> int:
    """Along which axis the rows lie: a rider's axes of length 1 stand behind them, or before, as MATLAB's do."""
    return 0 if layout.shape[0] == shard.n_rows else -1


def _absent(n: int, rider: Rider) -> np.ndarray:
    """What stands for `n` values that are not there."""
    return np.full(n, rider.absent, rider.dtype)
