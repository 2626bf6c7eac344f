"""What the child finds riding along: beside the rows, or wherever else it is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.find import Refused, dtype_of, elsewhere, link_of, names_in, objects, some
from pipeline.hdf5.limits import MOST_CATEGORIES, MOST_ITEM, MOST_PADDED, MOST_RIDERS, MOST_WORDS
from pipeline.hdf5.paths import beside, parts_of, text
from pipeline.hdf5.riders import A_GROUP, CATEGORIES, NOT_UTF8, LeftOut, are_few, is_utf8, misfit, rides

__all__ = ["find_carried", "find_riders"]

_MOST_NUMBER = 2**63  # which no category that is a number reaches, since signed ones stand beside it
_AT_ONCE = 2**22  # values of a mask

_BARE = b"This is a netCDF dimension but not a netCDF variable"
Layouts = Callable[[h5py.Dataset, str, list[np.ndarray]], dict[str, Any]]  # says where a dataset lies; `describe`'s own

_NOT_THE_RIDERS = re.compile(r"errno = \d|allocat", re.IGNORECASE)  # HDF5's words when the storage or memory fails


def find_riders(
    parent: Any, rows: str, shape: tuple[int, ...], layout: Layouts, arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], LeftOut]:
    """What rides along of that which lies beside the rows, and what does not.

    Parameters
    ----------
    parent : h5py.h5g.GroupID
        That holds the rows.
    rows : str
        Their path.
    shape : tuple of int
        Theirs.
    layout : callable
    arrays : list of ndarray
        Where it puts what is no plain value.
    """
    riding: list[dict[str, Any]] = []
    left_out = LeftOut()
    for name in names_in(parent):
        if name in (parts_of(rows)[-1], CATEGORIES.encode()):
            continue
        try:
            found = _rider(parent, name, shape)
            if isinstance(found, h5py.Dataset) and not is_utf8(name):
                found = NOT_UTF8, True
            if isinstance(found, tuple):
                left_out.note(name, *found)
            elif found is not None and len(riding) == MOST_RIDERS:
                left_out.note(name, f"more than {MOST_RIDERS} ride along already")
            elif found is not None:
                path = beside(rows, text(name))
                categories = _categories_beside(parent, name, path, layout)
                told = {"name": text(name), "layout": layout(found, path, arrays)}
                riding.append({**told, "categories": categories, "is_carried": False})
        except Refused as reason:
            left_out.note(name, str(reason))
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            if _NOT_THE_RIDERS.search(str(error)):
                raise
            left_out.note(name, f"cannot be read: {error}")
    return riding, left_out


def _rider(parent: Any, name: bytes, shape: tuple[int, ...]) -> h5py.Dataset | tuple[str, bool] | None:
    """The dataset if it rides along; else why it does not, and whether that is missed; None where nobody asks."""
    link = link_of(parent, name)
    if link:
        return link, True
    item = h5py.h5o.open(parent, name)
    if not isinstance(item, h5py.h5d.DatasetID):
        return (A_GROUP, False) if isinstance(item, h5py.h5g.GroupID) else None
    return _judged(h5py.Dataset(item), shape)


def _judged(found: h5py.Dataset, shape: tuple[int, ...]) -> h5py.Dataset | tuple[str, bool] | None:
    reason = elsewhere(found)
    if reason:
        return reason, True
    if not found.shape:
        return None
    if _is_bare(found):
        return "a dimension of netCDF without values", False
    if not rides(found.shape, shape[0]):
        return misfit(found.shape, shape)
    stored = dtype_of(found)
    if stored is None or (stored.hasobject and h5py.check_string_dtype(stored) is None):
        return "neither plain nor text", True
    if stored.subdtype and found.shape[0] != shape[0]:
        return "an array for each row, but not rows first", True
    return (f"values of {stored.itemsize} bytes, expected {MOST_ITEM} at most", True) if _is_long(stored) else found


def _is_long(dtype: np.dtype) -> bool:
    return dtype.itemsize > MOST_ITEM


def _is_bare(found: h5py.Dataset) -> bool:
    """Whether it only says how long an axis is: netCDF makes such a dataset, and never writes it."""
    if not h5py.h5a.exists(found.id, b"NAME"):
        return False
    attribute = h5py.h5a.open(found.id, b"NAME")
    if attribute.shape != () or attribute.dtype.kind != "S" or attribute.dtype.itemsize > 2 * len(_BARE):
        return False
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return bool(value.item().startswith(_BARE))


# -- named ---------------------------------------------------------------------------------------------------------


def find_carried(
    file: h5py.File, paths: Sequence[str], shape: tuple[int, ...], layout: Layouts, arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What rides along because it is named, wherever it lies; and which names are not there.

    Parameters
    ----------
    file : h5py.File
    paths : sequence of str
        From the root. A group of codes and categories, as AnnData has it, rides along as its codes; one of values and
        a mask as its values, if the mask hides none.
    shape, layout, arrays
        As for `find_riders`.

    Raises
    ------
    Refused
        When something named is there and cannot ride along.
    """
    riding: list[dict[str, Any]] = []
    missing: list[list[Any]] = []
    for path in paths:
        there = _at(file, path)
        if there is None:
            missing.append([path, f"not there; one value for each row have {_carriable(file, shape[0])}", True])
            continue
        held, where, categories = _values(*there, path, layout)
        found = _judged(held, shape)
        if not isinstance(found, h5py.Dataset):
            raise Refused(f"{found[0] if found else 'a single value'}, cannot ride along", path)
        told = {"name": path, "layout": layout(found, where, arrays)}
        riding.append({**told, "categories": categories, "is_carried": True})
    return riding, missing


def _at(file: h5py.File, path: str) -> tuple[Any, bytes, Any] | None:
    """The group that holds what lies at a path, its name there, and the object; None where there is none."""
    here, parent, parts = file.id, file.id, parts_of(path)
    for part in parts:
        if not isinstance(here, h5py.h5g.GroupID) or not here.links.exists(part):
            return None
        link = link_of(here, part)
        if link:
            raise Refused(f"{link}, cannot ride along", path)
        parent, here = here, h5py.h5o.open(here, part)
    return parent, parts[-1], here


def _values(
    parent: Any, name: bytes, item: Any, path: str, layout: Layouts
) -> tuple[h5py.Dataset, str, list[Any] | None]:
    """The dataset with a value for each row, its path, and what its values stand for, if they are codes."""
    if isinstance(item, h5py.h5d.DatasetID):
        return h5py.Dataset(item), path, _categories_beside(parent, name, path, layout)
    codes, categories = _held(item, b"codes"), _held(item, b"categories")
    if codes is not None and categories is not None:
        return codes, f"{path}/codes", _categories(categories, f"{path}/categories", layout)
    values, mask = _held(item, b"values"), _held(item, b"mask")
    if values is None or mask is None:
        raise Refused("a group, expected a dataset with one value for each row, or codes and categories", path)
    n_missing = _n_set(mask, f"{path}/mask", layout)
    if n_missing:
        raise Refused(
            f"{n_missing} of its values are missing, expected all of them. Write it as a categorical, or as numbers "
            "with NaN.",
            path,
        )
    return values, f"{path}/values", None


def _n_set(mask: h5py.Dataset, path: str, layout: Layouts) -> int:
    """How many entries of a mask are set."""
    if elsewhere(mask) or dtype_of(mask) != np.dtype(bool) or mask.ndim != 1:
        raise Refused("no mask, expected one bool for each row", path)
    layout(mask, path, [])  # where it may be read at all
    return sum(int(np.count_nonzero(mask[start : start + _AT_ONCE])) for start in range(0, len(mask), _AT_ONCE))


def _held(group: Any, name: bytes) -> h5py.Dataset | None:
    """A dataset that a group itself holds."""
    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name) or link_of(group, name):
        return None
    item = h5py.h5o.open(group, name)
    return h5py.Dataset(item) if isinstance(item, h5py.h5d.DatasetID) else None


def _categories_beside(parent: Any, name: bytes, path: str, layout: Layouts) -> list[Any] | None:
    """What the values of a dataset stand for, where a group beside it says so."""
    group = CATEGORIES.encode()
    if not parent.links.exists(group) or link_of(parent, group):
        return None
    found = _held(h5py.h5o.open(parent, group), name)
    return None if found is None else _categories(found, beside(path, f"{CATEGORIES}/{text(name)}"), layout)


def _categories(found: h5py.Dataset, path: str, layout: Layouts) -> list[Any]:
    if elsewhere(found):
        raise Refused(f"{elsewhere(found)}, expected categories in the file itself", path)
    stored = dtype_of(found)
    is_text = stored is not None and h5py.check_string_dtype(stored) is not None
    if stored is None or found.ndim != 1 or not (is_text or stored.kind in "iufb"):
        raise Refused("expected categories: texts or numbers in one dimension", path)
    if len(found) > MOST_CATEGORIES or (not is_text and stored.itemsize > 8) or found.nbytes > MOST_PADDED:
        raise Refused(f"{len(found)} categories of dtype {stored}, expected {MOST_CATEGORIES} at most", path)
    layout(found, path, [])  # where it may be read at all: written, by known filters, in chunks that are not too long
    values = found[...].tolist()
    if stored.kind == "u" and max(values, default=0) >= _MOST_NUMBER:
        raise Refused(f"category {max(values)}, expected less than {_MOST_NUMBER}", path)
    if is_text and sum(map(len, values)) > MOST_WORDS:
        raise Refused(f"categories of more than {MOST_WORDS} bytes", path)
    categories = [text(each) for each in values] if is_text else values
    if not are_few(categories):
        raise Refused(f"categories that take more than {MOST_PADDED} bytes, each as long as the longest", path)
    return categories


def _carriable(file: h5py.File, n_rows: int) -> str:
    """What could be named: datasets with one value for each row, and groups of codes and categories."""
    names: dict[str, None] = {}
    with suppress(Refused):
        for name, item in objects(file.id):
            found = h5py.Dataset(item) if isinstance(item, h5py.h5d.DatasetID) else None
            if found is None or elsewhere(found) or not found.shape or not rides(found.shape, n_rows):
                continue
            if not name.endswith("/mask"):
                names[name.removesuffix("/codes").removesuffix("/values")] = None
    return some(list(names))
