"""Names, numbers or positions that describe the columns, for example names of genes, wavelengths or pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from shardpress.base.errors import printable, quantity

_LONGEST = 40  # maximum number of characters of a name in a message
_ROUNDING = 2.0**-22
"""Relative tolerance for comparing numbers, because one of two files may store them in float32."""


class Difference(NamedTuple):
    """First column that differs between two descriptions."""

    column: int
    actual: str
    expected: str


@dataclass(frozen=True, eq=False)
class Columns:
    """Description of all columns.

    Attributes
    ----------
    names : tuple of str
        One name for each column; empty if the names are unknown.
    names_from : str
        Location of the names in the file.
    values : ndarray of shape (n_inputs,), float64, or None
        One number for each column, for example a wavelength.
    values_from : str
        Name of the dataset that contains `values`.
    note : str
        Reason why the names or numbers in a file are not used. Empty if they are used, or if the file has none.
    row_shape : tuple of int
        Shape of a row whose axes are flattened, for example of an image. Empty for rows with one axis.
    are_chosen : bool
        True if a table has more columns than these, or if a user has chosen them. They are then found by name.
    """

    names: tuple[str, ...] = field(default=(), repr=False)
    names_from: str = ""
    values: np.ndarray | None = field(default=None, repr=False)
    values_from: str = ""
    note: str = ""
    row_shape: tuple[int, ...] = ()
    are_chosen: bool = False

    def __str__(self) -> str:
        words = []
        if self.names:
            words.append(f"{quantity(len(self.names), 'name')} from {_cut(self.names_from)}")
        if self.values is not None:
            words.append(f"{quantity(len(self.values), 'number')} from {_cut(self.values_from)}")
        return ", ".join(words) or "no names"

    @property
    def is_known(self) -> bool:
        """True if the columns have names or numbers."""
        return bool(self.names) or self.values is not None

    @property
    def has_names(self) -> bool:
        """True if `name_of` returns a name or a position of each column."""
        return self.is_known or bool(self.row_shape)

    def name_of(self, column: int) -> str | None:
        """Return the name of a column, escaped and shortened for a message, or None if it has no name.

        Without names, it is the position of the column in a row with several axes, for example ``(4, 20)``.
        """
        if column < len(self.names):
            return _cut(self.names[column])
        if self.values is not None and column < len(self.values):
            return f"{_cut(self.values_from)} {self.values[column]:g}"
        if self.row_shape:
            position = np.unravel_index(column, self.row_shape)
            return f"({', '.join(map(str, position))})"
        return None

    def name_of_input(self, i: int, n_columns: int, indicators: np.ndarray | None) -> tuple[int, str | None]:
        """Return the column of input `i` of a network, and the name of the input: see `Scaler`.

        The columns come first, then the missing `indicators`: the numbers of the columns that have one.
        """
        if indicators is None or i < n_columns:
            return i, self.name_of(i)
        column = int(indicators[i - n_columns])
        name = self.name_of(column)
        return column, "is missing" if name is None else f"{name} is missing"

    def numbered(self, column: int) -> str:
        """Return the index of a column with its name, see `with_name`."""
        return with_name(column, self.name_of(column))

    def listed(self, columns: Iterable[int]) -> list[str]:
        """Return the indices of several columns with their names."""
        return [self.numbered(int(column)) for column in columns]

    def reordered(self, order: np.ndarray) -> Columns:
        """Return the description of the columns in another order, given by the indices `order` (n_inputs,)."""
        names = tuple(self.names[place] for place in order.tolist()) if self.names else ()
        values = None if self.values is None else self.values[order]
        return replace(self, names=names, values=values)

    def first_difference(self, expected: Columns) -> Difference | None:
        """Return the first column whose name or number differs, or None if all agree or cannot be compared.

        Numbers are compared only if both datasets have the same name. They count as equal if they agree in float32.
        """
        if self.names and expected.names and self.names != expected.names:
            return _first_name(self.names, expected.names)
        if self.values is None or expected.values is None or self.values_from != expected.values_from:
            return None
        if len(self.values) != len(expected.values):
            return None  # different numbers of columns are reported by another error
        is_same = np.isclose(self.values, expected.values, rtol=_ROUNDING, atol=0, equal_nan=True)
        if is_same.all():
            return None
        column = int(np.argmin(is_same))
        where = _cut(self.values_from)
        return Difference(column, f"{where} {self.values[column]}", f"{where} {expected.values[column]}")

    def to_json(self) -> bytes:
        """Return the description as JSON, without its note."""
        values = None if self.values is None else self.values.tolist()
        content = {
            "names": list(self.names),
            "names_from": self.names_from,
            "values": values,
            "values_from": self.values_from,
            "row_shape": list(self.row_shape),
        }
        if self.are_chosen:
            content["are_chosen"] = True
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, data: bytes, n_inputs: int) -> Columns:
        """Return the description that `to_json` has written. Raise `ValueError` unless it has `n_inputs` columns."""
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("columns: expected a JSON object")
        names = _texts(content.get("names"))
        numbers = content.get("values")
        values = None if numbers is None else _numbers(numbers)
        if len(names) not in (0, n_inputs) or (values is not None and len(values) != n_inputs):
            raise ValueError(f"columns: expected {n_inputs} names or numbers")
        sources = _texts([content.get("names_from"), content.get("values_from")])
        return cls(
            tuple(names),
            sources[0],
            values,
            sources[1],
            row_shape=_row_shape(content.get("row_shape", []), n_inputs),
            are_chosen=content.get("are_chosen") is True,
        )


NO_COLUMNS = Columns()


def with_name(column: int, name: str | None) -> str:
    """Return the index of a column with its name, for example ``17 (GAPDH)``, or ``276 = (4, 20)`` for a position."""
    if name in (None, str(column)):  # in some files, the names are the indices
        return str(column)
    if name.startswith("("):
        return f"{column} = {name}"
    return f"{column} ({name})"


def row_shape_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a row with several axes, given the shape of all rows; empty for rows with one axis."""
    return shape[1:] if len(shape) > 2 else ()


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("columns: expected a list of strings")
    return values


def _numbers(values: Any) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError("columns: expected a list of numbers")
    return np.array(values, dtype=np.float64)


def _row_shape(sides: Any, n_inputs: int) -> tuple[int, ...]:
    if not isinstance(sides, list) or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError("columns: expected a list of positive integers")
    if sides and prod(sides) != n_inputs:
        raise ValueError(f"columns: expected a row shape of {n_inputs} columns")
    return tuple(sides)


def _first_name(names: tuple[str, ...], expected: tuple[str, ...]) -> Difference:
    for column, (name, other) in enumerate(zip(names, expected, strict=False)):
        if name != other:
            return Difference(column, _quoted(name), _quoted(other))
    column = min(len(names), len(expected))
    return Difference(column, _quoted_or_none(names, column), _quoted_or_none(expected, column))


def _quoted_or_none(names: tuple[str, ...], column: int) -> str:
    return _quoted(names[column]) if column < len(names) else "no column"


def _quoted(name: str) -> str:
    return f"'{_cut(name)}'"


def _cut(name: str) -> str:
    if len(name) > _LONGEST:
        name = name[: _LONGEST - 3] + "..."
    return printable(name)
