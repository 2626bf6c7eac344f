"""Functions of the child that find extras, either next to the rows or at paths that the user has given."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from h5py.h5f import FileID
from h5py.h5g import GroupID

from shardpress.hdf5.categories import holds_features, read_categories
from shardpress.hdf5.child.find import (
    INTERNAL,
    Dataset,
    Item,
    Rejection,
    file_bytes,
    link_of,
    listing,
    member,
    names_in,
    own_dataset,
    reached,
    reason_of,
    resolve,
    short_text,
)
from shardpress.hdf5.child.layouts import layout_of
from shardpress.hdf5.child.places import max_decompressed
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.form import RowDatasets, field_of
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import (
    LONGEST_COLUMN_NAME,
    LONGEST_TEXT,
    MAX_EXTRAS,
    MOST_CATEGORIES,
    MOST_ITEM,
    MOST_LEFT_OUT,
    MOST_PADDED,
    MOST_WORDS,
)
from shardpress.hdf5.names import (
    A_GROUP,
    CATEGORIES,
    NOT_UTF8,
    ROW_NAMES,
    Category,
    are_few,
    has_one_for_each_row,
    is_requested,
    is_utf8,
    items_of,
    misfit,
    normal,
    observations_of,
    parts_of,
    sibling,
    text,
    under,
    variables_of,
)
from shardpress.hdf5.shard import Extra, LeftOut, code_dtype

_MOST_NUMBER = 2**63  # unsigned categories must be smaller, because they are stored as signed integers
_AT_ONCE = 2**22  # values of a mask to read at a time
_DIMENSION = "This is a netCDF dimension but not a netCDF variable"


class _Unexpected(Rejection):
    """Raised for an object that no user would expect as an extra. An empty message is not reported."""


def find_extras(rows: RowDatasets) -> tuple[list[Extra], list[LeftOut]]:
    """Return the extras in the group of the rows, and the objects that are left out."""
    extras: list[Extra] = []
    left_out: list[LeftOut] = []
    parts = () if rows.own_names else (rows.name, *dict(rows.parts))
    skipped = {CATEGORIES.encode(), *rows.own_names, *(parts_of(path)[-1] for path in parts)}
    used = set(map(text, rows.names_around))
    for name in rows.names_around:
        if name in skipped:
            continue
        try:
            dataset = _extra_in(rows.parent, name, rows.shape)
            if len(extras) == MAX_EXTRAS:
                raise Rejection(f"more than {MAX_EXTRAS} extras")
            path = rows.beside(text(name))
            categories = _categories_of(rows.parent, dataset, name, path)
            own_name = _column_of_frame(rows.parent, name, used) or text(name)
            extras.append(_extra_of(dataset, path, rows.shape[0], own_name, categories, is_named=False))
            used.add(own_name)
        except Exception as error:
            _leave_out(left_out, name, error)
    return extras, left_out


def _leave_out(left_out: list[LeftOut], name: bytes, error: Exception) -> None:
    """List an unusable dataset with the reason. Raise the error if it is a storage failure or a bug."""
    reason = reason_of(error)
    if reason and len(left_out) < MOST_LEFT_OUT:
        left_out.append(LeftOut(text(name), reason, is_missed=not isinstance(error, _Unexpected)))


def _extra_of(
    dataset: Dataset, path: str, n_rows: int, name: str, categories: list[Category] | None, is_named: bool
) -> Extra:
    """Return an extra with the values of a dataset at a path. `categories` give the meaning of codes."""
    layout = layout_of(dataset, path)
    # Axes of length 1 can precede the rows, as in MATLAB.
    field = Field(layout, layout.dtype, axis=0 if layout.shape[0] == n_rows else -1)
    return _extra_from(field, name, categories, is_named)


def _extra_from(field: Field, name: str, categories: Sequence[Category] | None, is_named: bool) -> Extra:
    dtype = field.dtype
    if categories is None or dtype.kind not in "iu":
        is_long_text = dtype.kind == "S" and dtype.itemsize > LONGEST_TEXT
        return Extra(name, np.dtype("O") if is_long_text else dtype, field, is_named=is_named)
    codes = tuple(range(len(categories)))
    return Extra(name, code_dtype(codes), field, fill=-1, is_named=is_named, categories=tuple(categories), codes=codes)


def find_members(rows: RowDatasets, layouts: Sequence[Layout], include: Sequence[str]) -> list[Extra]:
    """Return the values of a table that can only be extras, and those that a user has given by paths like extras."""
    requested = set(map(normal, include))
    extras: list[Extra] = []
    singles = (values.one(i) for values in rows.members for i in range(len(values.names)))
    for value in singles:
        (name,) = value.names
        path = rows.beside(name)
        is_extra = not value.is_column or path in requested
        if is_extra and is_usable(name.encode("utf-8", "surrogateescape")) and len(extras) < MAX_EXTRAS:
            extras.append(_extra_from(field_of(value, layouts), path, value.categories, is_named=True))
    return extras


def _extra_in(parent: GroupID, name: bytes, shape: tuple[int, ...]) -> Dataset:
    item = _object_in(parent, name)
    if not isinstance(item, Dataset):
        is_internal = name.startswith(INTERNAL) or h5py.h5a.exists(parent, b"pandas_type")
        raise _Unexpected(A_GROUP if isinstance(item, h5py.h5g.GroupID) and not is_internal else "")
    _check_frame(parent, name, item)
    _check(item, shape)
    if not is_utf8(name):
        raise Rejection(NOT_UTF8)
    return item


def _object_in(group: GroupID, name: bytes) -> Item:
    """Return an object in a group, also through a soft link."""
    item = reached(group, name)
    if item is None:
        raise Rejection(f"{link_of(group, name)}, which does not exist")
    return item


def _check_frame(parent: GroupID, name: bytes, dataset: Dataset) -> None:
    """Refuse names of columns, and pickles, in a pandas frame in fixed format."""
    is_block = name.endswith(b"_values")
    is_about_columns = name == b"axis0" or name.endswith(b"_items")
    if not (is_block or is_about_columns) or not parent.links.exists(b"block0_items"):
        return
    if is_about_columns:
        raise _Unexpected("")
    if dataset.dtype is not None and dataset.dtype.hasobject and not dataset.is_text:
        raise Rejection("pickled objects, which are never opened; write strings next to the rows")


def _column_of_frame(parent: GroupID, block: bytes, used: set[str]) -> str | None:
    """Return the name of the only column of a block of a pandas frame, or None if the name cannot be used."""
    path = items_of(text(block)) or ""
    items = own_dataset(parent, path.encode()) if path else None
    if items is None or items.place or items.shape != (1,) or items.dtype is None:
        return None
    if items.dtype.kind not in "iuS" or items.dtype.itemsize > LONGEST_COLUMN_NAME:
        return None
    layout_of(items, path)  # refuses unreadable datasets
    value = items.read()[0]
    name = value if isinstance(value, bytes) else str(value).encode()
    return text(name) if is_usable(name) and text(name) not in used else None


def is_usable(name: bytes) -> bool:
    """Return whether a name can be that of a dataset in the output."""
    return is_utf8(name) and not set(b"/\0") & set(name) and name not in (b"", b".")


def _check(dataset: Dataset, shape: tuple[int, ...]) -> None:
    if dataset.place:
        raise Rejection(dataset.place)
    if not dataset.shape:
        raise _Unexpected("")
    if is_netcdf_dimension(dataset):
        raise _Unexpected("a netCDF dimension without values")
    if not has_one_for_each_row(dataset.shape, shape[0]):
        reason, is_missed = misfit(dataset.shape, shape)
        if is_missed:
            raise Rejection(reason)
        raise _Unexpected(reason)
    stored = dataset.dtype
    if stored is None or (stored.hasobject and not dataset.is_text):
        raise Rejection("neither numbers nor strings")
    if stored.subdtype and dataset.shape[0] != shape[0]:
        raise Rejection("one array for each row, but the rows are not along the first axis")
    most_bytes = MOST_ITEM if stored.kind == "S" else LONGEST_TEXT
    if stored.itemsize > most_bytes:
        raise Rejection(f"values of {stored.itemsize} bytes, expected at most {most_bytes}")


def is_netcdf_dimension(dataset: Dataset) -> bool:
    """Return whether a dataset is a netCDF dimension, which only specifies the length of an axis and has no values."""
    return name_of_scale(dataset).startswith(_DIMENSION)


def is_dimension_scale(dataset: Dataset) -> bool:
    """Return whether a dataset is a dimension scale: the coordinate of an axis."""
    return short_text(dataset.id, b"CLASS") == "DIMENSION_SCALE"


def name_of_scale(dataset: Dataset) -> str:
    """Return the name that netCDF or h5py has written to a dimension scale, perhaps an empty one."""
    return short_text(dataset.id, b"NAME")


# -- extras that the user has given ------------------------------------------------------------------------------


def find_named(
    root: FileID, paths: Sequence[str], shape: tuple[int, ...], used: set[str]
) -> tuple[list[Extra], list[LeftOut]]:
    """Return the extras at the given paths, and the paths that cannot be used.

    A group with codes and categories, as in AnnData, is one extra, and so is a group with values and a mask that hides
    none of them. Any other group stands for all objects in it that can be extras, except for the datasets at the paths
    `used`. The paths of all included datasets are added to `used`.
    """
    extras: list[Extra] = []
    left_out: list[LeftOut] = []
    groups: list[tuple[str, Any]] = []
    for path in paths:
        parent, item = resolve(root, path)
        if item is None:
            left_out.append(LeftOut(path, f"does not exist; the file holds {listing(root)}", True))
        elif isinstance(item, h5py.h5g.GroupID) and not _is_column(item):
            groups.append((path, item))
        else:
            extras.append(_named_extra(parent, item, path, shape))
            used.add(place_of(extras[-1]))
    for path, group in groups:  # after the paths of single extras, which they can contain
        extras += _extras_of_group(group, path, shape, used, left_out)
    return extras, left_out


def _is_column(group: GroupID) -> bool:
    """Return whether a group is one column of AnnData: codes and categories, or values and a mask."""
    return any(
        all(group.links.exists(part) for part in parts) for parts in ((b"codes", b"categories"), (b"values", b"mask"))
    )


def _extras_of_group(
    group: GroupID, path: str, shape: tuple[int, ...], used: set[str], left_out: list[LeftOut]
) -> list[Extra]:
    """Return the extras in a group that a user has given, except for those `used`. Append to `used` and `left_out`."""
    extras: list[Extra] = []
    index = index_of(group)
    for name in names_in(group):
        if name == CATEGORIES.encode():
            continue
        own_path = f"{path}/{text(name)}"
        try:
            if len(extras) == MAX_EXTRAS:
                raise Rejection(f"more than {MAX_EXTRAS} extras")
            extra = _member(group, name, own_path, shape)
        except Exception as error:
            _leave_out(left_out, own_path.encode("utf-8", "surrogateescape"), error)
            continue
        if place_of(extra) in used:
            continue
        used.add(place_of(extra))
        if text(name) == index:
            extra = replace(extra, name=f"{path}/{ROW_NAMES}")
        extras.append(extra)
    if not extras and not any(is_requested(used_path, [path]) for used_path in used):
        raise Rejection("a group without a dataset with one value for each row, or a categorical", path)
    return extras


def place_of(extra: Extra) -> str:
    """Return the path of the dataset with the values of an extra."""
    return "" if extra.stored is None else normal(extra.stored.layout.name)


def _member(group: GroupID, name: bytes, path: str, shape: tuple[int, ...]) -> Extra:
    if not is_utf8(name):
        raise Rejection(NOT_UTF8)
    item = _object_in(group, name)
    if isinstance(item, h5py.h5g.GroupID) and not _is_column(item):
        raise _Unexpected(A_GROUP)
    return _named_extra(group, item, path, shape)


def find_row_names(root: FileID, rows: RowDatasets, used: set[str]) -> list[Extra]:
    """Return the names of the rows in AnnData's group `obs` as an extra, unless they are at one of the paths `used`.

    If the matrix is transposed, its rows are named in `var`. No user has requested the names, so nothing is reported if
    they cannot be used.
    """
    place = variables_of(rows.name) if rows.is_transposed else observations_of(rows.name)
    try:
        _, group = resolve(root, place)
        index = index_of(group) if isinstance(group, h5py.h5g.GroupID) else None
        if index is None or "/" in index:
            return []
        extra = _member(group, index.encode("utf-8", "surrogateescape"), under(place, index), rows.shape)
    except Exception as error:
        reason_of(error)  # raises storage failures and bugs
        return []
    if place_of(extra) in used:
        return []
    return [replace(extra, name=under(place, ROW_NAMES))]


def index_of(group: GroupID) -> str | None:
    """Return the name of the dataset that is the index of a group."""
    name = short_text(group, b"_index")
    return name or next((index for index in ("_index", "index") if group.links.exists(index.encode())), None)


def _named_extra(parent: GroupID, item: Item, path: str, shape: tuple[int, ...]) -> Extra:
    dataset, where, categories = _values(parent, item, path, shape[0])
    try:
        _check(dataset, shape)
    except Rejection as reason:
        raise Rejection(f"{str(reason) or 'a single value'}; it cannot be copied", path) from reason
    return _extra_of(dataset, where, shape[0], path, categories, is_named=True)


def _values(parent: GroupID, item: Item, path: str, n_rows: int) -> tuple[Dataset, str, list[Category] | None]:
    """Return the dataset with one value for each row, the path, and the categories if the values are codes."""
    if isinstance(item, Dataset):
        return item, path, _categories_of(parent, item, parts_of(path)[-1], path)
    codes = own_dataset(item, b"codes")
    categories = own_dataset(item, b"categories")
    if codes is not None and categories is not None:
        return codes, f"{path}/codes", categories_in(categories, f"{path}/categories")
    return masked_values(item, path, n_rows), f"{path}/values", None


def masked_values(group: GroupID, path: str, n: int) -> Dataset:
    """Return the `n` values of a group with values and a mask. Refuse the group if the mask hides some values."""
    values = own_dataset(group, b"values")
    mask = own_dataset(group, b"mask")
    if values is None or mask is None:
        raise Rejection("a group, expected a dataset, a categorical, or values with a mask", path)
    n_missing = _count_set(mask, f"{path}/mask", n)
    if n_missing:
        raise Rejection(
            f"{n_missing} values are missing, expected none. Write a categorical, or numbers with NaN.",
            path,
        )
    return values


def _count_set(mask: Dataset, path: str, n: int) -> int:
    if mask.place or mask.dtype != np.dtype(bool) or mask.shape != (n,):
        raise Rejection(f"not a mask, expected {n} values of dtype bool", path)
    layout_of(mask, path)  # refuses unreadable datasets
    n_bytes = file_bytes(mask.id)
    if n > max_decompressed(n_bytes):  # in a forged file, all chunks may be the same few bytes
        raise Rejection(f"a mask with {n} values, expected fewer in a file of {n_bytes} bytes", path)
    values = h5py.Dataset(mask.id)
    return sum(int(np.count_nonzero(values[start : start + _AT_ONCE])) for start in range(0, n, _AT_ONCE))


def _categories_of(parent: GroupID, dataset: Dataset, name: bytes, path: str) -> list[Category] | None:
    """Return the categories of a dataset, or None if it has none.

    They are in the dataset's attribute in features of shardpress, or in the group `__categories` next to the dataset.
    """
    if dataset.dtype is not None and dataset.dtype.kind in "iu" and holds_features(parent):
        categories = read_categories(dataset.id)
        if categories is not None:
            _check_size(categories, path)
            return categories
    group = CATEGORIES.encode()
    if not parent.links.exists(group) or link_of(parent, group):
        return None
    neighbour = own_dataset(member(parent, group), name)
    if neighbour is None:
        return None
    return categories_in(neighbour, sibling(path, f"{CATEGORIES}/{text(name)}"))


def categories_in(dataset: Dataset, path: str, member: str | None = None) -> list[Category]:
    """Return the categories that a dataset, or a member of its records, lists. Refuse others."""
    stored = _check_categories(dataset, path, member)
    layout_of(dataset, path)  # refuses unreadable datasets: unwritten, unknown filters, large chunks
    values = (dataset.read() if member is None else dataset.read()[member]).reshape(-1).tolist()
    if stored.kind in "SO":
        if sum(map(len, values)) > MOST_WORDS:
            raise Rejection(f"categories with more than {MOST_WORDS} bytes in total, expected fewer", path)
        values = list(map(text, values))
    elif stored.kind == "u" and max(values, default=0) >= _MOST_NUMBER:
        raise Rejection(f"category {max(values)}, expected numbers below {_MOST_NUMBER}", path)
    categories: list[Category] = values
    _check_size(categories, path)
    return categories


def _check_size(categories: list[Category], path: str) -> None:
    if not are_few(categories):
        raise Rejection(f"categories that take more than {MOST_PADDED} bytes when padded to the longest one", path)


def _check_categories(dataset: Dataset, path: str, member: str | None) -> np.dtype:
    """Refuse a dataset that cannot list categories, or lists too many. Return the dtype of a category."""
    if dataset.place:
        raise Rejection(f"{dataset.place}, expected categories in the file itself", path)
    stored = dataset.dtype
    if member is not None and stored is not None:
        stored = stored[member].base if member in (stored.names or ()) else None
    is_text = stored is not None and h5py.check_string_dtype(stored) is not None
    if stored is None or len(dataset.shape or ()) != 1 or not (is_text or stored.kind in "iufb"):
        raise Rejection("not a list of categories, expected a one-dimensional dataset of strings or numbers", path)
    is_wide = not is_text and stored.itemsize > 8
    if dataset.size > MOST_CATEGORIES or is_wide or dataset.n_bytes > MOST_PADDED:
        raise Rejection(f"{dataset.size} categories of dtype {stored}, expected at most {MOST_CATEGORIES}", path)
    return stored
