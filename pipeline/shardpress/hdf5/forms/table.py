"""Rows in one dataset of records: PyTables, pandas in table format, and structured arrays of NumPy.

The fields are adjacent numbers of one dtype. A leading field `index` is the index of a pandas frame, not a column.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Item, Rejection
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.dense import records_in_words
from shardpress.hdf5.forms.form import WRITE_ROWS, Candidate, Form, RowDatasets, is_number
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import MOST_ITEM
from shardpress.hdf5.names import sibling
from shardpress.hdf5.shard import Extra

_INDEX = "index"


class Records(Form):
    """Records of numbers."""

    name = "records"
    words = "records of a table; a first field `index` is not a column"

    def candidate(self, item: Item) -> Candidate | None:
        if not isinstance(item, Dataset) or item.place or item.shape is None:
            return None
        if item.dtype is None or item.dtype.fields is None:
            return None
        records = f"records of {len(item.dtype.fields)} fields"
        numbers = numbers_of(item.dtype) if len(item.shape) == 1 else None
        if numbers is None:
            return Candidate("none", item.shape, records, *item.shape[:1])
        return Candidate(self.name, item.shape, records, item.shape[0], numbers.n)

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if not isinstance(item, Dataset) or item.place or len(item.shape or ()) != 1 or item.dtype is None:
            return None
        numbers = numbers_of(item.dtype)
        if numbers is None:
            return None
        if orientation == "columns":
            raise Rejection("a table, which cannot be read by columns. Omit --orientation columns.", name)
        if item.dtype.hasobject:
            raise Rejection(f"{records_in_words(item.dtype)} of variable length. {WRITE_ROWS}.", name)
        return RowDatasets(name, parent, self, [(name, item)], (item.size, numbers.n), numbers.dtype)

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        (layout,) = layouts
        numbers = numbers_of(layout.dtype)
        assert numbers is not None
        return [Field(layout, numbers.dtype, numbers.n, numbers.offset)]


class _Numbers(NamedTuple):
    """Numbers in each record of a table. All have the same dtype."""

    dtype: np.dtype
    offset: int  # offset of the first number in the record, in bytes
    n: int
    names: tuple[str, ...]  # field names; empty if a field is an array


def numbers_of(record: np.dtype) -> _Numbers | None:
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
    return _Numbers(number, start, n, names)


def index_of_table(rows: RowDatasets, layout: Layout) -> Extra | None:
    """Return a leading field `index` of the records as an extra, if it holds numbers or strings.

    The extra counts as named, so that it is not part of the identity of the rows.
    """
    fields = _fields_in_order(layout.dtype)
    if not isinstance(rows.form, Records) or not _begins_with_index(fields):
        return None
    offset, _, dtype = fields[0]
    if dtype.kind not in "biufS" or not 0 < dtype.itemsize <= MOST_ITEM:
        return None
    return Extra(sibling(rows.name, _INDEX), dtype, Field(layout, dtype, offset=offset), is_named=True)


def _fields_in_order(record: np.dtype) -> list[tuple[int, str, np.dtype]]:
    return sorted((offset, name, dtype) for name, (dtype, offset, *_) in (record.fields or {}).items())


def _begins_with_index(fields: Sequence[tuple[int, str, np.dtype]]) -> bool:
    return len(fields) > 1 and fields[0][1] == _INDEX
