"""Rules about the structure of a file: names, forms of rows, columns, and extra datasets.

The child process and `plain` follow these rules when they read a file, and `shards.vet` checks their answers against
the same rules. All arguments and results are plain Python and NumPy values.

Rows are stored in one of these forms:

``dense``
    One dataset with the rows along the first axis. The other axes are flattened.
``columns``
    One dataset with the rows along the last axis, as written by MATLAB, Fortran, Julia and R.
``sparse``
    Three datasets: values, column indices and row pointers (CSR, as in AnnData and SciPy).
``table``
    One dataset of compound records. The fields are adjacent numbers of one dtype (PyTables, pandas, NumPy's
    structured arrays).
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from shardpress.hdf5.limits import MOST_CATEGORIES, MOST_ITEM, MOST_PADDED

PREFERRED = "X"
"""Default name of the dataset with the rows."""
_VARIABLES = "var"
"""Name of AnnData's group with one entry for each column. Early versions of AnnData wrote a table."""
OBSERVATIONS = "obs"
"""Name of AnnData's group with one entry for each row."""
ROW_NAMES = "_index"
"""Name of the extra with the names of the rows, from AnnData's group with one entry for each row."""
INDEX_FIELD = "index"
"""Name of the record field that holds the index of a pandas frame, not a column."""
CATEGORIES = "__categories"
"""Name of the group with the categories of coded datasets in the same parent group (early versions of AnnData)."""
A_GROUP = "a group"
NOT_UTF8 = "its name is not UTF-8"

_LAYERS = b"layers"  # AnnData's group of other matrices with the same columns as `X`
_SAME_ROWS = (_LAYERS, b"obsm", b"raw")  # AnnData's groups of other matrices with the same rows as `X`
_BLOCK = "_values"  # suffix of a dataset with a block of a pandas frame in fixed format
_ITEMS = "_items"  # suffix of the dataset with the column names of that block
_NUMBER_SIZES = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}
_COORDINATES = frozenset(
    [
        *("wave", "wavelength", "wavelengths", "lambda", "lam", "loglam", "wavenumber", "wavenumbers", "raman_shift"),
        *("energy", "energies", "frequency", "frequencies", "freq", "mz", "m_z", "ppm", "two_theta", "q"),
    ]
)


# -- names and paths, which may be arbitrary bytes ---------------------------------------------------------------------


def text(name: bytes) -> str:
    """Decode a name to a str that can be encoded again without loss, even if the name is not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def parts_of(path: str) -> list[bytes]:
    return [part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")]


def normal(path: str) -> str:
    """Return a path without redundant slashes and dots, and without a leading slash."""
    return text(b"/".join(parts_of(path)))


def split(path: str) -> tuple[str, str]:
    """Split a path into the group and the last name. The group is empty for the root group."""
    group, _, name = path.rstrip("/").rpartition("/")
    return group, name


def under(group: str, name: str) -> str:
    return f"{group.rstrip('/')}/{name}"


def sibling(dataset: str, name: str) -> str:
    """Return the path of another name in the group of a dataset."""
    group, _ = split(dataset)
    return under(group, name) if group else name


# -- rows --------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """Numbers in each record of a table. All have the same dtype."""

    dtype: np.dtype
    offset: int  # offset of the first number in the record, in bytes
    n: int
    names: tuple[str, ...]  # field names; empty if a field is an array


def is_number(dtype: np.dtype) -> bool:
    """Return whether rows may have this dtype: integer, bool, or floating point with 16, 32 or 64 bits."""
    return dtype.itemsize in _NUMBER_SIZES.get(dtype.kind, ())


def numbers_of(record: np.dtype) -> Numbers | None:
    """Return the numbers of a record, or None unless all fields but a leading `index` are numbers of one dtype."""
    fields = _fields_in_order(record)
    if _begins_with_index(fields):
        del fields[0]
    if not fields:
        return None
    start, _, first = fields[0]
    number = first.base
    n = 0
    for offset, _, dtype in fields:
        is_next = offset == start + n * number.itemsize
        if not is_next or dtype.base != number or dtype.ndim > 1:
            return None
        n += prod(dtype.shape)
    if not is_number(number):
        return None
    names = tuple(name for _, name, _ in fields)
    if len(names) != n:  # array fields do not name single columns
        names = ()
    return Numbers(number, start, n, names)


def _fields_in_order(record: np.dtype) -> list[tuple[int, str, np.dtype]]:
    return sorted((offset, name, dtype) for name, (dtype, offset, *_) in (record.fields or {}).items())


def _begins_with_index(fields: Sequence[tuple[int, str, np.dtype]]) -> bool:
    return len(fields) > 1 and fields[0][1] == INDEX_FIELD


def index_dtype(record: np.dtype) -> np.dtype | None:
    """Return the dtype of a leading field `index`. None if there is none, or if it holds no number or string."""
    fields = _fields_in_order(record)
    if not _begins_with_index(fields):
        return None
    _, _, dtype = fields[0]
    if dtype.kind not in "biufS" or not 0 < dtype.itemsize <= MOST_ITEM:
        return None
    return dtype


def rows_first(shape: tuple[int, ...], orientation: str | None) -> tuple[int, ...]:
    """Return a stored shape with the axis of the rows, which is the last one in the orientation ``columns``, first."""
    return (shape[-1], *shape[:-1]) if orientation == "columns" else shape


# -- names and numbers of the columns ----------------------------------------------------------------------------


def is_coordinate(name: str) -> bool:
    return name.lower() in _COORDINATES


def has_one_for_each_column(shape: tuple[int, ...], n_rows: int, n_inputs: int) -> bool:
    """Return whether a dataset has one value for each column. Return False if it could be one value for each row."""
    return n_rows != n_inputs and prod(shape) == n_inputs and n_inputs in shape


def variables_of(dataset: str) -> str:
    """Return the path of AnnData's `var` for a matrix. For a matrix in `layers`, `var` is next to that group."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] == _LAYERS:
        del groups[-1]
    return text(b"/".join([*groups, _VARIABLES.encode()]))


def row_names_of(dataset: str) -> str:
    """Return the path under which the names of the rows are copied, from AnnData's group `obs` for a matrix."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] in _SAME_ROWS:
        del groups[-1]
    return text(b"/".join([*groups, OBSERVATIONS.encode(), ROW_NAMES.encode()]))


def is_requested(path: str, include: Sequence[str]) -> bool:
    """Return whether a path, or a group that contains it, is one of the paths that a user has given."""
    return any(path == each or path.startswith(f"{each}/") for each in include)


def items_of(dataset: str) -> str | None:
    """Return the path of the column names for a block of a pandas frame in fixed format, or None for other datasets."""
    if not dataset.endswith(_BLOCK):
        return None
    return dataset.removesuffix(_BLOCK) + _ITEMS


# -- extra datasets, with one value for each row -----------------------------------------------------------------


def has_one_for_each_row(shape: tuple[int, ...], n_rows: int) -> bool:
    """Return whether a dataset of this shape has one value for each row.

    The shape is (n_rows,), possibly with axes of length 1 either after the rows, as in labels of Keras, or before the
    rows, as in columns of MATLAB.
    """
    if shape == (n_rows,):
        return True  # check the usual case first, because this function is called twice for each extra of each shard
    is_first = shape[:1] == (n_rows,) and prod(shape[1:]) == 1
    is_last = shape[-1:] == (n_rows,) and prod(shape[:-1]) == 1
    return is_first or is_last


def misfit(shape: tuple[int, ...], rows: tuple[int, ...]) -> tuple[str, bool]:
    """Explain why a dataset does not fit the rows, and return whether a user might expect it in the output.

    One value for each row, but for a different number of rows, is probably a mistake. One value for each column, or a
    single value, is not.
    """
    is_missed = prod(shape[1:]) == 1 and shape[0] not in (1, *rows[1:])
    return f"shape {shape}, expected {rows[:1]}", is_missed


def is_utf8(name: bytes) -> bool:
    """Return whether a name is valid UTF-8, so that the dataset can be written to the output."""
    return name.decode(errors="ignore").encode() == name


def are_few(categories: Sequence[Any]) -> bool:
    """Return whether categories are few and short enough. Each part stores all of them, padded to one length."""
    sizes = [len(each.encode("utf-8", "surrogateescape")) for each in categories if isinstance(each, str)]
    return len(categories) <= MOST_CATEGORIES and len(sizes) * max(sizes, default=0) <= MOST_PADDED
