"""Functions of the child that find the dataset or group with the rows, or explain why none can be used.

Only short attributes are read. The pickles that pandas writes into some attributes are never read.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
from h5py.h5f import FileID

from shardpress.errors import short_list
from shardpress.hdf5.child.find import (
    LISTED,
    Dataset,
    Refused,
    attribute,
    is_stack,
    link_of,
    listing,
    locate,
    member,
    names_in,
    objects,
    own_dataset,
    resolve,
)
from shardpress.hdf5.forms import PREFERRED, is_number, items_of, numbers_of, parts_of, rows_first, split, text, under
from shardpress.hdf5.limits import MOST_COLUMNS

_MATLAB = b"MATLAB_class"  # attribute that MATLAB writes to every array
_STACKED = "(rows of other files)"
_WRITE_ROWS = "Write them as one array of two dimensions"

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


@dataclass(frozen=True)
class Rows:
    """The datasets that hold the rows."""

    name: str  # path of the dataset, or of the group with a sparse matrix
    parent: Any  # h5py.h5g.GroupID of the group that contains it
    form: str  # as in `shardpress.hdf5.forms`
    parts: list[tuple[str, Dataset]]  # paths and datasets
    shape: tuple[int, ...]  # rows first

    @cached_property
    def names_around(self) -> list[bytes]:
        """Names in the parent group."""
        return names_in(self.parent)


class _Candidate(NamedTuple):
    """A dataset or group that could hold rows."""

    form: str  # ``none`` if it cannot be used, `_STACKED` if it stacks the rows of other files
    shape: tuple[int, ...] = ()
    kind: object = ""  # of a value, in words
    n_rows: int = 0
    n_inputs: int = MOST_COLUMNS  # the default means that the number is unknown

    def __str__(self) -> str:
        return f"{self.shape} {self.kind}" if self.shape else self.form

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


def choose(root: FileID, orientation: str | None) -> tuple[str, Any, Any]:
    """Return the path, the parent group and the object of ``X`` in the root group, or of the only candidate.

    Candidates are numeric datasets of rank 2 or more. In files without such datasets, tables and sparse matrices are
    candidates as well.
    """
    parent, preferred = resolve(root, PREFERRED)
    if preferred is not None and _candidate(preferred):
        return PREFERRED, parent, preferred
    candidates = _candidates_below(root)
    likely = _likely_candidates(candidates, orientation)
    if len(likely) == 1:
        return likely[0], *locate(root, likely[0])
    if likely:
        raise _no_choice({name: candidate for name, candidate in candidates.items() if candidate.form != "none"})
    if preferred is not None:
        return PREFERRED, parent, preferred
    # No object can be used. Return the one whose refusal is most helpful to the user.
    unfit = [name for name, candidate in candidates.items() if candidate.form == "none"] or list(candidates)
    if len(unfit) == 1:
        return unfit[0], *locate(root, unfit[0])
    raise _no_choice(candidates, listing(root))


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
    if not isinstance(item, Dataset) or item.place or item.shape is None or item.dtype is None:
        return None
    if item.dtype.fields is not None:
        return _table_candidate(item.shape, item.dtype)
    if len(item.shape) >= 2 and item.dtype.kind in "uifb":
        return _Candidate("dense", item.shape, item.dtype)
    return None


def _table_candidate(shape: tuple[int, ...], stored: np.dtype) -> _Candidate:
    records = f"records of {len(stored.fields or ())} fields"
    numbers = numbers_of(stored) if len(shape) == 1 else None
    if numbers is None:
        return _Candidate("none", shape, records, *shape[:1])
    return _Candidate("table", shape, records, shape[0], numbers.n)


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
    is_extra = candidate.n_inputs == 1 and (split(name)[0], candidate.n_rows) in wider
    return not (candidate.is_single or is_extra)


# -- the rows at a path --------------------------------------------------------------------------------------------


def find(name: str, parent: Any, item: Any, orientation: str | None) -> Rows:
    """Return the rows in a dataset, a group with a sparse matrix, or a pandas frame, given the path and the parent.

    The rows are along the first axis, or along the last axis if the orientation is ``columns``.
    """
    if isinstance(item, h5py.h5g.GroupID):
        return _rows_of_group(name, parent, item, orientation)
    if not isinstance(item, Dataset):
        raise Refused("a named datatype, expected a dataset. Choose one with --dataset.", name)
    shape = _shape_in_file(item, name)
    if len(shape) == 1:
        table = _rows_of_table(item, shape, name, parent, orientation)
        if table is not None:
            return table
    _check_rows(item, shape, name, orientation)
    form = "columns" if orientation == "columns" else "dense"
    return Rows(name, parent, form, [(name, item)], rows_first(shape, orientation))


def _rows_of_table(
    rows: Dataset, shape: tuple[int, ...], name: str, parent: Any, orientation: str | None
) -> Rows | None:
    """Return the rows of a one-dimensional dataset, or None if the dataset is not a table."""
    numbers = None if rows.dtype is None else numbers_of(rows.dtype)
    if numbers is not None:
        _check_table(rows, name, orientation)
        return Rows(name, parent, "table", [(name, rows)], (*shape, numbers.n))
    if _is_sparse(parent):
        group = split(name)[0]
        raise Refused(f"a part of the sparse matrix {group}, expected the whole matrix. Give --dataset {group}.", name)
    return None


def _rows_of_group(name: str, parent: Any, group: Any, orientation: str | None) -> Rows:
    if _is_sparse(group) and parts_of(name):  # not in the root group, which has no name
        return _sparse_rows(parent, group, name, orientation)
    frame = _frame(group, orientation)
    if frame is None:
        raise Refused(_no_rows_in_group(group, name), name)
    path = under(name, text(frame))
    link = link_of(group, frame)
    if link:
        raise Refused(f"{path} is {link}, expected an object in the file itself", path)
    return find(path, group, member(group, frame), orientation)


def _shape_in_file(rows: Dataset, name: str) -> tuple[int, ...]:
    if rows.place:
        raise Refused(f"{rows.place}, expected rows in the file itself", name)
    if rows.shape is None:
        raise Refused(
            "an empty dataset without a shape, expected rows of numbers. Choose another dataset with --dataset.", name
        )
    return rows.shape


def _check_table(rows: Dataset, name: str, orientation: str | None) -> None:
    if orientation == "columns":
        raise Refused("a table, which cannot be read by columns. Omit --orientation columns.", name)
    if not rows.is_plain:
        raise Refused(f"{_records_in_words(rows.dtype)} in a type that NumPy does not support. {_WRITE_ROWS}.", name)


def _check_rows(rows: Dataset, shape: tuple[int, ...], name: str, orientation: str | None) -> None:
    stored = rows.dtype
    _check_shape(shape, stored, name, orientation)
    if stored is None or not is_number(stored):  # types with unused bits are accepted, because HDF5 converts them
        raise Refused(
            f"holds {_values_in_words(stored)}, expected integers, bool, or floating-point numbers that fit into 64 "
            "bits. Convert them to one of these types.",
            name,
        )
    if orientation is None and h5py.h5a.exists(rows.id, _MATLAB):
        raise Refused(_ask_for_orientation(shape), name)


def _check_shape(shape: tuple[int, ...], stored: np.dtype | None, name: str, orientation: str | None) -> None:
    if stored is not None and stored.fields is not None:
        raise Refused(
            f"{_records_in_words(stored)}, expected numbers of one dtype. {_WRITE_ROWS} (pandas: df.to_numpy()).", name
        )
    if len(shape) < 2:
        raise Refused(
            f"shape {shape} has rank {len(shape)}, expected rank 2 or more, rows first. Choose another dataset with "
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


def _records_in_words(stored: np.dtype | None) -> str:
    fields = []
    for name, (dtype, *_) in ((stored and stored.fields) or {}).items():
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


def _frame(group: Any, orientation: str | None) -> bytes | None:
    """Return the name of the dataset with the rows of a pandas frame: a table, or the only wide block of columns."""
    for name in (b"table", b"block0_values"):
        if name == b"block0_values" and group.links.exists(b"block1_values"):
            likely = _likely_candidates(_candidates_below(group), orientation)
            return likely[0].encode() if len(likely) == 1 and items_of(likely[0]) else None
        # Return links as well, which are refused with a message.
        if group.links.exists(name) and (link_of(group, name) or isinstance(member(group, name), Dataset)):
            return name
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
    if dataset is None or dataset.place:
        return 0
    return prod(dataset.shape or (0,))


def _sparse_rows(parent: Any, group: Any, name: str, orientation: str | None) -> Rows:
    """Return the rows of a sparse matrix, whose columns are the rows if the orientation is ``columns``."""
    parts = [(under(name, text(part)), _sparse_part(group, part, name)) for part in _SPARSE_PARTS]
    sizes = [dataset.size for _, dataset in parts]
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


def _sparse_part(group: Any, part: bytes, name: str) -> Dataset:
    dataset = own_dataset(group, part)
    if dataset is not None and not dataset.place and len(dataset.shape or ()) == 1:
        kinds = "iufb" if part == b"data" else "iu"
        if dataset.dtype is not None and dataset.dtype.kind in kinds and dataset.is_plain:
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
    if dataset is None or dataset.place or dataset.shape != (2,):
        return None
    return dataset.read()


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
