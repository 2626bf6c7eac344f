"""Rules about names: of the rows, of their columns, and of extras."""

import re
from collections.abc import Sequence
from math import prod

from shardpress.hdf5.limits import MOST_CATEGORIES, MOST_PADDED

Category = str | bool | int | float
"""Meaning of a code."""
PREFERRED = "X"
"""Default name of the dataset with the rows."""
_VARIABLES = "var"
"""Name of AnnData's group with one entry for each column. Early versions of AnnData wrote a table."""
_OBSERVATIONS = "obs"
"""Name of AnnData's group with one entry for each row."""
ROW_NAMES = "_index"
"""Name of the extra with the names of the rows, from AnnData's group with one entry for each row."""
CATEGORIES = "__categories"
"""Name of the group with the categories of coded datasets in the same parent group (early versions of AnnData)."""
A_GROUP = "a group"
NOT_UTF8 = "its name is not UTF-8"

_GROUPS = ("columns", "samples")  # forms of rows that are many datasets of a group
_LAYERS = b"layers"  # AnnData's group of other matrices with the same columns as `X`
_SAME_ROWS = (_LAYERS, b"obsm", b"raw")  # AnnData's groups of other matrices with the same rows as `X`
_BLOCK = "_values"  # suffix of a dataset with a block of a pandas frame in fixed format
_ITEMS = "_items"  # suffix of the dataset with the column names of that block
_DIGITS = re.compile(r"(\d+)")
_COORDINATES = frozenset(
    [
        *("wave", "wavelength", "wavelengths", "lambda", "lam", "loglam", "wavenumber", "wavenumbers", "raman_shift"),
        *("energy", "energies", "frequency", "frequencies", "freq", "mz", "m_z", "ppm", "two_theta", "q"),
    ]
)


# -- names and paths, which may be arbitrary bytes ---------------------------------------------------------------------


def text(name: bytes) -> str:
    """Decode a name to a str that can be encoded again without loss, even if the name is not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def parts_of(path: str) -> list[bytes]:
    return [part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")]


def normal(path: str) -> str:
    """Return a path without redundant slashes and dots, and without a leading slash."""
    return text(b"/".join(parts_of(path)))


def natural_key(path: str) -> list[list[str | tuple[int, str]]]:
    """Return the key for the natural order of paths, component by component: 9 before 10."""
    keys = []
    for name in path.split("/"):
        parts = enumerate(_DIGITS.split(name))  # words, and the numbers between them
        keys.append([(int(part), part) if i % 2 else part for i, part in parts])  # the spelling tells 010 from 10
    return keys


def split(path: str) -> tuple[str, str]:
    """Split a path into the group and the last name. The group is empty for the root group."""
    group, _, name = path.rstrip("/").rpartition("/")
    return group, name


def group_of(rows: str, form: str) -> str:
    """Return the path of the group with the extras, given the path and the form of the rows. Empty for the root."""
    return rows.strip("/") if form in _GROUPS else split(rows)[0]


def under(group: str, name: str) -> str:
    return f"{group.rstrip('/')}/{name}"


def sibling(dataset: str, name: str) -> str:
    """Return the path of another name in the group of a dataset."""
    group, _ = split(dataset)
    return under(group, name) if group else name


# -- names and numbers of the columns ----------------------------------------------------------------------------


def is_coordinate(name: str) -> bool:
    return name.lower() in _COORDINATES


def has_one_for_each_column(shape: tuple[int, ...], n_rows: int, n_inputs: int) -> bool:
    """Return whether a dataset has one value for each column. Return False if it could be one value for each row."""
    return n_rows != n_inputs and prod(shape) == n_inputs and n_inputs in shape


def variables_of(dataset: str) -> str:
    """Return the path of AnnData's `var` for a matrix. For a matrix in `layers`, `var` is next to that group."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] == _LAYERS:
        del groups[-1]
    return text(b"/".join([*groups, _VARIABLES.encode()]))


def observations_of(dataset: str) -> str:
    """Return the path of AnnData's `obs` for a matrix. Some matrices are in groups next to it."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] in _SAME_ROWS:
        del groups[-1]
    return text(b"/".join([*groups, _OBSERVATIONS.encode()]))


def is_requested(path: str, include: Sequence[str]) -> bool:
    """Return whether a path, or a group that contains it, is one of the paths that a user has given."""
    return any(path == requested or path.startswith(f"{requested}/") for requested in include)


def items_of(dataset: str) -> str | None:
    """Return the path of the column names for a block of a pandas frame in fixed format, or None for other datasets."""
    if not dataset.endswith(_BLOCK):
        return None
    return dataset.removesuffix(_BLOCK) + _ITEMS


# -- extra datasets, with one value for each row -----------------------------------------------------------------


def has_one_for_each_row(shape: tuple[int, ...], n_rows: int) -> bool:
    """Return whether a dataset of this shape has one value for each row.

    The shape is (n_rows,), possibly with axes of length 1 either after the rows, as in labels of Keras, or before the
    rows, as in columns of MATLAB.
    """
    if shape == (n_rows,):
        return True  # check the usual case first, because this function is called twice for each extra of each shard
    is_first = shape[:1] == (n_rows,) and prod(shape[1:]) == 1
    is_last = shape[-1:] == (n_rows,) and prod(shape[:-1]) == 1
    return is_first or is_last


def misfit(shape: tuple[int, ...], rows: tuple[int, ...]) -> tuple[str, bool]:
    """Explain why a dataset does not fit the rows, and return whether a user might expect it in the output.

    One value for each row, but for a different number of rows, is probably a mistake. One value for each column, or a
    single value, is not.
    """
    is_missed = prod(shape[1:]) == 1 and shape[0] not in (1, *rows[1:])
    return f"shape {shape}, expected {rows[:1]}", is_missed


def is_utf8(name: bytes) -> bool:
    """Return whether a name is valid UTF-8, so that the dataset can be written to the output."""
    return name.decode(errors="ignore").encode() == name


def are_few(categories: Sequence[Category]) -> bool:
    """Return whether categories are few and short enough. Each part stores all of them, padded to one length."""
    sizes = [len(category.encode("utf-8", "surrogateescape")) for category in categories if isinstance(category, str)]
    return len(categories) <= MOST_CATEGORIES and len(sizes) * max(sizes, default=0) <= MOST_PADDED
