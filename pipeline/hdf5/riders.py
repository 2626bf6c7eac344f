"""What rides along with the rows of one file: datasets with one value for each row, as labels and ids are.

What only rides along never costs the file: whatever is wrong with it is a reason to leave it out. What may be missed is
told from what nobody would expect to ride along. Both ways to one answer, and what checks it, ask here.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from pipeline.hdf5.limits import MOST_CATEGORIES, MOST_LEFT_OUT, MOST_PADDED
from pipeline.hdf5.paths import text

__all__ = ["A_GROUP", "CATEGORIES", "NOT_UTF8", "are_few", "is_utf8", "leave_out", "misfit", "rides"]

CATEGORIES = "__categories"  # the group beside codes that says what each stands for, as earlier AnnData wrote it

A_GROUP, NOT_UTF8 = "a group", "its name is not UTF-8, as HDF5 expects"


def rides(shape: tuple[int, ...], n_rows: int) -> bool:
    """Whether there is one value for each row: shape (n_rows,), or with more axes of length 1.

    They stand behind it, as Keras has labels, or before it, as MATLAB's columns come out.
    """
    if shape == (n_rows,):
        return True  # nearly always, and this is asked twice of each of many shards
    first, last = shape[:1] == (n_rows,), shape[-1:] == (n_rows,)
    return (first and prod(shape[1:]) == 1) or (last and prod(shape[:-1]) == 1)


def misfit(shape: tuple[int, ...], rows: tuple[int, ...]) -> tuple[str, bool]:
    """Why a dataset of this shape does not ride along with rows of that one, and whether somebody may miss it.

    One value for each of another number of rows is a mistake; for each column, or one in all, it is not.
    """
    return f"shape {shape}, expected {rows[:1]}", prod(shape[1:]) == 1 and shape[0] not in (1, *rows[1:])


def is_utf8(name: bytes) -> bool:
    """Whether a dataset of this name can be written."""
    return name.decode(errors="ignore").encode() == name


def leave_out(claims: list[list[Any]], name: bytes, reason: str, is_missed: bool = True) -> None:
    """Note a name, why it does not ride along, and whether somebody may miss it, if not too many are noted already."""
    if len(claims) < MOST_LEFT_OUT:
        claims.append([text(name), reason, is_missed])


def are_few(categories: Sequence[Any]) -> bool:
    """Whether so many categories, and so long ones, may ride along: each part has them, as texts of one length."""
    sizes = [len(each.encode("utf-8", "surrogateescape")) for each in categories if isinstance(each, str)]
    return len(categories) <= MOST_CATEGORIES and len(sizes) * max(sizes, default=0) <= MOST_PADDED
