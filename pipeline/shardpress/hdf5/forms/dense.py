"""Rows in one dataset of numbers, along its first or its last axis. The other axes are flattened."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import h5py
import numpy as np
from h5py.h5g import GroupID

from shardpress.base.errors import short_list
from shardpress.hdf5.child.find import LISTED, Dataset, Item, Rejection
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.form import WRITE_ROWS, Candidate, Form, RowDatasets, is_number
from shardpress.hdf5.layout import Layout

_MATLAB = b"MATLAB_class"  # attribute that MATLAB writes to every array
_PAGE = 2**12  # bytes that are read of one column at once
_MOST_READ = 2**23  # bytes that are read of all columns at once


class Dense(Form):
    """Rows along the first axis or, as MATLAB, Fortran, Julia and R write them, along the last one."""

    name = "dense"
    words_if_transposed = "stored by columns: the rows are along the last axis"

    def candidate(self, item: Item) -> Candidate | None:
        if not isinstance(item, Dataset) or item.place or item.dtype is None or item.dtype.kind not in "uifb":
            return None
        if item.shape is None or len(item.shape) < 2:
            return None
        return Candidate(self.name, item.shape, item.dtype)

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if not isinstance(item, Dataset):
            return None
        shape = _shape_of(item, name)
        dtype = item.dtype
        _check_rank(shape, dtype, name)
        is_transposed = orientation == "columns"
        rows = (shape[-1], *shape[:-1]) if is_transposed else shape
        if not prod(rows[1:]):
            raise Rejection(
                f"an empty dataset (shape {shape} has no columns), expected at least one column. Choose another "
                "dataset with --dataset.",
                name,
            )
        dtype = _number_dtype(dtype, name)
        if orientation is None and h5py.h5a.exists(item.id, _MATLAB):
            raise Rejection(_ask_for_orientation(shape), name)
        return RowDatasets(name, parent, self, [(name, item)], rows, dtype, is_transposed)

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        (layout,) = layouts
        return [Field(layout, layout.dtype, prod(rows.shape[1:]), axis=-1 if rows.is_transposed else 0)]

    def chunk_rows(self, fields: Sequence[Field], shape: tuple[int, ...]) -> int:
        (field,) = fields
        if field.axis == 0 or field.layout.chunks:
            return field.chunk_rows
        # A piece of each column is read, and reading a page takes as long as reading a number.
        piece_bytes = min(_PAGE, _MOST_READ // prod(shape[1:]))
        return max(1, piece_bytes // field.dtype.itemsize)


class OneRow(Form):
    """A dataset that is one row as a whole. Only a master file says so."""

    name = "row"
    words = "each a dataset of another file"

    def row(self, name: str, parent: GroupID, item: Dataset) -> RowDatasets:
        """Return a dataset as one row."""
        shape = _shape_of(item, name)
        return RowDatasets(name, parent, self, [(name, item)], (1, *shape), _number_dtype(item.dtype, name))

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        (layout,) = layouts
        if layout.kind == "asked":  # from the child, which reads datasets as they are
            raise Rejection("a row that only libhdf5 can read. Store plain numbers without special filters.", rows.name)
        chunks = (1, *layout.chunks) if layout.chunks else ()
        return [Field(replace(layout, shape=rows.shape, chunks=chunks), layout.dtype, prod(rows.shape[1:]))]


def _number_dtype(dtype: np.dtype | None, name: str) -> np.dtype:
    """Return the dtype of numbers. Refuse other values."""
    if dtype is None or not is_number(dtype):  # types with unused bits are accepted, because HDF5 converts them
        raise Rejection(
            f"holds {_values_in_words(dtype)}, expected integers, bool, or floating-point numbers that fit into 64 "
            "bits. Convert them to one of these types.",
            name,
        )
    return dtype


def _shape_of(item: Dataset, name: str) -> tuple[int, ...]:
    if item.place:
        raise Rejection(f"{item.place}, expected rows in the file itself", name)
    if item.shape is None:
        raise Rejection(
            "an empty dataset without a shape, expected rows of numbers. Choose another dataset with --dataset.", name
        )
    return item.shape


def _check_rank(shape: tuple[int, ...], dtype: np.dtype | None, name: str) -> None:
    if dtype is not None and dtype.fields is not None:
        raise Rejection(
            f"{records_in_words(dtype)}, expected numbers of one dtype. {WRITE_ROWS} (pandas: df.to_numpy()).", name
        )
    if len(shape) < 2:
        raise Rejection(
            f"shape {shape} has rank {len(shape)}, expected rank 2 or more, rows first. Choose another dataset with "
            "--dataset.",
            name,
        )


def _ask_for_orientation(shape: tuple[int, ...]) -> str:
    matlab_shape = " x ".join(map(str, shape[::-1]))
    return (
        f"written by MATLAB, where its size is {matlab_shape}; the file has the axes in reverse order, {shape}. Give "
        f"--orientation columns to read MATLAB's rows as rows ({shape[-1]} rows), or --orientation rows to read "
        f"MATLAB's columns as rows ({shape[0]} rows)."
    )


def records_in_words(record: np.dtype) -> str:
    """Describe the fields of records for a message."""
    fields = []
    for name, (dtype, *_) in (record.fields or {}).items():
        sizes = " x ".join(map(str, (*dtype.shape, dtype.base)))
        fields.append(f"{name} {sizes}")
    return f"compound records of {len(fields)} fields ({short_list(fields, LISTED)})"


def _values_in_words(dtype: np.dtype | None) -> str:
    if dtype is None:
        return "a type that NumPy does not support"
    if h5py.check_string_dtype(dtype) is not None or dtype.kind in "SU":
        return "strings"
    return f"dtype {dtype}"
