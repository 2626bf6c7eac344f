"""What rides along with the rows of one file: datasets with one value for each row, as labels and ids are.

What only rides along never costs the file: whatever is wrong with it is a reason to leave it out. What may be missed is
told from what nobody would expect to ride along.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import h5py
import numpy as np

from pipeline.walk import Refused, dtype_of, elsewhere, link_of, names_in, text

__all__ = ["MOST_ITEM", "MOST_LEFT_OUT", "MOST_RIDERS", "LeftOut", "find_riders", "misfit", "rides"]

MOST_RIDERS = 1000
MOST_LEFT_OUT = 50  # that are told of one file
MOST_ITEM = 2**20  # bytes of one value

_BARE = b"This is a netCDF dimension but not a netCDF variable"
_NOT_THE_RIDERS = re.compile(r"errno = \d|allocat", re.IGNORECASE)  # HDF5's words when the storage or memory fails


def rides(shape: tuple[int, ...], n_rows: int) -> bool:
    """Whether there is one value for each row: shape (n_rows,), or with more axes of length 1.

    They stand behind it, as Keras has labels, or before it, as MATLAB's columns come out.
    """
    first, last = shape[:1] == (n_rows,), shape[-1:] == (n_rows,)
    return (first and prod(shape[1:]) == 1) or (last and prod(shape[:-1]) == 1)


def misfit(shape: tuple[int, ...], rows: tuple[int, ...]) -> tuple[str, bool]:
    """Why a dataset of this shape does not ride along with rows of that one, and whether somebody may miss it.

    One value for each of another number of rows is a mistake; for each column, or one in all, it is not.
    """
    return f"shape {shape}, expected {rows[:1]}", prod(shape[1:]) == 1 and shape[0] not in (1, *rows[1:])


class LeftOut:
    """Names in a file, why each does not ride along, and whether somebody may miss it; not too many."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    def note(self, name: bytes, reason: str, is_missed: bool = True) -> None:
        """One more."""
        if len(self.told) < MOST_LEFT_OUT:
            self.told.append([text(name), reason, is_missed])


def find_riders(
    parent: Any, rows: bytes, shape: tuple[int, ...], layout: Callable[[h5py.Dataset, str], dict[str, Any]]
) -> tuple[list[dict[str, Any]], LeftOut]:
    """What rides along of that which lies beside the rows, and what does not.

    Parameters
    ----------
    parent : h5py.h5g.GroupID
        That holds the rows.
    rows : bytes
        Their name there.
    shape : tuple of int
        Theirs.
    layout : callable
        Says where a dataset lies, given it and its name.
    """
    riding: list[dict[str, Any]] = []
    left_out = LeftOut()
    for name in names_in(parent):
        if name == rows:
            continue
        try:
            found = _rider(parent, name, shape)
            if isinstance(found, tuple):
                left_out.note(name, *found)
            elif found is not None and len(riding) == MOST_RIDERS:
                left_out.note(name, f"more than {MOST_RIDERS} ride along already")
            elif found is not None:
                riding.append({"name": text(name), "layout": layout(found, text(name))})
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
        return ("a group", False) if isinstance(item, h5py.h5g.GroupID) else None
    found = h5py.Dataset(item)
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
