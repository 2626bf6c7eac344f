"""What the child finds riding along: beside the rows, or wherever else it is named."""

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

_MOST_NUMBER = 2**63  # which no category that is a number reaches, since signed ones stand beside it
_AT_ONCE = 2**22  # values of a mask

_BARE = b"This is a netCDF dimension but not a netCDF variable"

_STORAGE_FAILED = re.compile(r"errno = \d")  # in HDF5's words


class _Unmissed(Refused):
    """Why something does not ride along that nobody may miss; with no words where nobody even asks."""


def find_riders(
    parent: Any, rows: str, shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What rides along of all that a group holds beside the rows, which have that path and shape; and what does not.

    Into `arrays` goes what is no plain value, as by `layout_claim`. Of what does not ride along there is the name, why
    it does not, and whether somebody may miss it.
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
            path = beside(rows, text(name))
            categories = _categories_beside(parent, name, path)
            layout = layout_claim(dataset, path, arrays)
            riders.append({"name": text(name), "layout": layout, "categories": categories, "is_carried": False})
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


def _beside(parent: Any, name: bytes, shape: tuple[int, ...]) -> h5py.Dataset:
    """A dataset of a name that can be written, if it rides along."""
    link = link_of(parent, name)
    if link:
        raise Refused(link)
    item = h5py.h5o.open(parent, name)
    if not isinstance(item, h5py.h5d.DatasetID):
        raise _Unmissed(A_GROUP if isinstance(item, h5py.h5g.GroupID) else "")
    dataset = h5py.Dataset(item)
    _check(dataset, shape)
    if not is_utf8(name):
        raise Refused(NOT_UTF8)
    return dataset


def _check(dataset: h5py.Dataset, shape: tuple[int, ...]) -> None:
    """Refuse a dataset that does not ride along with rows of that shape."""
    reason = elsewhere(dataset)  # before its shape, for which HDF5 may open other files
    if reason:
        raise Refused(reason)
    if not dataset.shape:
        raise _Unmissed("")
    if is_bare(dataset):
        raise _Unmissed("a dimension of netCDF without values")
    if not rides(dataset.shape, shape[0]):
        reason, is_missed = misfit(dataset.shape, shape)
        raise Refused(reason) if is_missed else _Unmissed(reason)
    stored = dtype_of(dataset)
    if stored is None or (stored.hasobject and h5py.check_string_dtype(stored) is None):
        raise Refused("neither plain nor text")
    if stored.subdtype and dataset.shape[0] != shape[0]:
        raise Refused("an array for each row, but not rows first")
    if stored.itemsize > MOST_ITEM:
        raise Refused(f"values of {stored.itemsize} bytes, expected {MOST_ITEM} at most")


def is_bare(dataset: h5py.Dataset) -> bool:
    """Whether it only says how long an axis is: netCDF makes such a dataset, and never writes it."""

    def fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
        return shape == () and dtype.kind == "S" and dtype.itemsize <= 2 * len(_BARE)

    name = attribute(dataset.id, b"NAME", fits)
    return name is not None and bool(name.item().startswith(_BARE))


# -- named ---------------------------------------------------------------------------------------------------------


def find_carried(
    file: h5py.File, paths: Sequence[str], shape: tuple[int, ...], arrays: list[np.ndarray]
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What rides along because it is named, wherever it lies, and which names are not there; both as of `find_riders`.

    A group of codes and categories, as AnnData has it, rides along as its codes; one of values and a mask as its
    values, if the mask hides none.

    Raises
    ------
    Refused
        When something named is there and cannot ride along.
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
    """The dataset with a value for each row, its path, and what its values stand for, if they are codes."""
    if isinstance(item, h5py.h5d.DatasetID):
        return h5py.Dataset(item), path, _categories_beside(parent, parts_of(path)[-1], path)
    codes, categories = held(item, b"codes"), held(item, b"categories")
    if codes is not None and categories is not None:
        return codes, f"{path}/codes", _categories(categories, f"{path}/categories")
    values, mask = held(item, b"values"), held(item, b"mask")
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
    """How many entries of a mask of `n_rows` values are set."""
    if elsewhere(mask) or dtype_of(mask) != np.dtype(bool) or mask.shape != (n_rows,):
        raise Refused("no mask, expected one bool for each row", path)
    layout_claim(mask, path, [])  # if it may be read at all
    n_bytes = h5py.h5i.get_file_id(mask.id).get_filesize()
    if n_rows > most_unfolded(n_bytes):  # its chunks may all be the same few bytes
        raise Refused(f"a mask of {n_rows} values in a file of {n_bytes} bytes", path)
    return sum(int(np.count_nonzero(mask[start : start + _AT_ONCE])) for start in range(0, len(mask), _AT_ONCE))


def _categories_beside(parent: Any, name: bytes, path: str) -> list[Any] | None:
    """What the values of a dataset stand for, where a group beside it says so."""
    group = CATEGORIES.encode()
    if not parent.links.exists(group) or link_of(parent, group):
        return None
    dataset = held(h5py.h5o.open(parent, group), name)
    return None if dataset is None else _categories(dataset, beside(path, f"{CATEGORIES}/{text(name)}"))


def _categories(dataset: h5py.Dataset, path: str) -> list[Any]:
    if elsewhere(dataset):
        raise Refused(f"{elsewhere(dataset)}, expected categories in the file itself", path)
    stored = dtype_of(dataset)
    is_text = stored is not None and h5py.check_string_dtype(stored) is not None
    if stored is None or dataset.ndim != 1 or not (is_text or stored.kind in "iufb"):
        raise Refused("expected categories: texts or numbers in one dimension", path)
    if len(dataset) > MOST_CATEGORIES or (not is_text and stored.itemsize > 8) or dataset.nbytes > MOST_PADDED:
        raise Refused(f"{len(dataset)} categories of dtype {stored}, expected {MOST_CATEGORIES} at most", path)
    layout_claim(dataset, path, [])  # if it may be read at all: written, by known filters, in chunks not too long
    values = dataset[...].tolist()
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
            dataset = h5py.Dataset(item) if isinstance(item, h5py.h5d.DatasetID) else None
            if dataset is None or elsewhere(dataset) or not dataset.shape or not rides(dataset.shape, n_rows):
                continue
            if not name.endswith("/mask"):
                names[name.removesuffix("/codes").removesuffix("/values")] = None
    return some(names, LISTED)
