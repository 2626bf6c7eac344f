"""The forms in which users hold rows: what datasets make them up, and how these fit together.

``dense``
    One dataset, rows first; whatever lies behind the first axis is flattened per row.
``columns``
    One dataset, rows last, as MATLAB, Fortran, Julia and R write what is a row there.
``sparse``
    Three: values, their columns, and where in these each row begins (CSR, as of AnnData and SciPy).
``table``
    One of compound records, in which equal numbers lie side by side (PyTables, pandas, NumPy's structured arrays).

Plain values only. The child asks here what it has found, and who asked it whether what it says can be.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from pipeline.hdf5.limits import MOST_COLUMNS

__all__ = ["PREFERRED", "Numbers", "is_number", "numbers_of", "rows_of"]

PREFERRED = "X"  # the name under which rows are looked for first
_INDEX = "index"  # what pandas calls the field of a record that is none of the frame's columns


class Numbers(NamedTuple):
    """Where in every record of a table its numbers lie."""

    dtype: np.dtype
    offset: int  # of the first one's bytes
    n: int
    names: tuple[str, ...]  # theirs, where each is a field of its own


def is_number(dtype: np.dtype) -> bool:
    """Whether rows may hold such values: integers, bool, or floating-point numbers of 16, 32 or 64 bits."""
    sizes = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}
    return dtype.itemsize in sizes.get(dtype.kind, ())


def numbers_of(record: np.dtype) -> Numbers | None:
    """The equal numbers that a record consists of, but for a first field called `index`; None if there are others."""
    fields = sorted((offset, name, dtype) for name, (dtype, offset, *_) in (record.fields or {}).items())
    if len(fields) > 1 and fields[0][1] == _INDEX:
        del fields[0]
    if not fields:
        return None
    first, base = fields[0][0], fields[0][2].base
    n, names = 0, []
    for offset, name, dtype in fields:
        its, shape = dtype.base, dtype.shape
        if its != base or not is_number(its) or len(shape) > 1 or offset != first + n * base.itemsize:
            return None
        n += prod(shape)
        names.append(name)
    return Numbers(base, first, n, tuple(names) if n == len(names) else ())


def rows_of(
    form: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype], shape: Sequence[int]
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape, rows first, and dtype of the rows that datasets of these shapes and stored dtypes make up.

    Only sparse rows need their own shape, which no dataset has.

    Raises
    ------
    ValueError
        When they cannot make up rows of that form.
    """
    if form == "sparse":
        return _sparse(shapes, dtypes, shape)
    ((its,), (dtype,)) = shapes, dtypes
    if form == "table":
        numbers = numbers_of(dtype)
        if numbers is None or len(its) != 1:
            raise ValueError("table")
        return (its[0], numbers.n), numbers.dtype
    if form not in ("dense", "columns") or len(its) < 2 or not is_number(dtype):
        raise ValueError("rows")
    rows = its if form == "dense" else (its[-1], *its[:-1])
    if not prod(rows[1:]):
        raise ValueError("columns")
    return rows, dtype


def _sparse(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype], shape: Sequence[int]
) -> tuple[tuple[int, ...], np.dtype]:
    (values, columns, firsts), (dtype, *numbers) = shapes, dtypes
    n_rows, n_inputs = shape
    if type(n_rows) is not int or type(n_inputs) is not int or n_rows < 0:  # JSON's true is none
        raise ValueError("sparse shape")
    if any(len(its) != 1 for its in shapes) or values != columns or firsts != (n_rows + 1,):
        raise ValueError("sparse shapes")
    if not is_number(dtype) or any(its.kind not in "iu" for its in numbers) or not 1 <= n_inputs <= MOST_COLUMNS:
        raise ValueError("sparse rows")
    return (n_rows, n_inputs), dtype
