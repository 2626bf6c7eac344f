"""Rows in one dataset of records: PyTables, pandas in table format, and structured arrays of NumPy.

Records of one numeric type are a matrix. In others, numbers are columns, and strings, times and categories are extras.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from operator import itemgetter

import h5py
import numpy as np
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Item, Rejection
from shardpress.hdf5.child.pandas import as_in_frame
from shardpress.hdf5.forms.dense import records_in_words
from shardpress.hdf5.forms.form import WRITE_ROWS, Candidate, Form, Member, RowDatasets, is_number, table
from shardpress.hdf5.limits import MOST_ITEM
from shardpress.hdf5.shard import LeftOut

_INDEX = "index"


class Records(Form):
    """Records of numbers, and perhaps of other values."""

    name = "records"
    words = "records of a table"

    def candidate(self, item: Item) -> Candidate | None:
        if not isinstance(item, Dataset) or item.place or item.shape is None:
            return None
        if item.dtype is None or item.dtype.fields is None:
            return None
        records = f"records of {len(item.dtype.fields)} fields"
        members, _ = _members_of(item)
        n_columns = sum(len(member.names) for member in members.values() if member.is_column)
        if len(item.shape) != 1 or not n_columns:
            return Candidate("none", item.shape, records, *item.shape[:1])
        return Candidate("table" if _is_mixed(members) else self.name, item.shape, records, item.shape[0], n_columns)

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        if not isinstance(item, Dataset) or item.place or len(item.shape or ()) != 1:
            return None
        if item.dtype is None or item.dtype.fields is None:
            return None
        if orientation == "columns":
            raise Rejection("a table, which cannot be read by columns. Omit --orientation columns.", name)
        members, left_out = _members_of(item)
        if item.stored_dtype is None or item.stored_dtype.hasobject:
            raise Rejection(f"{records_in_words(item.dtype)}, some of them references. {WRITE_ROWS}.", name)
        rows = table(name, parent, self, [(name, item)], item.size, as_in_frame(parent, item, members))
        return replace(rows, is_mixed=_is_mixed(members), left_out=tuple(left_out))


def _members_of(records: Dataset) -> tuple[dict[str, Member], list[LeftOut]]:
    """Return the usable fields of records, in order. A leading field `index`, as pandas writes it, is an extra."""
    members: dict[str, Member] = {}
    left_out: list[LeftOut] = []
    fields = _fields_in_order(records)
    for i, (offset, name, stored) in enumerate(fields):
        dtype = stored.base
        is_time = dtype.kind in "mM"  # h5py stores times as opaque values
        if is_time:
            dtype = np.dtype(f"{dtype.byteorder}i8")
        is_index = i == 0 and name == _INDEX and len(fields) > 1
        is_text = h5py.check_string_dtype(dtype) is not None and 0 < dtype.itemsize <= MOST_ITEM
        if not prod(stored.shape) or not (is_number(dtype) or is_text):
            left_out.append(LeftOut(name, "neither numbers nor strings", is_missed=not is_index))
            continue
        is_column = not (is_index or is_text or is_time or h5py.check_enum_dtype(dtype))
        members[name] = Member(tuple(_names_of(name, stored)), dtype, offset, is_column=is_column)
    return members, left_out


def _names_of(name: str, stored: np.dtype) -> Iterator[str]:
    """Yield a name for each value of a field, which can be an array."""
    n = prod(stored.shape)
    yield from [name] if n == 1 else (f"{name}_{i}" for i in range(n))


def _is_mixed(members: Mapping[str, Member]) -> bool:
    """Return whether a record, apart from a leading index, is anything but numbers of one dtype."""
    rows = [member for name, member in members.items() if member.is_column or name != _INDEX]
    return len({member.dtype for member in rows}) > 1 or not all(member.is_column for member in rows)


def _fields_in_order(records: Dataset) -> list[tuple[int, str, np.dtype]]:
    """Return the offset, the name, and the dtype in memory of each field, in order of the offsets."""
    assert records.dtype is not None
    assert records.stored_dtype is not None
    return sorted(
        ((offset, name, records.dtype[name]) for name, (_, offset, *_) in (records.stored_dtype.fields or {}).items()),
        key=itemgetter(0),
    )
