"""Shards, blocks of rows, and the numbering of rows over all shards. All of these are plain values.

No open file is passed between tasks: a shard holds the location of its rows, and each read opens and closes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from shardpress.base.errors import printable
from shardpress.base.formats import missing_value
from shardpress.hdf5.chunkcache import band_bytes
from shardpress.hdf5.columns import NO_COLUMNS, Columns
from shardpress.hdf5.fields import Field, joined
from shardpress.hdf5.files import Identity
from shardpress.hdf5.limits import MAX_EXTRAS, MOST_LEFT_OUT
from shardpress.hdf5.names import Category, group_of, under
from shardpress.hdf5.seen import Seen

_NO_FILE = Identity(0, 0, 0, 0)  # no file has this identity, so only vetted files can be read

_READ_AS = {
    "bool": "uint8",  # the fastest dtype to copy to a device
    "float16": "float32",  # Theano has no float16 arithmetic on the CPU
}


@dataclass(frozen=True)
class Extra:
    """A dataset with one value for each row, which is copied to the output."""

    name: str  # in the output
    dtype: np.dtype  # of the values as they are read
    # Place of the values in the file, which differs between copies of a file. None if the shard lacks the extra.
    stored: Field | None = field(default=None, compare=False, repr=False)
    fill: Any = None  # for rows without a value, and for values that cannot be read. None: the default of the dtype
    is_named: bool = False  # True if a user has given its path, which can be anywhere in the file
    # Path that a user has given: relative to the group of the rows if it is there, otherwise from the root (/obs/y).
    # Empty if the extra is next to the rows, under its name.
    path: str = ""
    categories: tuple[Category, ...] | None = field(default=None, repr=False)  # meaning of each code
    # Code in the output for each code in the file. None if the values are not codes.
    codes: tuple[int, ...] | None = field(default=None, repr=False)
    mask: str | None = None  # name of the extra that marks the rows with a value, if some shards lack this one
    is_in_master: bool = field(default=False, compare=False, repr=False)  # whether the values are in the master file

    @property
    def resolved_fill(self) -> Any:
        if self.fill is None:
            return missing_value(self.dtype.base)  # the base dtype, if each row has an array
        return self.fill

    @property
    def fill_in_words(self) -> str:
        value = self.resolved_fill
        if isinstance(value, bytes) and not value.strip(b"\0"):
            return "an empty text"
        return str(value)


def code_dtype(categories: tuple[Category, ...]) -> np.dtype:
    """Return the smallest signed dtype for the codes of these categories and for -1."""
    return np.min_scalar_type(-max(1, len(categories)))


@dataclass(frozen=True)
class LeftOut:
    """A dataset next to the rows that is not copied to the output."""

    name: str
    reason: str
    is_missed: bool  # True if a user might expect it in the output


@dataclass(frozen=True)
class RowsElsewhere:
    """Rows of another file that a master file names. All of them are rows of one dataset."""

    file: str  # as the master names it
    dataset: str
    first_row: int = 0
    n_rows: int | None = None  # None for all rows from the first one on
    row_shape: tuple[int, ...] | None = None  # if it is known: then a dataset of this shape is one row


@dataclass(frozen=True)
class Description:
    """The rows and extras of a file, as the child describes them."""

    dataset: str  # path of the dataset with the rows
    shape: tuple[int, ...]  # number of rows, then any number of axes, which are flattened
    stored_dtype: str
    form: str = "dense"  # name of a form in `shardpress.hdf5.forms`
    is_transposed: bool = False  # True if the rows are along the last axis, or are the columns of a sparse matrix
    fields: tuple[Field, ...] = ()  # of the rows; values, column indices and row pointers for sparse rows
    chunk_rows: int = 1  # rows that are cheapest to read together: those of one HDF5 chunk, or 1
    fill_value: float | None = None  # marks missing values, according to the file
    columns: Columns = NO_COLUMNS
    extras: tuple[Extra, ...] = ()  # the name of an extra that a user has named is its path in the file
    left_out: tuple[LeftOut, ...] = ()  # datasets that are not extras
    is_mixed: bool = False  # True for a table whose columns can be chosen by name, because it holds more than a matrix

    @property
    def group(self) -> str:
        """Path of the group of the rows, in which extras are."""
        return group_of(self.dataset, self.form)

    def choosing(self, positions: Sequence[int]) -> Description:
        """Return the description of a table with some of its columns as the rows. The others become extras."""
        singles = [stored.one(i) for stored in self.fields for i in range(stored.n_values)]
        names = self.columns.names
        chosen = [singles[i] for i in positions]
        dtypes = {stored.dtype for stored in chosen}
        others = sorted(set(range(len(singles))).difference(positions))
        paths = {i: under(self.group, names[i]) if self.group else names[i] for i in others}
        known = {extra.name for extra in self.extras}  # some can be given with --include
        extras = [Extra(paths[i], singles[i].dtype, singles[i], is_named=True) for i in others if paths[i] not in known]
        left_out = [LeftOut(extra.name, f"more than {MAX_EXTRAS} extras", False) for extra in extras[MAX_EXTRAS:]]
        return replace(
            self,
            shape=(self.shape[0], len(chosen)),
            stored_dtype=(dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)).str,
            fields=tuple(joined(chosen)),
            columns=self.columns.reordered(np.array(positions)),
            extras=(*self.extras, *extras[:MAX_EXTRAS]),
            left_out=(*self.left_out, *left_out)[:MOST_LEFT_OUT],
        )


@dataclass(frozen=True)
class FileContents:
    """The answer of the child about a file: its rows, or those of other files that it names."""

    rows: Description | list[RowsElsewhere]
    seen: Seen | None = None  # what decides a description; None if it is too much


@dataclass(frozen=True)
class MasterContents:
    """Extras and columns that a master file has for the rows that it names."""

    extras: tuple[Extra, ...]
    left_out: tuple[LeftOut, ...]
    columns: Columns


@dataclass(frozen=True)
class MasterFile:
    """The file that names the rows of a shard, and contains some of their extras."""

    path: str
    identity: Identity
    shift: int  # number of a row in the extras of the master, minus its number in the dataset of the rows


@dataclass(frozen=True)
class Shard:
    """The rows of a file, after the comparison of all files."""

    path: str
    dataset: str
    shape: tuple[int, ...]
    stored_dtype: str
    chunk_rows: int = 1
    extras: tuple[Extra, ...] = ()  # the same in all shards
    identity: Identity = _NO_FILE  # a different file is not read
    columns: Columns = field(default=NO_COLUMNS, compare=False, repr=False)  # of the model
    fill_value: float | None = None
    form: str = "dense"
    is_transposed: bool = False
    fields: tuple[Field, ...] = field(default=(), compare=False, repr=False)
    # Column of the stored rows for each column of the model, (n_inputs,), int32; None if they are the same.
    order: np.ndarray | None = field(default=None, compare=False, repr=False)
    n_stored: int | None = None  # number of columns of the stored rows, if some of them are not read
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)
    first_row: int = 0  # of the rows in their dataset and in the extras, which can have others before and after them
    master: MasterFile | None = None

    def __str__(self) -> str:
        return f"file={printable(self.path)} dataset={printable(self.dataset)}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the names of columns: they may take megabytes, and every task contains a shard."""
        return {**self.__dict__, "columns": NO_COLUMNS}

    @property
    def n_rows(self) -> int:
        return self.shape[0]

    @property
    def group(self) -> str:
        """Path of the group of the rows, in which extras are."""
        return group_of(self.dataset, self.form)

    @property
    def n_inputs(self) -> int:
        """Number of columns, with all axes after the first flattened."""
        return prod(self.shape[1:])

    @property
    def band_bytes(self) -> int:
        """Decompressed bytes of all chunks that hold one row, or 0 for uncompressed rows, records and sparse rows."""
        if self.form != "dense" or not self.fields[0].layout.filters:
            return 0
        return band_bytes(self.fields[0].layout, self.fields[0].axis)

    @property
    def dtype(self) -> np.dtype:
        """Dtype in which rows are read: in native byte order, and supported by devices."""
        return _dtype_read(self.stored_dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        return self.n_inputs * self.dtype.itemsize


@cache  # many shards have the same one
def _dtype_read(stored: str) -> np.dtype:
    name = np.dtype(stored).name
    return np.dtype(_READ_AS.get(name, name))


@dataclass(frozen=True)
class UnreadableShard(Shard):
    """Rows that stay in a result, although their file cannot be used."""


@dataclass(frozen=True)
class ArrayShard(Shard):
    """Rows in memory, which are processed like those of a file."""

    rows: Any = field(default=None, compare=False, repr=False)  # (n_rows, n_inputs): an array or a CSR matrix of SciPy

    def __str__(self) -> str:
        return self.dataset


def array_shard(rows: Any, columns: Columns = NO_COLUMNS) -> ArrayShard:
    """Return rows (n_rows, n_inputs) of any real dtype as a shard, uncopied."""
    return ArrayShard("<array>", "X", rows.shape, rows.dtype.str, columns=columns, rows=rows)


def rows_of(shard: Shard, first: int, n_rows: int) -> Shard:
    """Return a shard with some of the rows of another one."""
    return replace(shard, shape=(n_rows, *shard.shape[1:]), first_row=shard.first_row + first)


@dataclass(frozen=True)
class Block:
    """Rows of one shard, which a task reads at once. A pickled one has 1 kB and 24 bytes a chunk of the shard."""

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        first = self.shard.first_row
        return f"{self.shard} rows={first + self.start}:{first + self.stop}"

    def cut(self, n_rows: int) -> Iterator[Block]:
        for start in range(self.start, self.stop, n_rows):
            yield Block(self.shard, start, min(start + n_rows, self.stop))


# -- all rows ----------------------------------------------------------------------------------------------------


def aligned(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Return the pieces of a range, split at multiples of `size`. The splits do not depend on the start."""
    firsts = [start, *range((start // size + 1) * size, stop, size)]
    return zip(firsts, [*firsts[1:], stop], strict=True)


def block_of(shards: Sequence[Shard], first_rows: np.ndarray, start: int, stop: int) -> Block:
    """Return the block of rows `start` to `stop` of one shard, numbered as in `first_rows`."""
    # Search from the right, to skip shards without rows.
    i = int(np.searchsorted(first_rows, start, side="right")) - 1
    first = int(first_rows[i])
    return Block(shards[i], start - first, stop - first)


def first_rows(shards: Sequence[Shard]) -> np.ndarray:
    """Return the first row of each shard, numbered over all shards, and the total: shape (len(shards) + 1,), int64."""
    return np.cumsum([0, *(shard.n_rows for shard in shards)], dtype=np.int64)
