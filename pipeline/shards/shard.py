"""Shards, the blocks they are cut into, and the numbering of rows over all of them: plain values.

No open file crosses a wall: a shard says where its rows lie, and each read opens and closes the file. Rows that are an
array already are a shard too, so that what is done with files is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from pipeline.columns import NO_COLUMNS, Columns
from pipeline.errors import shown
from pipeline.formats import missing_value
from pipeline.hdf5.chunkcache import band_bytes
from pipeline.hdf5.files import Identity
from pipeline.hdf5.layout import Layout
from pipeline.hdf5.limits import MOST_LEFT_OUT

__all__ = [
    "WIDE_BYTES",
    "Block",
    "LeftOut",
    "Rider",
    "Shard",
    "aligned",
    "array_shard",
    "block_of",
    "blocks",
    "first_rows",
    "is_wide",
    "read_dtype",
    "row_dtype",
    "with_offset",
    "without",
]

_NO_FILE = Identity(0, 0, 0, 0)  # which no file has, so that nothing is read where none was vetted

WIDE_BYTES = 2**22
"""Bytes of an extra's values in one part, above which they are read and written block by block."""
_NUMBER_BYTES = 8
_LONGEST = 400  # characters of a reason

_READ_AS = {
    "bool": "uint8",  # Theano's 8-bit integers are what a device copies fastest
    "float16": "float32",  # Theano has no float16 arithmetic on the CPU
}


@dataclass(frozen=True)
class Rider:
    """A dataset with one value for each row, that rides along.

    Attributes
    ----------
    name : str
        Under which it stands beside the features.
    dtype : dtype
        Of its values as they are read.
    layout : Layout or None
        Where it lies; its name is the path in the file. None where the shard has none like it.
    fill : object
        What stands for every row then, and for a value that cannot be read; None for what is usual for the dtype.
    is_carried : bool
        Whether it rides along because it is named, wherever it lies.
    categories : tuple or None
        Of codes, what each of them stands for.
    codes : tuple of int or None
        Which of them each code in the file is; None where the values are no codes.
    mask : str or None
        The one that tells which rows have a value, where some shards lack it.
    text_bytes : int
        Bytes of a text of any length, on average over the 1024 successive rows that have the longest ones.
    """

    name: str
    dtype: np.dtype
    layout: Layout | None = field(default=None, compare=False, repr=False)  # in another copy it lies elsewhere
    fill: Any = None
    is_carried: bool = False
    categories: tuple[Any, ...] | None = field(default=None, repr=False)
    codes: tuple[int, ...] | None = field(default=None, repr=False)
    mask: str | None = None
    text_bytes: int = field(default=0, compare=False, repr=False)

    @property
    def value_bytes(self) -> int:
        """Bytes of one value: of texts of any length, the average over the rows where they are longest."""
        return self.dtype.itemsize + self.text_bytes

    @property
    def absent(self) -> Any:
        """What stands for a value that is not there."""
        if self.fill is None:
            return missing_value(self.dtype.base)  # the base of an array for each row
        return self.fill

    @property
    def absent_in_words(self) -> str:
        """The same for a line of the log."""
        value = self.absent
        if isinstance(value, bytes) and not value.strip(b"\0"):
            return "empty"
        return str(value)


def is_wide(rider: Rider, n_rows: int) -> bool:
    """Return whether so many values of an extra are read and written block by block. Numbers never are."""
    return rider.value_bytes > _NUMBER_BYTES and n_rows * rider.value_bytes > WIDE_BYTES


@dataclass(frozen=True)
class LeftOut:
    """What lies beside the rows and does not ride along."""

    name: str
    reason: str
    is_missed: bool  # whether somebody may have expected it to


@dataclass(frozen=True)
class Shard:
    """One vetted file of the data set, or an array.

    Attributes
    ----------
    shape : tuple of int
        Of the rows, first their number; the rank may be above 2.
    stored_dtype, dtype : str
        As stored, and as `read` returns it: native byte order, bool as uint8, float16 as float32.
    chunk_rows : int
        How many rows are cheapest to read together: those of one HDF5 chunk, 1 where storage is contiguous.
    identity : Identity
        What the file must still be when it is read.
    columns : Columns
        Names or numbers of the columns as they are read. A pickled shard has none: they may take megabytes, and a
        shard is part of every task.
    order : ndarray of shape (n_inputs,), int32, or None
        For each column as it is read its place in the file; None where that is the same.
    fill_value : float, optional
        What stands for no value, as the file says.
    form : str
        How it holds the rows, as in `pipeline.hdf5.forms`; ``array`` where they are in no file.
    layouts : tuple of Layout
        Of what makes up the rows: one, but for sparse ones.
    rows : ndarray of shape (n_rows, n_inputs), or None
        The rows themselves, where they are in no file.
    offset : ndarray of shape (n_inputs,), float64, or None
        Whole numbers that are subtracted from every row, exactly, when it is read.
    """

    path: str
    dataset: str
    shape: tuple[int, ...]
    stored_dtype: str
    dtype: str
    chunk_rows: int = 1
    riders: tuple[Rider, ...] = ()
    identity: Identity = _NO_FILE
    columns: Columns = field(default=NO_COLUMNS, compare=False, repr=False)
    order: np.ndarray | None = field(default=None, compare=False, repr=False)
    fill_value: float | None = None
    form: str = "dense"
    layouts: tuple[Layout, ...] = field(default=(), compare=False, repr=False)
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)
    rows: np.ndarray | None = field(default=None, compare=False, repr=False)
    offset: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"file={shown(self.path)} dataset={shown(self.dataset)}"

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the description of the columns."""
        return {**self.__dict__, "columns": NO_COLUMNS}

    @property
    def n_rows(self) -> int:
        """Rows."""
        return self.shape[0]

    @property
    def n_inputs(self) -> int:
        """Columns, all axes behind the first flattened."""
        return prod(self.shape[1:])

    @property
    def band_bytes(self) -> int:
        """Bytes of all compressed chunks that one row lies in, decompressed; 0 where there are none."""
        if self.form not in ("dense", "columns") or not self.layouts[0].filters:
            return 0
        return band_bytes(self.layouts[0], -1 if self.form == "columns" else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        return self.n_inputs * np.dtype(self.dtype).itemsize


def without(shard: Shard, reasons: Mapping[str, str]) -> Shard:
    """Return the shard without the extras of these names, which it lists as left out for these reasons."""
    if not reasons:
        return shard
    riders = tuple(rider for rider in shard.riders if rider.name not in reasons)
    left_out = tuple(LeftOut(name, reason[:_LONGEST], True) for name, reason in reasons.items())
    return replace(shard, riders=riders, left_out=(*left_out, *shard.left_out)[:MOST_LEFT_OUT])


def array_shard(rows: np.ndarray) -> Shard:
    """Rows (n_rows, n_inputs) of any real dtype as a shard: none is copied before it is read."""
    return Shard("<array>", "X", rows.shape, rows.dtype.str, read_dtype(rows.dtype), form="array", rows=rows)


def read_dtype(stored: np.dtype) -> str:
    """As what rows of a dtype are read: in native byte order, and not as what no device computes with."""
    return _READ_AS.get(stored.name, stored.name)


def with_offset(shard: Shard, offset: np.ndarray | None) -> Shard:
    """Return a shard whose rows are read with an offset (n_inputs,) subtracted; the same one without an offset."""
    if offset is None:
        return shard
    is_float = np.dtype(shard.dtype).kind == "f"
    return replace(shard, offset=offset, dtype="float64" if is_float else "int64")


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` of one shard: what a task reads at once.

    It holds all that reading takes, in any process: pickled, a kilobyte, and 24 bytes for each chunk of the shard.
    """

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.shard} rows={self.start}:{self.stop}"

    def cut(self, n_rows: int) -> Iterator[Block]:
        """Blocks of `n_rows` rows in their order, the last one shorter."""
        for start in range(self.start, self.stop, n_rows):
            yield Block(self.shard, start, min(start + n_rows, self.stop))


# -- all rows ----------------------------------------------------------------------------------------------------


def row_dtype(shards: Sequence[Shard]) -> np.dtype:
    """The dtype that holds the rows of all shards."""
    # As NumPy promotes: of float32 and int32 float64, which loses nothing.
    return np.result_type(*(np.dtype(shard.dtype) for shard in shards))


def blocks(shards: Sequence[Shard], block_rows: int) -> Iterator[Block]:
    """Cut every shard into blocks of `block_rows` rows, the last of each shard shorter."""
    for shard in shards:
        yield from Block(shard, 0, shard.n_rows).cut(block_rows)


def aligned(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a range wherever a multiple of `size` lies, so that where it is cut does not depend on where it begins."""
    firsts = [start, *range((start // size + 1) * size, stop, size)]
    return zip(firsts, [*firsts[1:], stop], strict=True)


def block_of(shards: Sequence[Shard], first_rows: np.ndarray, start: int, stop: int) -> Block:
    """The block of rows `start` to `stop` as `first_rows` counts them, which lie in one of the shards."""
    i = int(np.searchsorted(first_rows, start, side="right")) - 1  # from the right: past shards that have no rows
    return Block(shards[i], start - int(first_rows[i]), stop - int(first_rows[i]))


def first_rows(shards: Sequence[Shard]) -> np.ndarray:
    """Number of each shard's first row over all shards, and of all rows at the end: shape (len(shards) + 1,), int64."""
    return np.cumsum([0, *(shard.n_rows for shard in shards)], dtype=np.int64)
