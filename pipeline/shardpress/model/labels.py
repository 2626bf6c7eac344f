"""Labels of rows: the choice of the extra dataset that contains them, and their conversion to codes. Numbers of rows.

If no dataset is named, the candidates are tried in this order:

1. the dataset of ``--target``, then the datasets of ``--include``, in the order of that option;
2. the datasets with a usual name: y, label, labels, target, targets, class, classes;
3. the others, in alphabetical order.

Datasets that are named after a batch or an identifier, such as ``batch`` or ``row_id``, are never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NONE = -1
"""Code of a row without a label."""
_USUAL_NAMES = ("y", "label", "labels", "target", "targets", "class", "classes")
_BATCH_NAMES = frozenset(
    {
        *("batch", "split", "fold", "id", "index", "plate", "run", "lane", "file"),
        *("batches", "splits", "folds", "ids", "indices", "indexes", "plates", "runs", "lanes", "files"),
    }
)
"""Words in the names of datasets that say where a row comes from, not what it is."""
_MAX_LABELS = 50  # more labels could not be distinguished on a page
_MAX_NAMED_LABELS = 200  # of a dataset that a user has named
_MIN_ROWS_PER_LABEL = 3  # on average; an identifier occurs only once or twice
LABELS_IN_WORDS = (
    f"2 to {_MAX_NAMED_LABELS} distinct strings or whole numbers, and {_MIN_ROWS_PER_LABEL} rows or more per label on "
    "average"
)
"""Description of the values that can be labels, for messages."""
_USUAL_MISSING = ("-1", "-9", "-99", "-999", "99", "999")  # integers that often mean that a row has no label


@dataclass(frozen=True)
class Labels:
    """Labels of rows."""

    name: str  # of the dataset
    names: tuple[str, ...]  # distinct labels in sorted order
    codes: np.ndarray  # shape (n_rows,), int64: index of the label of each row in `names`, or `NONE`

    @property
    def has_value(self) -> np.ndarray:
        """Mask of the rows with a label, bool (n_rows,)."""
        return np.asarray(self.codes != NONE)

    def name_of(self, row: int) -> str | None:
        """Return the label of a row, or None if the row has no label."""
        code = int(self.codes[row])
        if code == NONE:
            return None
        return self.names[code]


@dataclass(frozen=True)
class Numbers:
    """Numbers that rows have, for example the targets of a regression."""

    name: str  # of the dataset
    values: np.ndarray  # shape (n_rows,), float64: NaN for rows without a number

    @property
    def has_value(self) -> np.ndarray:
        """Mask of the rows with a number, bool (n_rows,)."""
        return np.isfinite(self.values)


# -- choice of the dataset -----------------------------------------------------------------------------------------


def _extra_of(path: str, names: Sequence[str]) -> str | None:
    """Return the name of the extra that ``--include`` made from the dataset at a path, or None if there is none.

    An extra is named after the last component of the path, or after the whole path if that name was already used.
    """
    for name in (path.replace("/", "_"), path.rsplit("/", 1)[-1]):
        if name in names:
            return name
    return None


def _candidates(names: Sequence[str], include: Sequence[str] = (), masks: Collection[str] = ()) -> list[str]:
    """Return the names of the extras that can contain labels, in the order in which they are tried.

    `include` has the paths of ``--include``, and `masks` the extras that mark the rows with a value of another one.
    """
    included = [name for path in include if (name := _extra_of(path, names)) is not None]
    others = sorted(names, key=lambda name: (_rank(name), name))
    ordered = dict.fromkeys([*included, *others])
    return [name for name in ordered if name not in masks and not _is_batch(name)]


def _rank(name: str) -> int:
    plain = name.rsplit("/", 1)[-1].lower()
    if plain in _USUAL_NAMES:
        return _USUAL_NAMES.index(plain)
    return len(_USUAL_NAMES)


def _is_batch(name: str) -> bool:
    """Return whether a word of the name, such as ``id`` in ``row_id`` and ``rowId``, describes a batch or a row."""
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return not _BATCH_NAMES.isdisjoint(re.split(r"[^a-z]+", words))


# -- labels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelChoice:
    """Settings that determine which extra contains the labels, and which rows have one.

    In all methods, `extras` are values (n_rows,) by the names of the extras, and `lost` masks (n_rows,) of the rows
    whose value could not be read, for extras with such rows.
    """

    include: tuple[str, ...] = ()  # paths of --include; the first ones that can be labels are preferred
    named: str | None = None  # the extra of --labels; no other one is tried
    masks: Mapping[str, str] = field(default_factory=dict)  # extras that mark the rows with a value of another extra
    categories: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the extras that are stored as codes
    missing: str | None = None  # label of the rows that have none

    def find(self, extras: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray]) -> Labels | None:
        """Return the labels of rows, or None if no extra contains labels."""
        if self.named is not None:
            return self.labels_in(self.named, extras, lost, _MAX_NAMED_LABELS) if self.named in extras else None
        names = _candidates(list(extras), self.include, self.masks.values())
        candidates = (self.labels_in(name, extras, lost, _MAX_LABELS) for name in names)
        return next((labels for labels in candidates if labels is not None), None)

    def labels_in(
        self, name: str, extras: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray], limit: int
    ) -> Labels | None:
        """Return the values of an extra as labels, or None if they look like measurements or identifiers.

        `limit` is the maximum number of distinct labels.
        """
        values = extras[name]
        if values.dtype.kind not in "biufO" or not len(values) or _has_fractions(values) or _is_mixed(values):
            return None
        labels = self.as_labels(name, extras, lost)
        is_usual = 2 <= len(labels.names) <= min(limit, len(values) // _MIN_ROWS_PER_LABEL)
        return labels if is_usual else None

    def as_labels(self, name: str, extras: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray]) -> Labels:
        """Return the values of an extra as labels, whatever they look like."""
        values = extras[name]
        categories = self.categories.get(name)
        has_value = self.has_value(name, extras, lost)
        distinct, indices = np.unique(values[has_value], return_inverse=True)
        codes = np.full(len(values), NONE)
        codes[has_value] = indices
        if categories is not None:
            distinct = categories[distinct]
        names = tuple(text_of(value) for value in distinct.tolist())
        return Labels(name, names, codes)

    def has_value(self, name: str, extras: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a mask (n_rows,) of the rows that have a value of an extra, which is not missing."""
        has_value = has_label(extras[name], self.missing, self.categories.get(name))
        if self.masks.get(name) in extras:
            has_value &= extras[self.masks[name]]
        if name in lost:
            has_value &= ~lost[name]
        return has_value

    def remark(self, labels: Labels, extras: Mapping[str, np.ndarray]) -> str:
        """Return a sentence if a label seems to mean that rows have no label, see `remark_on_missing`."""
        dtype = np.dtype(object) if labels.name in self.categories else extras[labels.name].dtype
        return remark_on_missing(labels.names, labels.codes, [dtype])


def has_label(values: np.ndarray, missing: str | None, categories: Iterable[Any] | None = None) -> np.ndarray:
    """Return a mask (n_rows,) of the values that are labels or targets.

    The others are NaN, infinite, an empty string, or equal to `missing`, the label of rows without one. If the values
    are codes of `categories`, the names of these are compared, and the code -1 is no label.
    """
    if categories is not None:
        return has_label(np.array([*categories, ""], dtype=object), missing)[values]
    if values.dtype == object:
        return np.array([text_of(value) not in ("", missing) for value in values], dtype=bool)
    is_label = np.isfinite(values)
    number = None if missing is None else _number(missing)
    if number is not None:
        is_label &= values != number
    return is_label


def _number(text: str) -> int | float | None:
    """Return the number that a text spells, or None. An integer stays exact."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return None


def remark_on_missing(names: Sequence[str], codes: np.ndarray, dtypes: Iterable[np.dtype]) -> str:
    """Return a sentence if the label of most rows is an integer that usually means "no label"; otherwise nothing.

    The `codes` (n_rows,) are positions in `names`, or negative for rows without a label. `dtypes` are those of the
    labels in the files.
    """
    stored = set(dtypes)
    if len(names) < 3 or any(dtype.kind not in "iuf" for dtype in stored):
        return ""
    counts = np.bincount(codes[codes >= 0].astype(np.int64))
    share = counts.max() / counts.sum()
    label = names[int(counts.argmax())]
    looks_missing = label in _USUAL_MISSING or (label == "255" and np.dtype(np.uint8) in stored)
    if share <= 0.5 or not looks_missing:
        return ""
    return (
        f'{100 * share:.3g} % of the labels are {label}, which looks like "no label". If it is, set --missing-label '
        f"{label}."
    )


def numbers_in(name: str, values: np.ndarray, has_value: np.ndarray) -> Numbers | None:
    """Return the values of a dataset as numbers, or None if they are none. `has_value` is a mask (n_rows,)."""
    if values.dtype.kind not in "biuf":
        return None
    numbers = values.astype(np.float64)
    return Numbers(name, np.where(has_value & np.isfinite(numbers), numbers, np.nan))


def _has_fractions(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and not np.array_equal(values, np.rint(values), equal_nan=True)


def _is_mixed(values: np.ndarray) -> bool:
    """Return whether values are not all strings or all numbers: shards can store a dataset in different ways."""
    return values.dtype == object and not all(isinstance(value, str) for value in values)


def text_of(value: object) -> str:
    """Return a label as text, without the padding of strings."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip("\0 ")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip("\0 ")
