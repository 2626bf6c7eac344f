"""Sparse rows: values, column indices and row pointers (CSR), as AnnData, h5sparse and others write them.

A matrix that is stored by columns (CSC) is read as its transpose. Pointers and indices are checked on reading.
"""

from collections.abc import Iterator, Sequence
from math import prod

import h5py
import numpy as np
from h5py.h5g import GroupID

from shardpress.base.errors import DataError
from shardpress.hdf5.child.find import Dataset, Item, Rejection, attribute, link_of, own_dataset
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.form import Candidate, Form, RowDatasets
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import MOST_COLUMNS
from shardpress.hdf5.names import parts_of, split, text, under
from shardpress.hdf5.shard import Block, Shard
from shardpress.hdf5.values import Values, read_values

_PARTS = (b"data", b"indices", b"indptr")
_LONGEST_ATTRIBUTE = 64  # bytes
_ENTRIES = 2**18  # entries of sparse rows that are read at once: 6 MiB with their column indices and positions
_INT64 = np.dtype(np.int64)
_WRONG_FORMAT = {
    False: "a sparse matrix stored by columns (CSC), expected one stored by rows. Write it as CSR "
    "(adata.X = adata.X.tocsr()), or give --orientation columns if its columns are the samples.",
    True: "a sparse matrix stored by rows (CSR), expected one stored by columns (CSC) with --orientation columns. Omit "
    "the option, or write the matrix transposed (adata.T).",
}
_UNKNOWN_FORMAT = (
    "a square sparse matrix of shape {} without a format (CSR or CSC). Give --orientation rows if it is stored by rows "
    "(CSR), or --orientation columns if it is stored by columns (CSC) and these are the samples."
)


class Sparse(Form):
    """Values, column indices and row pointers in a group."""

    name = "sparse"
    words = words_if_transposed = "sparse: values that are not stored are 0"

    def candidate(self, item: Item) -> Candidate | None:
        if not isinstance(item, h5py.h5g.GroupID):
            return None
        if _is_sparse(item):
            return Candidate(self.name, n_rows=_n_row_pointers(item) - 1)
        return Candidate("none") if is_matlab_sparse(item) else None

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if isinstance(item, Dataset) and len(item.shape or ()) == 1 and _is_sparse(parent):
            group = split(name)[0]
            raise Rejection(
                f"a part of the sparse matrix {group}, expected the whole matrix. Give --dataset {group}.", name
            )
        if not isinstance(item, h5py.h5g.GroupID) or not parts_of(name):  # the root group has no name
            return None
        return _rows_of(self, parent, item, name, orientation) if _is_sparse(item) else None

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        return [Field(layout, layout.dtype) for layout in layouts]

    def read(self, block: Block, out: np.ndarray) -> None:
        shard = block.shard
        # Read one more pointer than rows, for the end of the last row.
        pointers = _values(shard, shard.fields[2].layout, block.start, block.stop + 1, _INT64)
        _check_pointers(block, pointers)
        out[...] = 0
        for row, last in _ranges_of_rows(pointers):
            _read_entries(shard, block.start + row, pointers[row : last + 1], out[row:last])

    def chunk_rows(self, fields: Sequence[Field], shape: tuple[int, ...]) -> int:
        """Return about the number of rows whose values are in one chunk."""
        entries = fields[0].layout
        if not entries.chunks:
            return 1
        return max(1, entries.chunks[0] * shape[0] // max(1, entries.shape[0]))


# -- described by the child ----------------------------------------------------------------------------------------


def is_matlab_sparse(group: GroupID) -> bool:
    return all(group.links.exists(part) for part in (b"data", b"ir", b"jc"))


def _is_sparse(group: GroupID) -> bool:
    """Return whether a group has the parts of a sparse matrix, as written by AnnData, h5sparse and others."""
    return all(group.links.exists(part) for part in _PARTS)


def _n_row_pointers(group: GroupID) -> int:
    """Return the number of row pointers of a sparse matrix, or 0 if they are not stored in the group itself."""
    dataset = own_dataset(group, _PARTS[2])
    if dataset is None or dataset.place:
        return 0
    return prod(dataset.shape or (0,))


def _rows_of(form: Form, parent: GroupID, group: GroupID, name: str, orientation: str | None) -> RowDatasets:
    """Return the rows of a sparse matrix, whose columns are the rows if the orientation is ``columns``."""
    parts = [(under(name, text(part)), _part(group, part, name)) for part in _PARTS]
    sizes = [dataset.size for _, dataset in parts]
    shape = _shape_of(group, name)
    is_transposed = orientation == "columns"
    by_columns = _is_by_columns(group, shape, n_pointers=sizes[2])
    if by_columns not in (None, is_transposed):
        raise Rejection(_WRONG_FORMAT[is_transposed], name)
    n_rows, n_inputs = shape[::-1] if is_transposed else shape
    _check_sizes(sizes, n_rows, shape, name)
    if by_columns is None and orientation is None:
        raise Rejection(_UNKNOWN_FORMAT.format(shape), name)
    if not 1 <= n_inputs <= MOST_COLUMNS:
        raise Rejection(
            f"a sparse matrix with {n_inputs} columns, expected 1 to {MOST_COLUMNS}. Write fewer columns.", name
        )
    return RowDatasets(name, parent, form, parts, (n_rows, n_inputs), _dtype_of(parts), is_transposed)


def _dtype_of(parts: list[tuple[str, Dataset]]) -> np.dtype:
    _, values = parts[0]
    assert values.dtype is not None
    return values.dtype


def _check_sizes(sizes: list[int], n_rows: int, shape: tuple[int, int], name: str) -> None:
    n_values, n_indices, n_pointers = sizes
    if n_pointers != n_rows + 1 or n_values != n_indices:
        raise Rejection(
            f"a sparse matrix of shape {shape} has inconsistent parts: {n_values} values, {n_indices} indices "
            f"and {n_pointers} row pointers. The file is damaged: write it again.",
            name,
        )


def _part(group: GroupID, part: bytes, name: str) -> Dataset:
    dataset = own_dataset(group, part)
    if dataset is not None and not dataset.place and len(dataset.shape or ()) == 1:
        kinds = "iufb" if part == b"data" else "iu"
        if dataset.dtype is not None and dataset.dtype.kind in kinds and dataset.is_plain:
            return dataset
    contents = link_of(group, part) or "not a plain numeric dataset"
    raise Rejection(
        f"a sparse matrix whose part {text(part)} is {contents}, expected integers or floating-point numbers. Write "
        "the matrix again.",
        name,
    )


def _shape_of(group: GroupID, name: str) -> tuple[int, int]:
    shape = _written_shape(group)
    # As signed integers, values of 2**63 or more become negative and are refused as well.
    if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape.astype(np.int64) < 0).any():
        raise Rejection(
            "a sparse matrix without a shape, expected two integers in an attribute or dataset `shape`. Add the "
            "attribute to the group: group.attrs['shape'] = (n_rows, n_columns).",
            name,
        )
    return int(shape[0]), int(shape[1])


def _written_shape(group: GroupID) -> np.ndarray | None:
    """Return the stored shape. AnnData and h5sparse write an attribute, and other programs write a dataset."""
    for key in (b"shape", b"h5sparse_shape"):
        shape = attribute(group, key, _is_short)
        if shape is not None:
            return shape
    dataset = own_dataset(group, b"shape")
    if dataset is None or dataset.place or dataset.shape != (2,):
        return None
    return dataset.read()


def _is_by_columns(group: GroupID, shape: tuple[int, int], n_pointers: int) -> bool | None:
    """Return whether a sparse matrix is stored by columns (CSC). Return None if this is unknown."""
    for key in (b"encoding-type", b"h5sparse_format"):
        word = attribute(group, key, _is_short)
        if word is not None:
            return "csc" in str(word)  # "csc" or "csc_matrix", as str or bytes
    n_rows, n_columns = shape
    if n_rows == n_columns == n_pointers - 1:
        return None
    return n_pointers != n_rows + 1 and n_pointers == n_columns + 1


def _is_short(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return 0 < prod(shape) * dtype.itemsize <= _LONGEST_ATTRIBUTE


# -- read by the driver ---------------------------------------------------------------------------------------------


def _values(shard: Shard, layout: Layout, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    values = np.empty(stop - start, dtype)
    read_values(shard.path, shard.identity, [Values(layout, start, values)])
    return values


def _read_entries(shard: Shard, first_row: int, pointers: np.ndarray, out: np.ndarray) -> None:
    """Read the entries of some sparse rows into `out`, which is zero."""
    values, indices, _ = (field.layout for field in shard.fields)
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
    n_entries = shard.fields[0].layout.shape[0]
    wrong = (sizes < 0) | (sizes > shard.n_inputs) | (pointers[:-1] < 0) | (pointers[1:] > n_entries)
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
        f"{shard} row={row}: {problem}, expected {shard.n_inputs} columns and {shard.fields[0].layout.shape[0]} "
        "entries in all rows. The file is damaged: copy it again."
    )
