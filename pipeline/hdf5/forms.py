"""Rules about a file's structure that all its readers share: names, forms of rows, columns, and extra datasets.

The child process and `plain` apply these rules to what they find, and `shards.vet` checks their answers by the same
rules. All values are plain.

Rows are stored in one of these forms:

``dense``
    One dataset, rows first. Further axes are flattened per row.
``columns``
    One dataset, rows last, as MATLAB, Fortran, Julia and R write them.
``sparse``
    Three datasets: values, column indices and row pointers (CSR, as in AnnData and SciPy).
``table``
    One dataset of compound records whose fields are adjacent numbers of one dtype (PyTables, pandas, NumPy's
    structured arrays).
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from pipeline.hdf5.limits import MOST_CATEGORIES, MOST_COLUMNS, MOST_LEFT_OUT, MOST_PADDED

__all__ = [
    "A_GROUP",
    "CATEGORIES",
    "NOT_UTF8",
    "PREFERRED",
    "VARIABLES",
    "Numbers",
    "are_few",
    "has_one_for_each_column",
    "has_one_for_each_row",
    "is_coordinate",
    "is_number",
    "is_utf8",
    "items_of",
    "leave_out",
    "misfit",
    "normal",
    "numbers_of",
    "parts_of",
    "rows_of",
    "sibling",
    "split",
    "text",
    "under",
    "variables_of",
]

PREFERRED = "X"
"""The dataset that is searched for rows first."""
VARIABLES = "var"
"""AnnData's group, or table in early versions, with one entry for each column."""
CATEGORIES = "__categories"
"""The group next to codes that lists what each code means, as earlier versions of AnnData wrote it."""
A_GROUP = "a group"
NOT_UTF8 = "its name is not UTF-8"

_INDEX = "index"  # pandas' field of a record that is not a column of the frame
_LAYERS = b"layers"  # AnnData's group of further matrices with the columns of `X`
_BLOCK = "_values"  # ending of the dataset with a block of a pandas frame of the fixed format
_ITEMS = "_items"  # ending of the dataset with the names of its columns
_NUMBER_SIZES = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}
_COORDINATES = frozenset(
    [
        *("wave", "wavelength", "wavelengths", "lambda", "lam", "loglam", "wavenumber", "wavenumbers", "raman_shift"),
        *("energy", "energies", "frequency", "frequencies", "freq", "mz", "m_z", "ppm", "two_theta", "q"),
    ]
)


# -- names and paths, which may be any bytes ---------------------------------------------------------------------


def text(name: bytes) -> str:
    """Return a name as a str from which its bytes can be restored, even if it is not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def parts_of(path: str) -> list[bytes]:
    """Return the names that a path consists of."""
    return [part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")]


def normal(path: str) -> str:
    """Return the shortest spelling of a path, without a slash at the start."""
    return text(b"/".join(parts_of(path)))


def split(path: str) -> tuple[str, str]:
    """Return the group of a path, which is empty for the root, and its last name."""
    group, _, name = path.rstrip("/").rpartition("/")
    return group, name


def under(group: str, name: str) -> str:
    """Return the path of a name in a group."""
    return f"{group.rstrip('/')}/{name}"


def sibling(dataset: str, name: str) -> str:
    """Return the path of a name in the same group as a dataset."""
    group, _ = split(dataset)
    return under(group, name) if group else name


# -- rows --------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """Numbers in every record of a table; all have the same dtype."""

    dtype: np.dtype
    offset: int  # offset of the first number in bytes
    n: int
    names: tuple[str, ...]  # names of the numbers, if each is a field


def is_number(dtype: np.dtype) -> bool:
    """Return whether rows may hold such values: integers, bool, or floating-point numbers of 16, 32 or 64 bits."""
    return dtype.itemsize in _NUMBER_SIZES.get(dtype.kind, ())


def numbers_of(record: np.dtype) -> Numbers | None:
    """Return the numbers of a record that has only numbers of one dtype after a field `index`; None for others."""
    fields = _fields_in_order(record)
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
    if len(names) != n:  # fields that are arrays name no columns
        names = ()
    return Numbers(number, start, n, names)


def _fields_in_order(record: np.dtype) -> list[tuple[int, str, np.dtype]]:
    """Return offset, name and dtype of a record's fields, without a first field `index`."""
    fields = sorted((offset, name, dtype) for name, (dtype, offset, *_) in (record.fields or {}).items())
    if len(fields) > 1 and fields[0][1] == _INDEX:
        return fields[1:]
    return fields


def rows_of(
    form: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype], shape: Sequence[int]
) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape, rows first, and the dtype of the rows that some datasets make up.

    Parameters
    ----------
    form : str
    shapes, dtypes : sequence
        Shapes and dtypes of the datasets as stored.
    shape : sequence of int
        Shape of sparse rows, which no dataset has. Other forms ignore it.

    Raises
    ------
    ValueError
        If the datasets cannot make up rows of that form.
    """
    if form == "sparse":
        return _sparse_rows(shapes, dtypes, shape)
    (stored_shape,) = shapes
    (dtype,) = dtypes
    if form == "table":
        return _table_rows(stored_shape, dtype)
    return _dense_rows(form, stored_shape, dtype), dtype


def _dense_rows(form: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Return the shape, rows first, of rows that are one dataset of numbers."""
    if form not in ("dense", "columns") or len(shape) < 2 or not is_number(dtype):
        raise ValueError("invalid rows")
    rows = shape
    if form == "columns":
        rows = (shape[-1], *shape[:-1])
    if not prod(rows[1:]):
        raise ValueError("rows without columns")
    return rows


def _table_rows(shape: tuple[int, ...], dtype: np.dtype) -> tuple[tuple[int, ...], np.dtype]:
    numbers = numbers_of(dtype)
    if numbers is None or len(shape) != 1:
        raise ValueError("invalid table")
    return (shape[0], numbers.n), numbers.dtype


def _sparse_rows(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype], shape: Sequence[int]
) -> tuple[tuple[int, ...], np.dtype]:
    values, indices, pointers = shapes
    dtype, *index_dtypes = dtypes
    n_rows, n_inputs = shape
    if type(n_rows) is not int or type(n_inputs) is not int or n_rows < 0:  # excludes JSON's true
        raise ValueError("invalid shape of a sparse matrix")
    if any(len(each) != 1 for each in shapes) or values != indices or pointers != (n_rows + 1,):
        raise ValueError("inconsistent parts of a sparse matrix")
    if not is_number(dtype) or any(each.kind not in "iu" for each in index_dtypes):
        raise ValueError("invalid dtypes of a sparse matrix")
    if not 1 <= n_inputs <= MOST_COLUMNS:
        raise ValueError("invalid number of columns of a sparse matrix")
    return (n_rows, n_inputs), dtype


# -- names and numbers of the columns ----------------------------------------------------------------------------


def is_coordinate(name: str) -> bool:
    """Return whether a dataset of this name holds a physical coordinate, not statistics of the columns."""
    return name.lower() in _COORDINATES


def has_one_for_each_column(shape: tuple[int, ...], n_rows: int, n_inputs: int) -> bool:
    """Return whether a dataset next to the rows holds one value for each column, and not one for each row."""
    return n_rows != n_inputs and prod(shape) == n_inputs and n_inputs in shape


def variables_of(dataset: str) -> str:
    """Return the path of AnnData's variables of a matrix: in the same group, or next to the group `layers`."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] == _LAYERS:
        del groups[-1]
    return text(b"/".join([*groups, VARIABLES.encode()]))


def items_of(dataset: str) -> str | None:
    """Return the path at which pandas stores the columns of a block of the fixed format; None for other datasets."""
    if not dataset.endswith(_BLOCK):
        return None
    return dataset.removesuffix(_BLOCK) + _ITEMS


# -- extra datasets, with one value for each row -----------------------------------------------------------------


def has_one_for_each_row(shape: tuple[int, ...], n_rows: int) -> bool:
    """Return whether a shape has one value for each row: (n_rows,), or with more axes of length 1.

    These axes come after the rows, as in Keras's labels, or before them, as in MATLAB's columns.
    """
    if shape == (n_rows,):
        return True  # the usual case, checked first because this is called twice for each extra of each shard
    is_first = shape[:1] == (n_rows,) and prod(shape[1:]) == 1
    is_last = shape[-1:] == (n_rows,) and prod(shape[:-1]) == 1
    return is_first or is_last


def misfit(shape: tuple[int, ...], rows: tuple[int, ...]) -> tuple[str, bool]:
    """Return why a shape does not fit an extra of rows of that shape, and whether a user may miss it.

    One value for each row of a different number of rows is a mistake. One value for each column, or a single value,
    is not.
    """
    is_missed = prod(shape[1:]) == 1 and shape[0] not in (1, *rows[1:])
    return f"shape {shape}, expected {rows[:1]}", is_missed


def is_utf8(name: bytes) -> bool:
    """Return whether a dataset of this name can be written."""
    return name.decode(errors="ignore").encode() == name


def leave_out(claims: list[list[Any]], name: bytes, reason: str, is_missed: bool = True) -> None:
    """Append a dataset that is left out: its name, the reason, and whether a user may miss it. The list is bounded."""
    if len(claims) < MOST_LEFT_OUT:
        claims.append([text(name), reason, is_missed])


def are_few(categories: Sequence[Any]) -> bool:
    """Return whether categories are few and short enough: each part stores all of them, as texts of one length."""
    sizes = [len(each.encode("utf-8", "surrogateescape")) for each in categories if isinstance(each, str)]
    return len(categories) <= MOST_CATEGORIES and len(sizes) * max(sizes, default=0) <= MOST_PADDED
