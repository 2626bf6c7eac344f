"""Rows out of a shard, in whatever form it holds them: the same array as if they had been stored densely.

What is not dense is read in pieces of a few megabytes, so that a block takes little more memory than its rows. Of
sparse rows nothing is trusted: where they begin, and which columns they name, is checked where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.hdf5.forms import numbers_of
from pipeline.hdf5.layout import Layout
from pipeline.hdf5.values import read_values
from pipeline.shards.shard import Block, Shard, aligned

__all__ = ["read_rows"]

_PIECE = 2**22  # bytes
_ENTRIES = 2**18  # of sparse rows: 6 MiB with their columns and places


def read_rows(block: Block, out: np.ndarray) -> None:
    """Read the rows of a block into an array (len(block), n_inputs) of its shard's `dtype`, in C order."""
    if len(block):
        _READERS[block.shard.form](block, out)


def _dense(block: Block, out: np.ndarray) -> None:
    read_values(block.shard.path, block.shard.identity, block.shard.layouts[0], block.start, out)


def _columns(block: Block, out: np.ndarray) -> None:
    read_values(block.shard.path, block.shard.identity, block.shard.layouts[0], block.start, out, axis=-1)


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
        last = max(row + 1, int(np.searchsorted(ends, ends[row] + _ENTRIES, side="right")) - 1)
        yield row, last
        row = last


def _check_ends(block: Block, ends: np.ndarray) -> None:
    """That rows begin where others end, lie in the file, and have no more entries than columns."""
    shard, sizes = block.shard, np.diff(ends)
    wrong = (sizes < 0) | (sizes > shard.n_inputs) | (ends[:-1] < 0) | (ends[1:] > shard.layouts[0].shape[0])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _damaged(shard, block.start + row, f"its entries are said to be {ends[row]} to {ends[row + 1]}")


def _check_places(shard: Shard, first: int, where: np.ndarray, places: np.ndarray) -> None:
    """That the columns are there, and each at most once in a row."""
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
            f"{_place(shard, first + row)}: column {column} has two entries, expected one. Sum them before you write "
            "the matrix (SciPy: X.sum_duplicates())."
        )


def _damaged(shard: Shard, row: int, found: str) -> DataError:
    return DataError(
        f"{_place(shard, row)}: {found}, expected {shard.n_inputs} columns and {shard.layouts[0].shape[0]} entries in "
        "all, row by row. The file is damaged: copy it again."
    )


def _place(shard: Shard, row: int) -> str:
    return f"file={shown(shard.path)} dataset={shown(shard.dataset)} row={row}"


_READERS: dict[str, Callable[[Block, np.ndarray], None]] = {
    "dense": _dense,
    "columns": _columns,
    "sparse": _sparse,
    "table": _table,
}
