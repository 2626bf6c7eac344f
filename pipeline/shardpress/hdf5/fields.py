"""Fields: places in a file with values of each row. Rows are one field, or several side by side; an extra is one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from shardpress.hdf5.files import Identity
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.values import Values, read_values

_PIECE = 2**22  # bytes that are read at once of fields side by side
_PIECE_IN_CACHE = 2**18  # bytes of such rows that are put together at once
_MOST_PIECE = 2**26  # bytes of a piece whose chunks are decoded once only


@dataclass(frozen=True, eq=False)
class Field:
    """One or several values of each row, which a dataset holds side by side."""

    layout: Layout  # of the dataset
    dtype: np.dtype  # of a value, as stored; it can be an array
    n_values: int = 1  # of a row
    offset: int = 0  # of the first value in the bytes of a row of the dataset
    axis: int = 0  # of the rows in the dataset: the first one, or the last one (-1)

    @property
    def stored_row_bytes(self) -> int:
        """Bytes of a row of the dataset, which can have other fields as well."""
        shape = self.layout.shape[1:] if self.axis == 0 else self.layout.shape[:-1]
        return prod(shape) * self.layout.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether the dataset has no other values."""
        n_bytes = self.n_values * self.dtype.itemsize
        return self.layout.dtype.base == self.dtype.base and n_bytes == self.stored_row_bytes

    @property
    def chunk_rows(self) -> int:
        """Number of rows in a chunk, or 1."""
        return self.layout.chunks[self.axis] if self.layout.chunks else 1

    def one(self, i: int) -> "Field":
        """Return a field with one of the values."""
        return replace(self, n_values=1, offset=self.offset + i * self.dtype.itemsize)

    def continues(self, other: "Field") -> bool:
        """Return whether the values follow those of another field in the same dataset."""
        is_same = (self.layout, self.dtype, self.axis) == (other.layout, other.dtype, other.axis)
        return is_same and self.offset == other.offset + other.n_values * other.dtype.itemsize


def joined(fields: Iterable[Field]) -> list[Field]:
    """Return fields in which those that continue each other are one."""
    runs: list[Field] = []
    for field in fields:
        if runs and field.continues(runs[-1]):
            runs[-1] = replace(runs[-1], n_values=runs[-1].n_values + field.n_values)
        else:
            runs.append(field)
    return runs


def read_fields(path: str, identity: Identity, fields: Sequence[Field], start: int, out: np.ndarray) -> None:
    """Read the values of fields side by side into `out`: (n_rows, ...), C order, converted to its dtype.

    `start` is the first row, and `identity` that of the vetted file. The errors are those of `read_values`.
    """
    if not len(out):
        return
    if len(fields) == 1 and fields[0].is_whole:
        read_values(path, identity, [Values(fields[0].layout, start, out, fields[0].axis)])
        return
    columns = out.reshape(len(out), -1)
    datasets = {field.layout.name: field for field in fields}
    n_rows = _rows_at_once(list(datasets.values()))
    first = 0
    while first < len(out):
        last = min(len(out), (start + first) // n_rows * n_rows + n_rows - start)
        rows_of = {name: _memory_of(field, last - first) for name, field in datasets.items()}
        read_values(
            path,
            identity,
            [Values(field.layout, start + first, rows_of[name], field.axis) for name, field in datasets.items()],
        )
        _put_together(fields, rows_of, columns[first:last])
        first = last


def _rows_at_once(fields: Sequence[Field]) -> int:
    """Return a number of rows that fills a piece with whole chunks, so that none of them is read twice."""
    row_bytes = sum(field.stored_row_bytes for field in fields)
    n_rows = max(1, _PIECE // max(1, row_bytes))
    chunk_rows = max(field.chunk_rows for field in fields)
    if chunk_rows * row_bytes > _MOST_PIECE:  # then the cache keeps the chunks
        return n_rows
    return max(1, n_rows // chunk_rows) * chunk_rows


def _memory_of(field: Field, n_rows: int) -> np.ndarray:
    """Return memory for rows of the dataset of a field."""
    layout = field.layout
    shape = layout.shape[1:] if field.axis == 0 else layout.shape[:-1]
    return np.empty((n_rows, *shape, *layout.dtype.shape), layout.dtype.base)


def _put_together(fields: Sequence[Field], rows_of: dict[str, np.ndarray], out: np.ndarray) -> None:
    """Put values side by side: (n_rows, n_columns). Some rows at a time fit into the processor's cache."""
    views = [_view_of(field, rows_of[field.layout.name]) for field in fields]
    n_rows = max(1, _PIECE_IN_CACHE // max(1, out[:1].nbytes))
    with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one
        for start in range(0, len(out), n_rows):
            column = 0
            for values in views:
                out[start : start + n_rows, column : column + values.shape[1]] = values[start : start + n_rows]
                column += values.shape[1]


def _view_of(field: Field, rows: np.ndarray) -> np.ndarray:
    """Return a view of the values of a field, (n_rows, n), in rows of its dataset."""
    number = field.dtype.base
    return np.ndarray(
        shape=(len(rows), field.n_values * prod(field.dtype.shape)),
        dtype=number,
        buffer=rows.reshape(-1).view(np.uint8),
        offset=field.offset,
        strides=(field.stored_row_bytes, number.itemsize),
    )
