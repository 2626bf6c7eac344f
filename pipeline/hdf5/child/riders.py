"""Functions of the child that find extras: next to the rows, or wherever a user has named them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from pipeline.errors import some
from pipeline.hdf5.child.find import (
    LISTED,
    Refused,
    as_dataset,
    attribute,
    dtype_of,
    elsewhere,
    held,
    link_of,
    names_in,
    objects,
    reached,
)
from pipeline.hdf5.child.layouts import layout_claim
from pipeline.hdf5.forms import (
    A_GROUP,
    CATEGORIES,
    NOT_UTF8,
    are_few,
    beside,
    is_utf8,
    leave_out,
    misfit,
    parts_of,
    rides,
    text,
)
from pipeline.hdf5.layout import most_unfolded
from pipeline.hdf5.limits import MOST_CATEGORIES, MOST_ITEM, MOST_PADDED, MOST_RIDERS, MOST_WORDS

__all__ = ["find_carried", "find_riders", "is_bare", "n_set"]

_MOST_NUMBER = 2**63  # unsigned categories stay below it, since they are stored with signed ones
_AT_ONCE = 2**22  # values of a mask

_BARE = b"This is a netCDF dimension but not a netCDF variable"

_STORAGE_FAILED = re.compile(r"errno = \d")  # in HDF5's words


class _Unmissed(Refused):
    """A reason to leave out something that no user misses; empty if it need not be reported."""


def find_riders(
    parent: Any, rows: str, shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the extras in the group of the rows, which have that path and shape, and what is left out.

    Arrays are appended to `arrays`, as by `layout_claim`. What is left out has a name, the reason, and whether a user
    may miss it.
    """
    riders: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    for name in names_in(parent):
        if name in (parts_of(rows)[-1], CATEGORIES.encode()):
            continue
        try:
            dataset = _beside(parent, name, shape)
            if len(riders) == MOST_RIDERS:
                raise Refused(f"more than {MOST_RIDERS} ride along already")
            riders.append(_claim(dataset, parent, name, beside(rows, text(name)), arrays))
        except _Unmissed as reason:
            if str(reason):
                leave_out(left_out, name, str(reason), is_missed=False)
        except Refused as reason:
            leave_out(left_out, name, str(reason))
        except MemoryError:
            leave_out(left_out, name, "takes more memory than an input file is allowed")
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            if _STORAGE_FAILED.search(str(error)):
                raise
            leave_out(left_out, name, f"cannot be read: {error}")
    return riders, left_out


def _claim(dataset: h5py.Dataset, parent: Any, name: bytes, path: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    categories = _categories_beside(parent, name, path)
    layout = layout_claim(dataset, path, arrays)
    return {"name": text(name), "layout": layout, "categories": categories, "is_carried": False}


def _beside(parent: Any, name: bytes, shape: tuple[int, ...]) -> h5py.Dataset:
    """Return the dataset of a name in a group if it is an extra that can be written; otherwise refuse it."""
    link = link_of(parent, name)
    if link:
        raise Refused(link)
    item = h5py.h5o.open(parent, name)
    dataset = as_dataset(item)
    if dataset is None:
        raise _Unmissed(A_GROUP if isinstance(item, h5py.h5g.GroupID) else "")
    _check(dataset, shape)
    if not is_utf8(name):
        raise Refused(NOT_UTF8)
    return dataset


def _check(dataset: h5py.Dataset, shape: tuple[int, ...]) -> None:
    """Refuse a dataset that is no extra of rows of that shape."""
    reason = elsewhere(dataset)  # before its shape, for which HDF5 may open other files
    if reason:
        raise Refused(reason)
    if not dataset.shape:
        raise _Unmissed("")
    if is_bare(dataset):
        raise _Unmissed("a dimension of netCDF without values")
    if not rides(dataset.shape, shape[0]):
        reason, is_missed = misfit(dataset.shape, shape)
        if is_missed:
            raise Refused(reason)
        raise _Unmissed(reason)
    stored = dtype_of(dataset)
    if stored is None or (stored.hasobject and h5py.check_string_dtype(stored) is None):
        raise Refused("neither plain nor text")
    if stored.subdtype and dataset.shape[0] != shape[0]:
        raise Refused("an array for each row, but not rows first")
    if stored.itemsize > MOST_ITEM:
        raise Refused(f"values of {stored.itemsize} bytes, expected {MOST_ITEM} at most")


def is_bare(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset only gives the length of an axis: netCDF creates it without values."""

    def fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
        return shape == () and dtype.kind == "S" and dtype.itemsize <= 2 * len(_BARE)

    name = attribute(dataset.id, b"NAME", fits)
    return name is not None and bool(name.item().startswith(_BARE))


# -- named ---------------------------------------------------------------------------------------------------------


def find_carried(
    file: h5py.File, paths: Sequence[str], shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return the extras at some paths, and the paths that do not exist; both as of `find_riders`.

    A group of codes and categories, as in AnnData, is included as its codes; one of values and a mask as its values, if
    the mask hides none.

    Raises
    ------
    Refused
        If something at a path cannot be an extra.
    """
    riders: list[dict[str, Any]] = []
    missing: list[list[Any]] = []
    for path in paths:
        there = reached(file, path, if_link="{link}, cannot ride along")
        if there is None:
            missing.append([path, f"not there; one value for each row have {_carriable(file, shape[0])}", True])
            continue
        dataset, where, categories = _values(*there, path, shape[0])
        try:
            _check(dataset, shape)
        except Refused as reason:
            raise Refused(f"{str(reason) or 'a single value'}, cannot ride along", path) from reason
        layout = layout_claim(dataset, where, arrays)
        riders.append({"name": path, "layout": layout, "categories": categories, "is_carried": True})
    return riders, missing


def _values(parent: Any, item: Any, path: str, n_rows: int) -> tuple[h5py.Dataset, str, list[Any] | None]:
    """Return the dataset with a value for each row, its path, and the categories if its values are codes."""
    dataset = as_dataset(item)
    if dataset is not None:
        return dataset, path, _categories_beside(parent, parts_of(path)[-1], path)
    codes = held(item, b"codes")
    categories = held(item, b"categories")
    if codes is not None and categories is not None:
        return codes, f"{path}/codes", _categories(categories, f"{path}/categories")
    values = held(item, b"values")
    mask = held(item, b"mask")
    if values is None or mask is None:
        raise Refused("a group, expected a dataset with one value for each row, or codes and categories", path)
    n_missing = n_set(mask, f"{path}/mask", n_rows)
    if n_missing:
        raise Refused(
            f"{n_missing} of its values are missing, expected all of them. Write it as a categorical, or as numbers "
            "with NaN.",
            path,
        )
    return values, f"{path}/values", None


def n_set(mask: h5py.Dataset, path: str, n_rows: int) -> int:
    """Return how many entries of a mask of `n_rows` values are set."""
    if elsewhere(mask) or dtype_of(mask) != np.dtype(bool) or mask.shape != (n_rows,):
        raise Refused("no mask, expected one bool for each row", path)
    layout_claim(mask, path, [])  # refuses what may not be read
    n_bytes = h5py.h5i.get_file_id(mask.id).get_filesize()
    if n_rows > most_unfolded(n_bytes):  # its chunks may all be the same few bytes
        raise Refused(f"a mask of {n_rows} values in a file of {n_bytes} bytes", path)
    n = 0
    for start in range(0, n_rows, _AT_ONCE):
        n += int(np.count_nonzero(mask[start : start + _AT_ONCE]))
    return n


def _categories_beside(parent: Any, name: bytes, path: str) -> list[Any] | None:
    """Return the categories of a dataset if the group next to it lists them."""
    group = CATEGORIES.encode()
    if not parent.links.exists(group) or link_of(parent, group):
        return None
    dataset = held(h5py.h5o.open(parent, group), name)
    if dataset is None:
        return None
    return _categories(dataset, beside(path, f"{CATEGORIES}/{text(name)}"))


def _categories(dataset: h5py.Dataset, path: str) -> list[Any]:
    is_text = _check_categories(dataset, path)
    layout_claim(dataset, path, [])  # refuses what may not be read: unwritten, unknown filters, long chunks
    categories = dataset[...].tolist()
    if is_text:
        if sum(map(len, categories)) > MOST_WORDS:
            raise Refused(f"categories of more than {MOST_WORDS} bytes", path)
        categories = [text(each) for each in categories]
    elif dataset.dtype.kind == "u" and max(categories, default=0) >= _MOST_NUMBER:
        raise Refused(f"category {max(categories)}, expected less than {_MOST_NUMBER}", path)
    if not are_few(categories):
        raise Refused(f"categories that take more than {MOST_PADDED} bytes, each as long as the longest", path)
    return categories


def _check_categories(dataset: h5py.Dataset, path: str) -> bool:
    """Refuse a dataset that cannot list categories, and return whether these are texts."""
    place = elsewhere(dataset)
    if place:
        raise Refused(f"{place}, expected categories in the file itself", path)
    stored = dtype_of(dataset)
    is_text = stored is not None and h5py.check_string_dtype(stored) is not None
    if stored is None or dataset.ndim != 1 or not (is_text or stored.kind in "iufb"):
        raise Refused("expected categories: texts or numbers in one dimension", path)
    if len(dataset) > MOST_CATEGORIES or (not is_text and stored.itemsize > 8) or dataset.nbytes > MOST_PADDED:
        raise Refused(f"{len(dataset)} categories of dtype {stored}, expected {MOST_CATEGORIES} at most", path)
    return is_text


def _carriable(file: h5py.File, n_rows: int) -> str:
    """List what could be named: datasets with one value for each row, and groups of codes and categories."""
    names: dict[str, None] = {}
    with suppress(Refused):
        for name, item in objects(file.id):
            dataset = as_dataset(item)
            if dataset is None or elsewhere(dataset) or not dataset.shape or not rides(dataset.shape, n_rows):
                continue
            if not name.endswith("/mask"):
                names[name.removesuffix("/codes").removesuffix("/values")] = None
    return some(names, LISTED)
