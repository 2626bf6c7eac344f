"""Functions of the child that find extras, either next to the rows or at paths that the user has given."""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from shardpress.hdf5.categories import holds_features, read_categories
from shardpress.hdf5.child.find import (
    Refused,
    as_dataset,
    attribute,
    dtype_of,
    link_of,
    listing,
    names_in,
    outside_storage,
    own_dataset,
    reason_of,
    resolve,
)
from shardpress.hdf5.child.layouts import layout_claim
from shardpress.hdf5.forms import (
    A_GROUP,
    CATEGORIES,
    NOT_UTF8,
    ROW_NAMES,
    are_few,
    has_one_for_each_row,
    is_requested,
    is_utf8,
    leave_out,
    misfit,
    normal,
    parts_of,
    row_names_of,
    sibling,
    split,
    text,
)
from shardpress.hdf5.layout import max_decompressed
from shardpress.hdf5.limits import MAX_EXTRAS, MOST_CATEGORIES, MOST_ITEM, MOST_PADDED, MOST_WORDS

_MOST_NUMBER = 2**63  # unsigned categories must be smaller, because they are stored as signed integers
_AT_ONCE = 2**22  # values of a mask to read at a time
_SHORT = 1024  # bytes of an attribute that names a dataset or a scale

_DIMENSION = b"This is a netCDF dimension but not a netCDF variable"


class _Unexpected(Refused):
    """Raised for an object that no user would expect as an extra. An empty message is not reported."""


def find_extras(
    parent: Any, rows: str, shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the extras in the group of the rows at the path `rows`, and the skipped objects as in `forms.leave_out`.

    Append to `arrays` like `layout_claim`.
    """
    extras: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    skipped = (parts_of(rows)[-1], CATEGORIES.encode())
    for name in names_in(parent):
        if name in skipped:
            continue
        try:
            dataset = _extra_in(parent, name, shape)
            if len(extras) == MAX_EXTRAS:
                raise Refused(f"more than {MAX_EXTRAS} extras")
            path = sibling(rows, text(name))
            categories = _categories_of(parent, dataset, name, path)
            layout = layout_claim(dataset, path, arrays)
            extras.append({"name": text(name), "layout": layout, "categories": categories, "is_named": False})
        except Exception as error:
            _leave_out(left_out, name, error)
    return extras, left_out


def _leave_out(left_out: list[list[Any]], name: bytes, error: Exception) -> None:
    """List an unusable dataset with the reason. Raise the error if it is a storage failure or a bug."""
    reason = reason_of(error)
    if reason:
        leave_out(left_out, name, reason, is_missed=not isinstance(error, _Unexpected))


def _extra_in(parent: Any, name: bytes, shape: tuple[int, ...]) -> h5py.Dataset:
    link = link_of(parent, name)
    if link:
        raise Refused(link)
    item = h5py.h5o.open(parent, name)
    dataset = as_dataset(item)
    if dataset is None:
        raise _Unexpected(A_GROUP if isinstance(item, h5py.h5g.GroupID) else "")
    _check(dataset, shape)
    if not is_utf8(name):
        raise Refused(NOT_UTF8)
    return dataset


def _check(dataset: h5py.Dataset, shape: tuple[int, ...]) -> None:
    reason = outside_storage(dataset)  # checked before the shape, because HDF5 may open other files to determine it
    if reason:
        raise Refused(reason)
    if not dataset.shape:
        raise _Unexpected("")
    if is_netcdf_dimension(dataset):
        raise _Unexpected("a netCDF dimension without values")
    if not has_one_for_each_row(dataset.shape, shape[0]):
        reason, is_missed = misfit(dataset.shape, shape)
        if is_missed:
            raise Refused(reason)
        raise _Unexpected(reason)
    _check_dtype(dataset, shape[0])


def _check_dtype(dataset: h5py.Dataset, n_rows: int) -> None:
    stored = dtype_of(dataset)
    if stored is None or (stored.hasobject and h5py.check_string_dtype(stored) is None):
        raise Refused("neither numbers nor strings")
    if stored.subdtype and dataset.shape[0] != n_rows:
        raise Refused("one array for each row, but the rows are not along the first axis")
    if stored.itemsize > MOST_ITEM:
        raise Refused(f"values of {stored.itemsize} bytes, expected at most {MOST_ITEM}")


def is_netcdf_dimension(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset is a netCDF dimension, which only specifies the length of an axis and has no values."""
    return name_of_scale(dataset).startswith(_DIMENSION)


def name_of_scale(dataset: h5py.Dataset) -> bytes:
    """Return the name that netCDF or h5py has written to a dimension scale, perhaps an empty one."""
    name = attribute(dataset.id, b"NAME", _is_short_text)
    return b"" if name is None else bytes(name.item())


def _is_short_text(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return shape == () and dtype.kind == "S" and dtype.itemsize <= _SHORT


# -- extras that the user has given ------------------------------------------------------------------------------


def find_named(
    file: h5py.File, paths: Sequence[str], shape: tuple[int, ...], arrays: list[np.ndarray], used: set[str]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the extras at the given paths, and the paths that cannot be used, in the format of `find_extras`.

    A group with codes and categories, as in AnnData, is one extra, and so is a group with values and a mask that hides
    none of them. Any other group stands for all objects in it that can be extras, except for the datasets at the paths
    `used`. The paths of all included datasets are added to `used`.
    """
    extras: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    groups: list[tuple[str, Any]] = []
    for path in paths:
        parent, item = resolve(file, path)
        if item is None:
            left_out.append([path, f"does not exist; the file holds {listing(file)}", True])
        elif isinstance(item, h5py.h5g.GroupID) and not _is_column(item):
            groups.append((path, item))
        else:
            extras.append(_named_extra(parent, item, path, shape, arrays))
            used.add(normal(extras[-1]["layout"]["name"]))
    for path, group in groups:  # after the paths of single extras, which they can contain
        extras += _extras_of_group(group, path, shape, arrays, used, left_out)
    return extras, left_out


def _is_column(group: Any) -> bool:
    """Return whether a group is one column of AnnData: codes and categories, or values and a mask."""
    return any(
        all(group.links.exists(part) for part in parts) for parts in ((b"codes", b"categories"), (b"values", b"mask"))
    )


def _extras_of_group(
    group: Any, path: str, shape: tuple[int, ...], arrays: list[np.ndarray], used: set[str], left_out: list[list[Any]]
) -> list[dict[str, Any]]:
    """Return the extras in a group that a user has given, except for those `used`. Append to `used` and `left_out`."""
    extras: list[dict[str, Any]] = []
    index = index_of(group)
    for name in names_in(group):
        if name == CATEGORIES.encode():
            continue
        own_path = f"{path}/{text(name)}"
        n_arrays = len(arrays)
        try:
            if len(extras) == MAX_EXTRAS:
                raise Refused(f"more than {MAX_EXTRAS} extras")
            claim = _member(group, name, own_path, shape, arrays)
        except Exception as error:
            _leave_out(left_out, own_path.encode("utf-8", "surrogateescape"), error)
            continue
        if not _is_new(claim, used):
            del arrays[n_arrays:]
            continue
        if text(name) == index:
            claim["name"] = f"{path}/{ROW_NAMES}"
        extras.append(claim)
    if not extras and not any(is_requested(each, [path]) for each in used):
        raise Refused("a group without a dataset with one value for each row, or a categorical", path)
    return extras


def _is_new(claim: dict[str, Any], used: set[str]) -> bool:
    """Return whether the dataset of an extra is not at one of the paths `used`, and add it to these paths."""
    path = normal(claim["layout"]["name"])
    if path in used:
        return False
    used.add(path)
    return True


def _member(group: Any, name: bytes, path: str, shape: tuple[int, ...], arrays: list[np.ndarray]) -> dict[str, Any]:
    link = link_of(group, name)
    if link:
        raise Refused(link)
    if not is_utf8(name):
        raise Refused(NOT_UTF8)
    item = h5py.h5o.open(group, name)
    if isinstance(item, h5py.h5g.GroupID) and not _is_column(item):
        raise _Unexpected(A_GROUP)
    return _named_extra(group, item, path, shape, arrays)


def find_row_names(
    file: h5py.File, rows: str, shape: tuple[int, ...], arrays: list[np.ndarray], used: set[str]
) -> list[dict[str, Any]]:
    """Return the names of the rows in AnnData's group `obs` as an extra, unless they are at one of the paths `used`.

    No user has requested them, so nothing is reported if they cannot be used.
    """
    path = row_names_of(rows)
    n_arrays = len(arrays)
    try:
        _, group = resolve(file, split(path)[0])
        index = index_of(group) if isinstance(group, h5py.h5g.GroupID) else None
        if index is None or "/" in index:
            return []
        claim = _member(group, index.encode("utf-8", "surrogateescape"), sibling(path, index), shape, arrays)
    except Exception as error:
        reason_of(error)  # raises storage failures and bugs
        return []
    if not _is_new(claim, used):
        del arrays[n_arrays:]
        return []
    return [{**claim, "name": path}]


def index_of(group: Any) -> str | None:
    """Return the name of the dataset that is the index of a group."""
    name = attribute(group, b"_index", _is_path)
    if name is not None:
        value = name.item()
        return text(value) if isinstance(value, bytes) else str(value)
    return next((each for each in ("_index", "index") if group.links.exists(each.encode())), None)


def _is_path(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return shape == () and h5py.check_string_dtype(dtype) is not None and dtype.itemsize <= _SHORT


def _named_extra(parent: Any, item: Any, path: str, shape: tuple[int, ...], arrays: list[np.ndarray]) -> dict[str, Any]:
    dataset, where, categories = _values(parent, item, path, shape[0])
    try:
        _check(dataset, shape)
    except Refused as reason:
        raise Refused(f"{str(reason) or 'a single value'}; it cannot be copied", path) from reason
    layout = layout_claim(dataset, where, arrays)
    return {"name": path, "layout": layout, "categories": categories, "is_named": True}


def _values(parent: Any, item: Any, path: str, n_rows: int) -> tuple[h5py.Dataset, str, list[Any] | None]:
    """Return the dataset with one value for each row, the path, and the categories if the values are codes."""
    dataset = as_dataset(item)
    if dataset is not None:
        return dataset, path, _categories_of(parent, dataset, parts_of(path)[-1], path)
    codes = own_dataset(item, b"codes")
    categories = own_dataset(item, b"categories")
    if codes is not None and categories is not None:
        return codes, f"{path}/codes", _categories(categories, f"{path}/categories")
    return masked_values(item, path, n_rows), f"{path}/values", None


def masked_values(group: Any, path: str, n: int) -> h5py.Dataset:
    """Return the `n` values of a group with values and a mask. Refuse the group if the mask hides some values."""
    values = own_dataset(group, b"values")
    mask = own_dataset(group, b"mask")
    if values is None or mask is None:
        raise Refused("a group, expected a dataset, a categorical, or values with a mask", path)
    n_missing = _count_set(mask, f"{path}/mask", n)
    if n_missing:
        raise Refused(
            f"{n_missing} values are missing, expected none. Write a categorical, or numbers with NaN.",
            path,
        )
    return values


def _count_set(mask: h5py.Dataset, path: str, n: int) -> int:
    if outside_storage(mask) or dtype_of(mask) != np.dtype(bool) or mask.shape != (n,):
        raise Refused(f"not a mask, expected {n} values of dtype bool", path)
    layout_claim(mask, path, [])  # refuses unreadable datasets
    n_bytes = h5py.h5i.get_file_id(mask.id).get_filesize()
    if n > max_decompressed(n_bytes):  # in a forged file, all chunks may be the same few bytes
        raise Refused(f"a mask with {n} values, expected fewer in a file of {n_bytes} bytes", path)
    return sum(int(np.count_nonzero(mask[start : start + _AT_ONCE])) for start in range(0, n, _AT_ONCE))


def _categories_of(parent: Any, dataset: h5py.Dataset, name: bytes, path: str) -> list[Any] | None:
    """Return the categories of a dataset, or None if it has none.

    They are in the dataset's attribute in features of shardpress, or in the group `__categories` next to the dataset.
    """
    if dataset.dtype.kind in "iu" and holds_features(parent):
        categories = read_categories(dataset.id)
        if categories is not None:
            _check_size(categories, path)
            return categories
    group = CATEGORIES.encode()
    if not parent.links.exists(group) or link_of(parent, group):
        return None
    neighbour = own_dataset(h5py.h5o.open(parent, group), name)
    if neighbour is None:
        return None
    return _categories(neighbour, sibling(path, f"{CATEGORIES}/{text(name)}"))


def _categories(dataset: h5py.Dataset, path: str) -> list[Any]:
    is_text = _check_categories(dataset, path)
    layout_claim(dataset, path, [])  # refuses unreadable datasets: unwritten, unknown filters, large chunks
    categories = dataset[...].tolist()
    if is_text:
        if sum(map(len, categories)) > MOST_WORDS:
            raise Refused(f"categories with more than {MOST_WORDS} bytes in total, expected fewer", path)
        categories = [text(each) for each in categories]
    elif dataset.dtype.kind == "u" and max(categories, default=0) >= _MOST_NUMBER:
        raise Refused(f"category {max(categories)}, expected numbers below {_MOST_NUMBER}", path)
    _check_size(categories, path)
    return categories


def _check_size(categories: list[Any], path: str) -> None:
    if not are_few(categories):
        raise Refused(f"categories that take more than {MOST_PADDED} bytes when padded to the longest one", path)


def _check_categories(dataset: h5py.Dataset, path: str) -> bool:
    """Refuse a dataset that cannot list categories, or lists too many. Return whether they are strings."""
    place = outside_storage(dataset)
    if place:
        raise Refused(f"{place}, expected categories in the file itself", path)
    stored = dtype_of(dataset)
    is_text = stored is not None and h5py.check_string_dtype(stored) is not None
    if stored is None or dataset.ndim != 1 or not (is_text or stored.kind in "iufb"):
        raise Refused("not a list of categories, expected a one-dimensional dataset of strings or numbers", path)
    if len(dataset) > MOST_CATEGORIES or (not is_text and stored.itemsize > 8) or dataset.nbytes > MOST_PADDED:
        raise Refused(f"{len(dataset)} categories of dtype {stored}, expected at most {MOST_CATEGORIES}", path)
    return is_text
