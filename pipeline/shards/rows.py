"""Rows out of shards, in whatever form these hold them: the same array as if they had been stored densely.

Each read opens the file and closes it again. What is not dense is read in pieces of a few megabytes, so that a block
takes little more memory than its rows. Of sparse rows nothing is trusted: where they begin, and which columns they
name, is checked where it is read. What rides along is read here too, and bad entries are found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline import signals
from pipeline.errors import DataError, shown
from pipeline.hdf5.chunkcache import CHUNKS
from pipeline.hdf5.forms import numbers_of
from pipeline.hdf5.layout import Layout
from pipeline.hdf5.values import read_values
from pipeline.shards.shard import Block, Rider, Shard, aligned, read_dtype

__all__ = [
    "bad_entries",
    "bad_rows",
    "keep_chunks",
    "missing_entries",
    "read",
    "read_riders",
    "salvage_riders",
    "stream_rider",
]

log = logging.getLogger(__name__)

_PIECE = 2**22  # bytes of a table
_ENTRIES = 2**18  # of sparse rows: 6 MiB with their columns and places
_RIDER_PIECE = 2**22  # bytes of a wide extra
_RIDER_ROWS = 1024  # of which a damaged rider that knows no chunks loses all


def keep_chunks(max_bytes: int) -> None:
    """Set how many bytes of decompressed chunks this process keeps for further reads."""
    CHUNKS.resize(max_bytes)


def read(block: Block, out: np.ndarray | None = None) -> np.ndarray:
    """The rows of a block.

    Parameters
    ----------
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
    if len(block):  # for none, no file need be opened
        if shard.offset is None:
            _read_ordered(block, out)
        else:
            _read_with_offset(block, shard.offset, out)
    return out


def _read_ordered(block: Block, out: np.ndarray) -> None:
    """Read rows as they are stored, with their columns in the order that is wanted."""
    _READERS[block.shard.form](block, out)
    if block.shard.order is not None:
        _reorder(out, block.shard.order)


def _reorder(rows: np.ndarray, order: np.ndarray) -> None:
    """Put the columns of rows (n_rows, n_inputs) into another order, a few rows at a time to save memory."""
    n_rows = max(1, _PIECE // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), n_rows):
        piece = rows[start : start + n_rows]
        piece[...] = np.take(piece, order, axis=1)


def _read_with_offset(block: Block, offset: np.ndarray, out: np.ndarray) -> None:
    """Read rows and subtract an offset (n_inputs,): integers exactly, in 64 bits."""
    raw_dtype = np.dtype(read_dtype(np.dtype(block.shard.stored_dtype)))
    # Rows of 64 bits need no memory of their own.
    raw = out.view(raw_dtype) if raw_dtype.itemsize == out.itemsize else np.empty(out.shape, raw_dtype)
    _read_ordered(block, raw)
    if out.dtype.kind == "f":
        np.subtract(raw, offset, out=out)
        return
    unsigned = raw_dtype == np.uint64
    wide = np.dtype(np.uint64 if unsigned else np.int64)
    raw = raw.astype(wide, copy=False)
    offsets = np.array([int(each) for each in offset], dtype=wide)
    is_below = raw < offsets
    differences = (raw - offsets).view(np.int64)  # modulo 2**64
    # A difference of the wrong sign has wrapped around: such a value is farther away than 64 bits can tell.
    wraps = is_below != (differences < 0)
    limits = np.iinfo(np.int64)
    differences[wraps & is_below] = limits.min
    differences[wraps & ~is_below] = limits.max
    out[...] = differences


def _stored(block: Block, out: np.ndarray, axis: int) -> None:
    """Rows that are one dataset, along its first or last axis."""
    read_values(block.shard.path, block.shard.identity, block.shard.layouts[0], block.start, out, axis)


def _values(shard: Shard, layout: Layout, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """What of one of the datasets that make up the rows is needed for some of them, in memory of its own."""
    return read_values(shard.path, shard.identity, layout, start, np.empty(stop - start, dtype))


# -- tables ------------------------------------------------------------------------------------------------------


def _table(block: Block, out: np.ndarray) -> None:
    (layout,) = block.shard.layouts
    numbers = numbers_of(layout.dtype)
    assert numbers is not None
    chunk = layout.chunks[0] if layout.chunks else 1
    size = max(1, _PIECE // layout.dtype.itemsize // chunk) * chunk  # whole chunks, so that none is read twice
    for start, stop in aligned(block.start, block.stop, size):
        records = _values(block.shard, layout, start, stop, layout.dtype)
        # The numbers alone, as a view: they lie side by side in each record, with other fields around them.
        shape, strides = (len(records), numbers.n), (records.itemsize, numbers.dtype.itemsize)
        rows: np.ndarray = np.ndarray(shape, numbers.dtype, records.view(np.uint8), numbers.offset, strides)
        out[start - block.start : stop - block.start] = rows


# -- sparse rows -------------------------------------------------------------------------------------------------


def _sparse(block: Block, out: np.ndarray) -> None:
    shard, (values, columns, firsts) = block.shard, block.shard.layouts
    ends = _values(shard, firsts, block.start, block.stop + 1, np.dtype(np.int64))  # one more: where the last row ends
    _check_ends(block, ends)
    out[...] = 0
    for row, last in _few(ends):
        low, high = int(ends[row]), int(ends[last])
        where = _values(shard, columns, low, high, np.dtype(np.int64))
        # Where each entry goes in the rows' memory, so that one assignment fills in all of them.
        places = np.repeat(np.arange(last - row) * shard.n_inputs, np.diff(ends[row : last + 1])) + where
        _check_places(shard, block.start + row, where, places)
        out[row:last].reshape(-1)[places] = _values(shard, values, low, high, out.dtype)


def _few(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together have not too many entries; single rows where they do."""
    row = 0
    while row + 1 < len(ends):
        # The last row that ends within the bound; a row is never cut, since its places are checked together.
        last = max(row + 1, int(np.searchsorted(ends, ends[row] + _ENTRIES, side="right")) - 1)
        yield row, last
        row = last


def _check_ends(block: Block, ends: np.ndarray) -> None:
    """That rows begin where others end, lie in the file, and have no more entries than columns."""
    shard, sizes = block.shard, np.diff(ends)
    # No more than columns, or a forged file would have us take memory for any number of entries.
    wrong = (sizes < 0) | (sizes > shard.n_inputs) | (ends[:-1] < 0) | (ends[1:] > shard.layouts[0].shape[0])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _damaged(shard, block.start + row, f"its entries are said to be {ends[row]} to {ends[row + 1]}")


def _check_places(shard: Shard, first: int, where: np.ndarray, places: np.ndarray) -> None:
    """That the columns are there, and each at most once in a row: else values would go to other rows, or be lost."""
    if not len(where):
        return
    if where.min() < 0 or where.max() >= shard.n_inputs:
        i = int(np.argmax((where < 0) | (where >= shard.n_inputs)))
        row = first + int(places[i] - where[i]) // shard.n_inputs
        raise _damaged(shard, row, f"an entry in column {where[i]}")
    if (places[1:] > places[:-1]).all():  # as nearly every writer leaves them, and sorting takes far longer
        return
    in_order = np.sort(places)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if len(twice):
        row, column = divmod(int(twice[0]), shard.n_inputs)
        raise DataError(
            f"{shard} row={first + row}: column {column} has two entries, expected one. Sum them before you write "
            "the matrix (SciPy: X.sum_duplicates())."
        )


def _damaged(shard: Shard, row: int, what: str) -> DataError:
    return DataError(
        f"{shard} row={row}: {what}, expected {shard.n_inputs} columns and {shard.layouts[0].shape[0]} entries in "
        "all, row by row. The file is damaged: copy it again."
    )


def _array(block: Block, out: np.ndarray) -> None:
    assert block.shard.rows is not None
    out[...] = block.shard.rows[block.start : block.stop]


_READERS: dict[str, Callable[[Block, np.ndarray], None]] = {
    "dense": partial(_stored, axis=0),
    "columns": partial(_stored, axis=-1),
    "sparse": _sparse,
    "table": _table,
    "array": _array,
}


# -- what rides along ------------------------------------------------------------------------------------------


def read_riders(block: Block) -> dict[str, np.ndarray]:
    """The riding datasets' values (len(block),) by name, in their dtypes; strings as objects. Raises like `read`."""
    return {rider.name: _read_rider(block, rider) for rider in block.shard.riders}


def salvage_riders(
    block: Block, check: Callable[[], object] = signals.check
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What can be read of what rides along, once `read_riders` has failed.

    Which values are lost depends on the file alone, and not on where the block begins.

    Parameters
    ----------
    check : callable
        Called before each piece; what it raises ends the reading.

    Returns
    -------
    dict of str to ndarray
        As of `read_riders`, with what stands for a missing value in place of those that are lost.
    list of dict
        For each lost piece, its ``dataset``, its rows (``row``: first, and last but one) and the ``reason``.
    """
    values = {rider.name: np.full(len(block), rider.absent, rider.dtype) for rider in block.shard.riders}
    reports: list[dict[str, Any]] = []
    for rider in block.shard.riders:
        if rider.layout is not None:
            lost = _salvage(block, rider, rider.layout, values[rider.name], check)
            reports += _reported(block, rider, rider.layout, lost, values)
    return values, reports


def stream_rider(
    block: Block,
    rider: Rider,
    values: Mapping[str, np.ndarray],
    reports: list[dict[str, Any]] | None = None,
    check: Callable[[], object] = signals.check,
) -> Iterator[np.ndarray]:
    """Read a wide extra, some megabytes at a time.

    Parameters
    ----------
    values : mapping
        Values (len(block),) of other extras. Where some of this one are lost, the mask among them says so.
    reports : list, optional
        Takes a report of each lost piece, as `salvage_riders` gives them. With none, damaged values are an error.
    check : callable
        Called before each piece; what it raises ends the reading.

    Yields
    ------
    ndarray of shape (n,), the extra's dtype

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        As `read`.
    """
    layout = rider.layout
    n_rows = max(1, _RIDER_PIECE // rider.value_bytes)
    if layout is not None and layout.chunks:  # whole chunks, so that none is read twice
        chunk_rows = layout.chunks[_axis(block.shard, layout)]
        n_rows = -(-n_rows // chunk_rows) * chunk_rows
    for start, stop in aligned(block.start, block.stop, n_rows):
        check()
        piece = Block(block.shard, start, stop)
        try:
            found = _read_rider(piece, rider)
        except DataError:
            if reports is None or layout is None:
                raise
            found = np.full(len(piece), rider.absent, rider.dtype)
            lost = _salvage(piece, rider, layout, found, check)
            reports += _reported(block, rider, layout, lost, values)
        yield found


def _reported(
    block: Block,
    rider: Rider,
    layout: Layout,
    lost: Sequence[tuple[Block, DataError]],
    values: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Report pieces of an extra that are lost, in the log too; the mask among the values (len(block),) says so."""
    reports: list[dict[str, Any]] = []
    for piece, error in lost:
        rows = [piece.start, piece.stop]
        reports.append({"dataset": layout.name, "row": rows, "columns": [], "reason": str(error)})
        if rider.mask:  # which says so far that all of this shard's rows have a value
            values[rider.mask][piece.start - block.start : piece.stop - block.start] = False
    if lost:
        log.warning(
            "%s: %d values of %s, which rides along, cannot be read and become %s: %s",
            *(block, sum(len(piece) for piece, _ in lost), shown(rider.name), rider.absent_in_words, lost[0][1]),
        )
    return reports


def _salvage(
    block: Block, rider: Rider, layout: Layout, out: np.ndarray, check: Callable[[], object]
) -> list[tuple[Block, DataError]]:
    """Read what can be of a rider; which pieces cannot, and why."""
    lost = []
    # A damaged chunk costs its own values and no others, wherever the block begins.
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
        return np.full(len(block), rider.absent, rider.dtype)
    # Codes as they are stored, to be checked before they become those of all shards.
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


# -- bad entries -----------------------------------------------------------------------------------------------


def bad_rows(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Positions, int64, of the rows that hold bad entries."""
    return np.flatnonzero(bad_entries(rows, missing, stored, fills).any(axis=1))


def bad_entries(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Which entries make a row a bad one: NaN, Inf, or the missing value as the dtype `stored` has it.

    Where what is missing is filled in (`fills`): Inf, and all of a row without a single value. Bool, of their shape.
    """
    if fills:
        nothing = missing_entries(rows, missing, stored).all(axis=1, keepdims=True)
        return np.isinf(rows) | nothing if rows.dtype.kind == "f" else np.broadcast_to(nothing, rows.shape)
    # Of integers none is NaN, but any may be the missing value.
    bad = ~np.isfinite(rows) if rows.dtype.kind == "f" else np.zeros(rows.shape, dtype=bool)
    return bad if missing is None else bad | missing_entries(rows, missing, stored)


def missing_entries(rows: np.ndarray, missing: float | None = None, stored: str | None = None) -> np.ndarray:
    """Which entries of rows are NaN, or the missing value as the dtype `stored` has it: bool, of their shape."""
    held = None if missing is None else _held(missing, np.dtype(stored or rows.dtype))
    if rows.dtype.kind != "f":
        return np.zeros(rows.shape, dtype=bool) if held is None else rows == rows.dtype.type(held)
    return np.isnan(rows) if held is None else np.isnan(rows) | (rows == rows.dtype.type(held))


def _held(missing: float, dtype: np.dtype) -> Any:
    """The missing value as files of a dtype spell it; None where nothing in them can be it."""
    if dtype.kind == "f":
        # Rounded: -999.9 in a file of float32 is not the number that a user types. But 1e-99 there is not 0.
        with np.errstate(over="ignore", under="ignore"):
            held = np.float64(missing).astype(dtype)
        return held if np.isfinite(held) and bool(held) == bool(missing) else None
    # An integer's dtype holds neither fractions nor what lies outside it: 255.5 is in no file of uint8.
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(missing) if low <= missing <= high and missing == int(missing) else None
