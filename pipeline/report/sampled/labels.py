"""Which of the riding datasets are labels, so that rows have colours and a classifier something to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.formats import missing_value

__all__ = ["NONE", "Labels", "labels_of"]

NONE = -1  # of a row without a label
_USUAL = ("y", "label", "labels", "target", "targets", "class", "classes")
_MOST = 50  # of which a page of pictures could tell something


@dataclass(frozen=True)
class Labels:
    """What rows are called.

    Attributes
    ----------
    name : str
        Of the dataset.
    names : tuple of str
        Of the labels, in their order.
    codes : ndarray of shape (n_rows,), int64
        Which of them each row has, or `NONE`.
    """

    name: str
    names: tuple[str, ...]
    codes: np.ndarray


def labels_of(riders: Mapping[str, np.ndarray], categories: Mapping[str, np.ndarray]) -> Labels | None:
    """The labels among riding datasets: the one with a usual name, else the first that looks like it; or None.

    Parameters
    ----------
    riders : mapping of str to ndarray of shape (n_rows,)
    categories : mapping of str to ndarray
        What the codes in some of them stand for.
    """
    order = sorted(riders, key=lambda name: (_rank(name), name))
    found = (_labels(name, riders[name], categories.get(name)) for name in order if not name.endswith("_present"))
    return next((each for each in found if each is not None), None)


def _rank(name: str) -> int:
    plain = name.rsplit("/", 1)[-1].lower()
    return _USUAL.index(plain) if plain in _USUAL else len(_USUAL)


def _labels(name: str, values: np.ndarray, categories: np.ndarray | None) -> Labels | None:
    if values.dtype.kind not in "biufO" or not len(values):
        return None
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values), equal_nan=True):
        return None  # a measurement
    missing = "" if values.dtype == object else -1 if categories is not None else missing_value(values.dtype)
    is_there = ~np.isnan(values) if values.dtype.kind == "f" else values != missing
    if values.dtype.kind == "b":
        is_there = np.ones(len(values), dtype=bool)  # False stands for itself
    distinct, where = np.unique(values[is_there], return_inverse=True)
    # Each more than once or twice on average: else they are ids.
    if not 2 <= len(distinct) <= min(_MOST, len(values) // 3):
        return None
    codes = np.full(len(values), NONE)
    codes[is_there] = where
    return Labels(name, tuple(_spelled(value, categories) for value in distinct.tolist()), codes)


def _spelled(value: object, categories: np.ndarray | None) -> str:
    if categories is not None and isinstance(value, int) and value < len(categories):
        value = categories[value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) else str(value)
