"""Read rows of any form as a dense array, and read extras.

Each read opens the file and closes it. Rows that are not dense are read in pieces of a few megabytes, so that a block
takes little more memory than its rows. The row pointers and column indices of sparse rows are checked on reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shardpress import signals
from shardpress.errors import DataError, printable
from shardpress.hdf5.chunkcache import CHUNKS
from shardpress.hdf5.description import Extra
from shardpress.hdf5.forms import Numbers, numbers_of
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.values import read_values
from shardpress.shards.shard import UNREADABLE, Block, Shard, aligned

log = logging.getLogger(__name__)

_PIECE = 2**22  # bytes of a table
_ENTRIES = 2**18  # entries of sparse rows: 6 MiB with their column indices and positions
_EXTRA_PIECE = 2**22  # bytes of a wide extra
_EXTRA_ROWS = 1024  # rows that a damaged extra without chunks loses together
_INT64 = np.dtype(np.int64)


def keep_chunks(max_bytes: int) -> None:
    """Limit this process's cache of decompressed chunks."""
    CHUNKS.resize(max_bytes)


def read(block: Block, out: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a block as they are stored: (len(block), n_inputs), in the shard's `dtype`, C order.

    `out` is memory for the result, with this shape and dtype.

    Raises
    ------
    DataError
        If the rows are damaged, or the file has changed.
    ReadFailed, NotPermitted, SystemLimit
        If rows cannot be read because of a system error or a missing permission.
    """
    shard = block.shard
    if out is None:
        out = np.empty((len(block), shard.n_inputs), dtype=shard.dtype)
    if len(block):  # an empty block needs no file
        _READERS[shard.form](_in_dataset(block), out)
    return out


def _in_dataset(block: Block) -> Block:
    """Return the block with the row numbers of the dataset, which can have rows before those of the shard."""
    first = block.shard.first_row
    return block if not first else replace(block, start=block.start + first, stop=block.stop + first)


def _read_stored(block: Block, out: np.ndarray, axis: int) -> None:
    """Read rows that are stored along the first or last axis of one dataset."""
    read_values(block.shard.path, block.shard.identity, block.shard.layouts[0], block.start, out, axis)


def _values(shard: Shard, layout: Layout, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    return read_values(shard.path, shard.identity, layout, start, np.empty(stop - start, dtype))


# -- tables ------------------------------------------------------------------------------------------------------


def _read_table(block: Block, out: np.ndarray) -> None:
    (layout,) = block.shard.layouts
    numbers = numbers_of(layout.dtype)
    assert numbers is not None
    for start, stop in _pieces_of_table(block, layout):
        records = _values(block.shard, layout, start, stop, layout.dtype)
        out[start - block.start : stop - block.start] = _view_of(records, numbers)


def _pieces_of_table(block: Block, layout: Layout) -> Iterator[tuple[int, int]]:
    """Return ranges of records of a few megabytes. They are whole chunks, so that none is read twice."""
    chunk = layout.chunks[0] if layout.chunks else 1
    size = max(1, _PIECE // layout.dtype.itemsize // chunk) * chunk
    return aligned(block.start, block.stop, size)


def _view_of(records: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Return a view of the numbers in each record. The numbers are adjacent, and other fields may surround them."""
    return np.ndarray(
        shape=(len(records), numbers.n),
        dtype=numbers.dtype,
        buffer=records.view(np.uint8),
        offset=numbers.offset,
        strides=(records.itemsize, numbers.dtype.itemsize),
    )


# -- sparse rows -------------------------------------------------------------------------------------------------


def _read_sparse(block: Block, out: np.ndarray) -> None:
    shard = block.shard
    # Read one more pointer than rows, for the end of the last row.
    pointers = _values(shard, shard.layouts[2], block.start, block.stop + 1, _INT64)
    _check_pointers(block, pointers)
    out[...] = 0
    for row, last in _ranges_of_rows(pointers):
        _read_entries(shard, block.start + row, pointers[row : last + 1], out[row:last])


def _read_entries(shard: Shard, first_row: int, pointers: np.ndarray, out: np.ndarray) -> None:
    """Read the entries of some sparse rows into `out`, which is zero."""
    values, indices, _ = shard.layouts
    low = int(pointers[0])
    high = int(pointers[-1])
    columns = _values(shard, indices, low, high, _INT64)
    # Compute the position of each entry in the memory of the rows, so that one assignment sets all entries.
    row_starts = np.arange(len(out)) * shard.n_inputs
    positions = np.repeat(row_starts, np.diff(pointers)) + columns
    _check_columns(shard, first_row, columns, positions)
    out.reshape(-1)[positions] = _values(shard, values, low, high, out.dtype)


def _ranges_of_rows(pointers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with a bounded number of entries; single rows may have more."""
    row = 0
    while row + 1 < len(pointers):
        # Find the last row that ends within the bound. Rows are not split, because their columns are checked together.
        last = max(row + 1, int(np.searchsorted(pointers, pointers[row] + _ENTRIES, side="right")) - 1)
        yield row, last
        row = last


def _check_pointers(block: Block, pointers: np.ndarray) -> None:
    shard = block.shard
    sizes = np.diff(pointers)
    # Without the limit of columns, a forged file could make this process allocate any amount of memory.
    wrong = (sizes < 0) | (sizes > shard.n_inputs) | (pointers[:-1] < 0) | (pointers[1:] > shard.layouts[0].shape[0])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _damaged_row(shard, block.start + row, f"its entries are numbered {pointers[row]} to {pointers[row + 1]}")


def _check_columns(shard: Shard, first: int, columns: np.ndarray, positions: np.ndarray) -> None:
    """Check that columns exist and occur once in a row. Other values would be lost or written to wrong rows."""
    if not len(columns):
        return
    if columns.min() < 0 or columns.max() >= shard.n_inputs:
        i = int(np.argmax((columns < 0) | (columns >= shard.n_inputs)))
        row = first + int(positions[i] - columns[i]) // shard.n_inputs
        raise _damaged_row(shard, row, f"an entry in column {columns[i]}")
    if not (positions[1:] > positions[:-1]).all():  # this order is usual, and checking it is far faster than sorting
        _check_unique(shard, first, positions)


def _check_unique(shard: Shard, first: int, positions: np.ndarray) -> None:
    in_order = np.sort(positions)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if len(repeated):
        row, column = divmod(int(repeated[0]), shard.n_inputs)
        raise DataError(
            f"{shard} row={first + row}: column {column} has two entries, expected one. Sum duplicates before "
            "writing the matrix (SciPy: X.sum_duplicates())."
        )


def _damaged_row(shard: Shard, row: int, problem: str) -> DataError:
    return DataError(
        f"{shard} row={row}: {problem}, expected {shard.n_inputs} columns and {shard.layouts[0].shape[0]} entries in "
        "all rows. The file is damaged: copy it again."
    )


def _read_array(block: Block, out: np.ndarray) -> None:
    shard = block.shard
    if isinstance(shard.rows, np.ndarray):
        out[...] = shard.rows[block.start : block.stop]
        return
    # A CSR matrix of SciPy, whose `toarray` returns a copy: a few rows at a time need little memory.
    n_rows = max(1, _PIECE // (shard.n_inputs * shard.rows.dtype.itemsize))
    for start in range(0, len(block), n_rows):
        stop = min(start + n_rows, len(block))
        out[start:stop] = shard.rows[block.start + start : block.start + stop].toarray()


def _refuse(block: Block, out: np.ndarray) -> None:
    raise DataError(f"{block.shard}: its file cannot be used. See the warning about it above.")


_READERS: dict[str, Callable[[Block, np.ndarray], None]] = {
    "dense": partial(_read_stored, axis=0),
    "columns": partial(_read_stored, axis=-1),
    "sparse": _read_sparse,
    "table": _read_table,
    "array": _read_array,
    UNREADABLE: _refuse,
}


# -- extras ------------------------------------------------------------------------------------------------------


def read_extras(
    block: Block, reports: list[dict[str, Any]] | None = None, check: Callable[[], object] = signals.check
) -> dict[str, np.ndarray]:
    """Return the extras (len(block),) of a block by name, in their dtypes.

    Parameters
    ----------
    reports : list, optional
        List to which reports of damaged pieces are appended: ``dataset``, ``row`` (first row and end of the piece),
        ``columns`` (empty) and ``reason``. Their values become the fill value. If None, damaged values are an error.
    check : callable
        Called before each piece; an exception that it raises ends the reading.

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        Like `read`.
    """
    values: dict[str, np.ndarray] = {}
    masks_first = sorted(block.shard.extras, key=lambda extra: extra.layout is not None)  # masks are not stored
    for extra in masks_first:
        mask = values.get(extra.mask or "")
        values[extra.name] = _read_or_salvage(block, extra, mask, reports, check)
    return {extra.name: values[extra.name] for extra in block.shard.extras}


def stream_extra(
    block: Block,
    extra: Extra,
    values: Mapping[str, np.ndarray],
    reports: list[dict[str, Any]] | None = None,
    check: Callable[[], object] = signals.check,
) -> Iterator[np.ndarray]:
    """Yield the values of a wide extra as `read_extras` returns them, some megabytes at a time.

    `values` are those of other extras. If they include the mask of this extra, it is cleared for lost values.
    """
    for start, stop in aligned(block.start, block.stop, _rows_at_once(block.shard, extra)):
        check()
        mask = values.get(extra.mask or "")
        if mask is not None:
            mask = mask[start - block.start : stop - block.start]
        yield _read_or_salvage(Block(block.shard, start, stop), extra, mask, reports, check)


def _read_or_salvage(
    block: Block,
    extra: Extra,
    mask: np.ndarray | None,
    reports: list[dict[str, Any]] | None,
    check: Callable[[], object],
) -> np.ndarray:
    try:
        return _read_extra(block, extra)  # one read is several times faster than reads of pieces
    except DataError:
        if reports is None:
            raise
        return _salvage(block, extra, mask, reports, check)


def _rows_at_once(shard: Shard, extra: Extra) -> int:
    """Return a number of rows that fill whole chunks, so that no chunk is read twice."""
    n_rows = max(1, _EXTRA_PIECE // extra.value_bytes)
    if extra.layout is None or not extra.layout.chunks:
        return n_rows
    chunk_rows = extra.layout.chunks[_axis(shard, extra.layout)]
    return -(-n_rows // chunk_rows) * chunk_rows


def _salvage(
    block: Block,
    extra: Extra,
    mask: np.ndarray | None,
    reports: list[dict[str, Any]],
    check: Callable[[], object],
) -> np.ndarray:
    """Return the values of an extra with the fill value in place of damaged ones. Report them, and clear `mask`."""
    layout = extra.layout
    assert layout is not None  # values that are not stored cannot be damaged
    found = np.full(len(block), extra.resolved_fill, extra.dtype)
    n_lost = 0
    reasons = []
    # Only the values of damaged chunks are lost, independent of the start of the block.
    chunk_rows = layout.chunks[_axis(block.shard, layout)] if layout.chunks else _EXTRA_ROWS
    for start, stop in aligned(block.start, block.stop, chunk_rows):
        check()
        place = slice(start - block.start, stop - block.start)
        try:
            found[place] = _read_extra(Block(block.shard, start, stop), extra)
        except DataError as error:
            n_lost += stop - start
            reasons.append(str(error))
            reports.append({"dataset": layout.name, "row": [start, stop], "columns": [], "reason": str(error)})
            if mask is not None:
                mask[place] = False
    if reasons:
        log.warning(
            "%s: %d values of the extra %s cannot be read and become %s: %s",
            block,
            n_lost,
            printable(extra.name),
            extra.fill_in_words,
            reasons[0],
        )
    return found


def _read_extra(block: Block, extra: Extra) -> np.ndarray:
    """Return (len(block),) values, with further axes if the values are arrays."""
    block = _in_dataset(block)
    layout = extra.layout
    if layout is None:
        return np.full(len(block), extra.resolved_fill, extra.dtype)
    if extra.record_field is not None:
        return _read_field(block, layout, extra.record_field, extra.dtype)
    if extra.codes is None:
        return _read_stored_extra(block, layout, extra.dtype)
    # Conversion to int64 makes unsigned codes above 2**63 negative, so they are refused.
    stored = _read_stored_extra(block, layout, layout.dtype).astype(np.int64)
    _check_codes(block, layout, stored, len(extra.codes))
    codes = np.array([*extra.codes, -1], extra.dtype)  # the last entry maps -1 to -1
    return codes[stored]


def _read_field(block: Block, layout: Layout, name: str, dtype: np.dtype) -> np.ndarray:
    values = np.empty(len(block), dtype)
    for start, stop in _pieces_of_table(block, layout):
        records = _values(block.shard, layout, start, stop, layout.dtype)
        values[start - block.start : stop - block.start] = records[name]
    return values


def _check_codes(block: Block, layout: Layout, stored: np.ndarray, n_categories: int) -> None:
    wrong = np.flatnonzero((stored < -1) | (stored >= n_categories))
    if len(wrong):
        raise DataError(
            f"file={printable(block.shard.path)} dataset={printable(layout.name)} rows={block.start + int(wrong[0])}: "
            f"code {stored[wrong[0]]}, expected -1 to {n_categories - 1} for its categories. Write the dataset again."
        )


def _read_stored_extra(block: Block, layout: Layout, dtype: np.dtype) -> np.ndarray:
    shard = block.shard
    values = np.empty(len(block), dtype)
    return read_values(shard.path, shard.identity, layout, block.start, values, _axis(shard, layout))


def _axis(shard: Shard, layout: Layout) -> int:
    """Return the axis of the rows in an extra: 0, or -1 if axes of length 1 precede it, as in MATLAB."""
    return 0 if layout.shape[0] >= shard.first_row + shard.n_rows else -1
