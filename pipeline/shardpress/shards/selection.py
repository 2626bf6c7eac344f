"""Selection of the rows of a shard by a condition on an extra."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shardpress.base.errors import printable
from shardpress.hdf5.names import Category
from shardpress.hdf5.shard import Block, Extra, Shard
from shardpress.settings.condition import Condition
from shardpress.shards.rows import read_in_pieces

_ORDERINGS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ANSWERS = {"true": 1, "yes": 1, "1": 1, "false": 0, "no": 0, "0": 0}


def fulfils(
    condition: Condition, values: np.ndarray, categories: Sequence[Category] | np.ndarray | None = None
) -> np.ndarray:
    """Return whether each value of an extra fulfils a condition, as booleans of shape (n,).

    Parameters
    ----------
    values : ndarray of shape (n,)
        Numbers, or strings as str or bytes. NaN fulfils no condition.
    categories : sequence, optional
        Categories, if the values are codes. The code -1 fulfils no condition.

    Raises
    ------
    ValueError
        If the values cannot be compared with those of the condition.
    """
    if categories is None:
        return _compare(condition, values)
    are_texts = any(isinstance(category, str | bytes) for category in categories)
    of_category = _compare(condition, np.array(categories, dtype=object if are_texts else None))
    return np.asarray(np.append(of_category, False)[values])  # the last entry is that of the code -1


def _compare(condition: Condition, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "SUO":
        return _compare_texts(condition, values)
    wanted = [_number(text, condition.name, values.dtype) for text in condition.values]
    if condition.operator in _ORDERINGS:
        return np.asarray(_ORDERINGS[condition.operator](values, wanted[0]))
    is_equal = np.zeros(len(values), dtype=bool)
    for number in wanted:
        is_equal |= values == number
    if condition.operator in ("==", "in"):
        return is_equal
    return ~is_equal & (values == values)  # NaN is not different from a number


def _compare_texts(condition: Condition, values: np.ndarray) -> np.ndarray:
    if condition.operator in _ORDERINGS:
        raise ValueError(
            f"{printable(condition.name)} contains strings, which {condition.operator} cannot compare. Use ==, !=, in "
            "or not in."
        )
    wanted = {form for text in condition.values for form in (text, text.encode())}
    is_equal = np.fromiter((value in wanted for value in values.tolist()), dtype=bool, count=len(values))
    if condition.operator in ("==", "in"):
        return is_equal
    return ~is_equal


def _number(text: str, name: str, dtype: np.dtype) -> int | float:
    """Return the number that a text means for an extra of numbers, booleans, or numbers with names."""
    metadata: Mapping[str, Any] = dtype.metadata or {}
    names = metadata.get("enum") or {}
    if text in names:
        return int(names[text])
    if dtype.kind == "b" and text.lower() in _ANSWERS:
        return _ANSWERS[text.lower()]
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    expected = "true or false" if dtype.kind == "b" else "a number"
    raise ValueError(f"{printable(name)} contains {dtype}, found {printable(text)!r}, expected {expected}")


def selected_rows(shard: Shard, extra: Extra, condition: Condition) -> np.ndarray:
    """Return whether each row of a shard fulfils a condition: (n_rows,), bool. No row does if the extra is missing.

    Raise the same errors as `shardpress.shards.rows.read`.
    """
    selected = np.zeros(shard.n_rows, dtype=bool)
    if extra.stored is None:
        return selected
    start = 0
    for values in read_in_pieces(Block(shard, 0, shard.n_rows), extra):
        selected[start : start + len(values)] = fulfils(condition, values, extra.categories)
        start += len(values)
    return selected


def check_condition(extra: Extra, condition: Condition) -> None:
    """Raise `ValueError` if the values of an extra cannot be compared as in a condition."""
    if extra.dtype.shape:
        raise ValueError(f"{printable(extra.name)} has an array for each row, expected one value for each row")
    fulfils(condition, np.zeros(0, dtype=extra.dtype), extra.categories)
