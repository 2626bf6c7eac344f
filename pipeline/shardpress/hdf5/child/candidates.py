"""Functions of the child that find the dataset or group with the rows, or explain why none can be used.

Only short attributes are read. The pickles that pandas writes into some attributes are never read.
"""

import re
from math import prod
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from shardpress.errors import short_list
from shardpress.hdf5.child.find import (
    LISTED,
    Refused,
    as_dataset,
    attribute,
    dtype_of,
    is_plain,
    is_stack,
    link_of,
    listing,
    locate,
    objects,
    outside_storage,
    own_dataset,
)
from shardpress.hdf5.forms import PREFERRED, is_number, numbers_of, parts_of, rows_first, split, text, under
from shardpress.hdf5.limits import MOST_COLUMNS

_MATLAB = b"MATLAB_class"  # attribute that MATLAB writes to every array
_STACKED = "(rows of other files)"
_WRITE_ROWS = "Write them as one array of two dimensions"
_BLOCK = re.compile(r"block[0-9]+_values")  # columns of one dtype in a pandas frame in fixed format

_SPARSE_PARTS = (b"data", b"indices", b"indptr")
_LONGEST_ATTRIBUTE = 64  # bytes
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


class Rows(NamedTuple):
    """The datasets that hold the rows."""

    name: str  # path of the dataset, or of the group with a sparse matrix
    parent: Any  # h5py.h5g.GroupID of the group that contains it
    form: str  # as in `shardpress.hdf5.forms`
    parts: list[tuple[str, h5py.Dataset]]  # paths and datasets
    shape: tuple[int, ...]  # rows first


class _Candidate(NamedTuple):
    """A dataset or group that could hold rows."""

    form: str  # ``none`` if it cannot be used, `_STACKED` if it stacks the rows of other files
    shape: tuple[int, ...] = ()
    dtype: str = ""
    n_rows: int = 0
    n_inputs: int = MOST_COLUMNS  # the default means that the number is unknown

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}" if self.shape else self.form

    @property
    def is_single(self) -> bool:
        """True if the candidate is a single number or record."""
        return self.n_rows == 1 and (self.n_inputs == 1 or self.form == "table")

    def oriented(self, orientation: str | None) -> Self:
        """Return a copy with the numbers of rows and columns for an orientation."""
        if self.form != "dense":
            return self
        n_rows, *others = rows_first(self.shape, orientation)
        return self._replace(n_rows=n_rows, n_inputs=prod(others))


# -- searching ---------------------------------------------------------------------------------------------------


def choose(file: h5py.File, orientation: str | None) -> str:
    """Return ``X`` if the root group has it, or otherwise the path of the only candidate.

    Candidates are numeric datasets of rank 2 or more. In files without such datasets, tables and sparse matrices are
    candidates as well.
    """
    preferred = PREFERRED.encode()
    has_preferred = file.id.links.exists(preferred)
    if has_preferred and (link_of(file.id, preferred) or _candidate(h5py.h5o.open(file.id, preferred))):
        return PREFERRED
    candidates = _candidates_below(file.id)
    likely = _likely_candidates(candidates, orientation)
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise _no_choice({name: candidate for name, candidate in candidates.items() if candidate.form != "none"})
    if has_preferred:
        return PREFERRED
    # No object can be used. Return the one whose refusal is most helpful to the user.
    unfit = [name for name, candidate in candidates.items() if candidate.form == "none"] or list(candidates)
    if len(unfit) == 1:
        return unfit[0]
    raise _no_choice(candidates, listing(file))


def _candidates_below(group: Any) -> dict[str, _Candidate]:
    found = {}
    for name, item in objects(group):
        candidate = _candidate(item)
        if candidate is not None:
            found[name] = candidate
    return found


def _no_choice(candidates: dict[str, _Candidate], contents: str = "") -> Refused:
    found = f"no candidate among {contents}"
    if candidates:
        found = "candidates " + short_list((f"{name} {candidate}" for name, candidate in candidates.items()), LISTED)
    return Refused(
        f"{found}, expected a dataset {PREFERRED!r} or exactly one numeric dataset of rank 2 or more. Choose "
        "one with --dataset."
    )


def _candidate(item: Any) -> _Candidate | None:
    if is_stack(item):  # checked first, because the only array stored in a detector file itself may be a pixel mask
        return _Candidate(_STACKED)
    if isinstance(item, h5py.h5g.GroupID):
        if _is_sparse(item):
            return _Candidate("sparse", n_rows=_n_row_pointers(item) - 1)
        return _Candidate("none") if _is_matlab_sparse(item) else None
    dataset = as_dataset(item)
    if dataset is None or outside_storage(dataset) or dataset.shape is None:
        return None
    stored = dtype_of(dataset)
    if stored is None:
        return None
    if stored.fields is not None:
        return _table_candidate(dataset, stored)
    if dataset.ndim >= 2 and stored.kind in "uifb":
        return _Candidate("dense", dataset.shape, str(stored))
    return None


def _table_candidate(dataset: h5py.Dataset, stored: np.dtype) -> _Candidate:
    records = f"records of {len(stored.fields or ())} fields"
    numbers = numbers_of(stored) if dataset.ndim == 1 else None
    if numbers is None:
        return _Candidate("none", dataset.shape, records, *dataset.shape[:1])
    return _Candidate("table", dataset.shape, records, dataset.shape[0], numbers.n)


def _likely_candidates(candidates: dict[str, _Candidate], orientation: str | None) -> list[str]:
    """Return the candidates that may be the rows: only dense ones, if one of these has several columns.

    A single column is regarded as an extra if its group contains a wider candidate with the same number of rows. Single
    numbers and records are ignored.
    """
    oriented = {name: candidate.oriented(orientation) for name, candidate in candidates.items()}
    wider = {(split(name)[0], candidate.n_rows) for name, candidate in oriented.items() if candidate.n_inputs > 1}
    likely = [name for name, candidate in oriented.items() if _may_be_meant(name, candidate, wider)]
    dense = [name for name in likely if oriented[name].form in ("dense", _STACKED)]
    if any(oriented[name].n_inputs != 1 for name in dense):
        return dense
    return likely


def _may_be_meant(name: str, candidate: _Candidate, wider: set[tuple[str, int]]) -> bool:
    """Return whether a candidate may be the rows, given the groups and numbers of rows of `wider` ones."""
    if candidate.form == "none":
        return False
    group, last = split(name)
    if _BLOCK.fullmatch(last):  # all blocks of a pandas frame are equally likely
        return True
    is_extra = candidate.n_inputs == 1 and (group, candidate.n_rows) in wider
    return not (candidate.is_single or is_extra)


# -- the rows at a path --------------------------------------------------------------------------------------------


def find(file: h5py.File, name: str, orientation: str | None) -> Rows:
    """Return the rows at the path of a dataset, a group with a sparse matrix, or a pandas frame.

    The rows are along the first axis, or along the last axis if the orientation is ``columns``.
    """
    parent, item = locate(file, name)
    if isinstance(item, h5py.h5g.GroupID):
        return _rows_of_group(file, name, parent, item, orientation)
    dataset = as_dataset(item)
    if dataset is None:
        raise Refused("a named datatype, expected a dataset. Choose one with --dataset.", name)
    _check_place(dataset, name)
    if dataset.ndim == 1:
        table = _rows_of_table(dataset, name, parent, orientation)
        if table is not None:
            return table
    _check_rows(dataset, name, orientation)
    form = "columns" if orientation == "columns" else "dense"
    return Rows(name, parent, form, [(name, dataset)], rows_first(dataset.shape, orientation))


def _rows_of_table(rows: h5py.Dataset, name: str, parent: Any, orientation: str | None) -> Rows | None:
    """Return the rows of a one-dimensional dataset, or None if the dataset is not a table."""
    numbers = numbers_of(dtype_of(rows) or np.dtype("V1"))
    if numbers is not None:
        _check_table(rows, name, orientation)
        return Rows(name, parent, "table", [(name, rows)], (*rows.shape, numbers.n))
    if _is_sparse(parent):
        group = split(name)[0]
        raise Refused(f"a part of the sparse matrix {group}, expected the whole matrix. Give --dataset {group}.", name)
    return None


def _rows_of_group(file: h5py.File, name: str, parent: Any, group: Any, orientation: str | None) -> Rows:
    if _is_sparse(group) and parts_of(name):  # not in the root group, which has no name
        return _sparse_rows(parent, group, name, orientation)
    frame = _frame(group)
    if frame is None:
        raise Refused(_no_rows_in_group(group, name), name)
    return find(file, under(name, frame), orientation)


def _check_place(rows: h5py.Dataset, name: str) -> None:
    # Check this before the shape is read, because HDF5 may open source files to determine the shape.
    place = outside_storage(rows)
    if place:
        raise Refused(f"{place}, expected rows in the file itself", name)
    if rows.shape is None:
        raise Refused(
            "an empty dataset without a shape, expected rows of numbers. Choose another dataset with --dataset.", name
        )


def _check_table(rows: h5py.Dataset, name: str, orientation: str | None) -> None:
    if orientation == "columns":
        raise Refused("a table, which cannot be read by columns. Omit --orientation columns.", name)
    if not is_plain(rows, rows.dtype):
        raise Refused(f"{_records_in_words(rows.dtype)} in a type that NumPy does not support. {_WRITE_ROWS}.", name)


def _check_rows(rows: h5py.Dataset, name: str, orientation: str | None) -> None:
    stored = dtype_of(rows)
    _check_shape(rows, stored, name, orientation)
    if stored is None or not is_number(stored):  # types with unused bits are accepted, because HDF5 converts them
        raise Refused(
            f"holds {_values_in_words(stored)}, expected integers, bool, or floating-point numbers that fit into 64 "
            "bits. Convert them to one of these types.",
            name,
        )
    if orientation is None and h5py.h5a.exists(rows.id, _MATLAB):
        raise Refused(_ask_for_orientation(rows.shape), name)


def _check_shape(rows: h5py.Dataset, stored: np.dtype | None, name: str, orientation: str | None) -> None:
    shape = rows.shape
    if stored is not None and stored.fields is not None:
        raise Refused(
            f"{_records_in_words(stored)}, expected numbers of one dtype. {_WRITE_ROWS} (pandas: df.to_numpy()).", name
        )
    if rows.ndim < 2:
        raise Refused(
            f"shape {shape} has rank {rows.ndim}, expected rank 2 or more, rows first. Choose another dataset with "
            "--dataset.",
            name,
        )
    if not prod(rows_first(shape, orientation)[1:]):
        raise Refused(
            f"an empty dataset (shape {shape} has no columns), expected at least one column. Choose another dataset "
            "with --dataset.",
            name,
        )


def _ask_for_orientation(shape: tuple[int, ...]) -> str:
    matlab_shape = " x ".join(map(str, shape[::-1]))
    return (
        f"written by MATLAB, where its size is {matlab_shape}; the file has the axes in reverse order, {shape}. Give "
        f"--orientation columns to read MATLAB's rows as rows ({shape[-1]} rows), or --orientation rows to read "
        f"MATLAB's columns as rows ({shape[0]} rows)."
    )


def _records_in_words(stored: np.dtype) -> str:
    fields = []
    for name, (dtype, *_) in (stored.fields or {}).items():
        sizes = " x ".join(map(str, (*dtype.shape, dtype.base)))
        fields.append(f"{name} {sizes}")
    return f"compound records of {len(fields)} fields ({short_list(fields, LISTED)})"


def _values_in_words(dtype: np.dtype | None) -> str:
    if dtype is None:
        return "a type that NumPy does not support"
    if h5py.check_string_dtype(dtype) is not None or dtype.kind in "SU":
        return "strings"
    return f"dtype {dtype}"


# -- groups --------------------------------------------------------------------------------------------------------


def _frame(group: Any) -> str | None:
    """Return the name of the dataset with the rows of a pandas frame: table format, or fixed format with one dtype."""
    names = [b"table"]
    if not group.links.exists(b"block1_values"):
        names.append(b"block0_values")
    for name in names:
        # Return links as well: `find` refuses them with a message.
        if group.links.exists(name) and (link_of(group, name) or as_dataset(h5py.h5o.open(group, name))):
            return text(name)
    return None


def _no_rows_in_group(group: Any, name: str) -> str:
    candidates = _candidates_below(group)
    listed = short_list((f"{under(name, path)} {candidate}" for path, candidate in candidates.items()), LISTED)
    if group.links.exists(b"block1_values"):
        return (
            f"a pandas frame with several dtypes ({listed}). Each of these blocks has the columns of one dtype. "
            f"{_WRITE_ROWS} (df.to_numpy()), and labels next to it. If you choose one block with --dataset, the "
            "columns of the other blocks, perhaps labels, are left out."
        )
    if _is_matlab_sparse(group):
        return f"a sparse matrix of MATLAB, expected a full matrix. {_WRITE_ROWS} (full(X))."
    if not candidates:
        listed = "no dataset that could hold rows"
    return f"a group, expected a dataset; it holds {listed}"


def _is_matlab_sparse(group: Any) -> bool:
    return all(group.links.exists(part) for part in (b"data", b"ir", b"jc"))


# -- sparse matrices: groups of values, column indices and row pointers -----------------------------------------


def _is_sparse(group: Any) -> bool:
    """Return whether a group has the parts of a sparse matrix, as written by AnnData, h5sparse and others."""
    return all(group.links.exists(part) for part in _SPARSE_PARTS)


def _n_row_pointers(group: Any) -> int:
    """Return the number of row pointers of a sparse matrix, or 0 if they are not stored in the group itself."""
    dataset = own_dataset(group, _SPARSE_PARTS[2])
    if dataset is None or outside_storage(dataset):
        return 0
    return prod(dataset.shape or (0,))


def _sparse_rows(parent: Any, group: Any, name: str, orientation: str | None) -> Rows:
    """Return the rows of a sparse matrix, whose columns are the rows if the orientation is ``columns``."""
    parts = [(under(name, text(part)), _sparse_part(group, part, name)) for part in _SPARSE_PARTS]
    sizes = [dataset.shape[0] for _, dataset in parts]
    shape = _sparse_shape(group, name)
    is_transposed = orientation == "columns"
    by_columns = _is_by_columns(group, shape, n_pointers=sizes[2])
    if by_columns not in (None, is_transposed):
        raise Refused(_WRONG_FORMAT[is_transposed], name)
    n_rows, n_inputs = shape[::-1] if is_transposed else shape
    _check_sparse_sizes(sizes, n_rows, shape, name)
    if by_columns is None and orientation is None:
        raise Refused(_UNKNOWN_FORMAT.format(shape), name)
    if not 1 <= n_inputs <= MOST_COLUMNS:
        raise Refused(
            f"a sparse matrix with {n_inputs} columns, expected 1 to {MOST_COLUMNS}. Write fewer columns.", name
        )
    return Rows(name, parent, "sparse", parts, (n_rows, n_inputs))


def _check_sparse_sizes(sizes: list[int], n_rows: int, shape: tuple[int, int], name: str) -> None:
    n_values, n_indices, n_pointers = sizes
    if n_pointers != n_rows + 1 or n_values != n_indices:
        raise Refused(
            f"a sparse matrix of shape {shape} has inconsistent parts: {n_values} values, {n_indices} indices "
            f"and {n_pointers} row pointers. The file is damaged: write it again.",
            name,
        )


def _sparse_part(group: Any, part: bytes, name: str) -> h5py.Dataset:
    dataset = own_dataset(group, part)
    if dataset is not None and not outside_storage(dataset) and len(dataset.shape or ()) == 1:
        stored = dtype_of(dataset)
        kinds = "iufb" if part == b"data" else "iu"
        if stored is not None and stored.kind in kinds and is_plain(dataset, stored):
            return dataset
    found = link_of(group, part) or "not a plain numeric dataset"
    raise Refused(
        f"a sparse matrix whose part {text(part)} is {found}, expected integers or floating-point numbers. Write the "
        "matrix again.",
        name,
    )


def _sparse_shape(group: Any, name: str) -> tuple[int, int]:
    shape = _written_shape(group)
    # As signed integers, values of 2**63 or more become negative and are refused as well.
    if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape.astype(np.int64) < 0).any():
        raise Refused(
            "a sparse matrix without a shape, expected two integers in an attribute or dataset `shape`. Add the "
            "attribute to the group: group.attrs['shape'] = (n_rows, n_columns).",
            name,
        )
    return int(shape[0]), int(shape[1])


def _written_shape(group: Any) -> np.ndarray | None:
    """Return the stored shape. AnnData and h5sparse write an attribute, and other programs write a dataset."""
    for key in (b"shape", b"h5sparse_shape"):
        shape = attribute(group, key, _is_short)
        if shape is not None:
            return shape
    dataset = own_dataset(group, b"shape")
    if dataset is None or outside_storage(dataset) or dataset.shape != (2,):
        return None
    return dataset[...]


def _is_by_columns(group: Any, shape: tuple[int, int], n_pointers: int) -> bool | None:
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
