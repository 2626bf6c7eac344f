"""Functions of the child that find what pandas has written about the columns of a frame.

pandas keeps lists of names in pickles. They are never opened: a parser lists their texts and numbers.
"""

import pickletools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import h5py
from h5py._objects import ObjectID
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Rejection, attribute, own_dataset, resolve, short_text
from shardpress.hdf5.child.find_columns import names_at
from shardpress.hdf5.child.find_extras import categories_in
from shardpress.hdf5.forms.form import Member, is_number
from shardpress.hdf5.names import under

_VALUES = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1")
_STRUCTURE = ("PROTO", "FRAME", "MARK", "LIST", "EMPTY_LIST", "TUPLE", "TUPLE2", "APPEND", "APPENDS", "STOP")
_KEPT = ("PUT", "BINPUT", "LONG_BINPUT")
_REPEATED = ("GET", "BINGET", "LONG_BINGET")
_MOST_BLOCKS = 10_000
_TIMES = ("datetime64", "timedelta64")


def as_in_frame(group: GroupID, table: Dataset, members: Mapping[str, Member]) -> list[Member]:
    """Return the fields of a table, with the names, meanings and order of the columns if pandas has written it."""
    if not h5py.h5a.exists(table.id, b"index_kind"):
        return list(members.values())
    named = [_as_in_frame(group, table, field, member) for field, member in members.items()]
    columns = [member.one(i) for member in named for i in range(len(member.names))]
    levels = _pickled_names(group, b"levels") or []  # of an index with several levels, which are stored like columns
    columns = [replace(column, is_column=column.is_column and column.names[0] not in levels) for column in columns]
    axis = _pickled_names(group, b"non_index_axes") or []  # the number of the axis, and the names along it
    return _in_order(columns, axis[1:])


def _as_in_frame(group: GroupID, table: Dataset, field: str, member: Member) -> Member:
    """Return a field, which has one or several columns of a frame, with what its attributes say."""
    name = field.encode("utf-8", "surrogateescape")
    names = _pickled_names(table.id, name + b"_kind")
    if names is not None and len(names) == len(member.names):
        member = replace(member, names=tuple(names))
    if short_text(table.id, name + b"_dtype").startswith(_TIMES):
        return replace(member, is_column=False)
    if short_text(table.id, name + b"_meta") != "category":
        return member
    categories = None
    path = under(under("meta", field), "meta/table")
    with suppress(Rejection):  # then the codes are copied without their meaning
        _, values = resolve(group, path)
        if isinstance(values, Dataset):
            categories = tuple(categories_in(values, path, "values"))
    return replace(member, is_column=False, categories=categories)


def _pickled_names(item: ObjectID, name: bytes) -> list[str] | None:
    """Return the texts and numbers in a pickled list in an attribute, in order, or None if it is something else."""
    value = attribute(item, name, lambda shape, dtype: shape == () and dtype.kind == "S")
    if value is None:
        return None
    names: list[str] = []
    last: str | None = None
    kept: dict[object, str | None] = {}
    try:
        for opcode, argument, _ in pickletools.genops(value.item()):
            if opcode.name in _KEPT:
                kept[argument] = last
                continue
            last = kept.get(argument) if opcode.name in _REPEATED else None
            if opcode.name in _VALUES:
                last = str(argument)
            if last is not None:
                names.append(last)
            elif opcode.name not in _STRUCTURE:
                return None
    except ValueError:
        return None
    return names


def is_frame_of_blocks(group: GroupID) -> bool:
    """Return whether a group is a frame in fixed format with several blocks, each of which has columns of one dtype."""
    return group.links.exists(b"block1_values")


def blocks_of(frame: GroupID, path: str) -> tuple[list[tuple[str, Dataset]], list[Member]]:
    """Return the datasets of a frame of several blocks, and its columns in order. Refuse damaged frames.

    Blocks of pickled objects are left out.
    """
    parts: list[tuple[str, Dataset]] = []
    columns: list[Member] = []
    for i in range(_MOST_BLOCKS):
        own_path = under(path, f"block{i}_values")
        if not frame.links.exists(f"block{i}_values".encode()):
            break
        block = own_dataset(frame, f"block{i}_values".encode())
        if block is None or block.place or block.dtype is None or len(block.shape or ()) != 2:
            continue  # objects are in one dimension
        if not is_number(block.dtype):
            continue
        n_rows, n_columns = block.shape or (0, 0)
        if parts and n_rows != (parts[0][1].shape or ())[0]:
            raise Rejection(f"a block of {n_rows} rows in a frame of pandas, expected equal numbers of rows", own_path)
        names = names_at(frame, f"block{i}_items", n_columns, path)
        if names is None:
            raise Rejection("a block without names of its columns, expected strings or integers", own_path)
        is_time = short_text(block.id, b"value_type").startswith(_TIMES)
        column = Member(tuple(names), block.dtype, part=len(parts), is_column=not is_time)
        columns += [column.one(k) for k in range(n_columns)]
        parts.append((own_path, block))
    if not parts:
        raise Rejection("a frame of pandas without numbers, expected blocks of numbers", path)
    axis = own_dataset(frame, b"axis0")
    n_columns = 0 if axis is None or axis.place else axis.size
    return parts, _in_order(columns, names_at(frame, "axis0", n_columns, path) or [])


def _in_order(columns: Sequence[Member], names: Sequence[str]) -> list[Member]:
    """Return single columns in the order of their names; those without a place come first."""
    positions = {name: i for i, name in enumerate(names)}
    return sorted(columns, key=lambda column: positions.get(column.names[0], -1))
