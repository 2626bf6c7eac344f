"""Labels that rode along as the numbers of classes, and which rows test what was learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.classify.representations import LEFT_OUT
from pipeline.errors import DataError, counted, shown
from pipeline.features import Features
from pipeline.formats import missing_value

__all__ = ["classes_of", "held_out", "labels_of", "present"]

_HELD_OUT = 0.2


def labels_of(directory: str, run: Features, name: str) -> np.ndarray:
    """What rode along under a name, one for each row: numbers or text.

    Raises
    ------
    DataError
        When nothing did, or what did is neither.
    """
    if name not in run.riders:
        left_out = run.manifest.get("left_out", {})
        why = f"{name} was left out ({shown(left_out[name])})" if name in left_out else f"left out: {sorted(left_out)}"
        raise DataError(
            f"features={shown(directory)}: no dataset {name!r} rides along, found {sorted(run.riders)}; {shown(why)}. "
            "Name the labels with --labels; shardpress run --carry GROUP/NAME has others ride along."
        )
    found = run.riders[name].compute()
    if name in run.categories:
        found = _meant(found, run.categories[name])
    if found.dtype.kind not in "biufOSU":
        raise DataError(f"features={shown(directory)} dataset={name}: {found.dtype}, expected numbers or text")
    if found.dtype.kind == "f":
        odd = np.flatnonzero(np.isfinite(found) & (found != np.floor(found)) | np.isinf(found))
        if len(odd):
            raise DataError(
                f"features={shown(directory)} dataset={name}: {found[odd[0]]} in row {odd[0]}; "
                f"{counted(len(odd), 'row')} without a whole number, expected a number "
                "or text for each class. Name others with --labels."
            )
    return found


def _meant(codes: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """What codes stand for, since each run has its own codes; anything for -1, which `present` leaves out."""
    if not len(categories):
        return codes
    is_whole = categories.dtype.kind in "biu"
    return (categories if is_whole else categories.astype(object))[codes]  # which holds each text once


def present(run: Features, name: str) -> np.ndarray:
    """Which rows have a label: where some shards lack it, a mask rides along; of codes, -1 is none."""
    if name in run.categories:
        return np.asarray(run.riders[name].compute()) >= 0
    # Where there was a dataset of this name before, the mask's has an underscore more.
    beside = [each for other, each in run.riders.items() if other.rstrip("_") == f"{name}_present"]
    masks = [each.compute() for each in beside if each.dtype == bool]
    if masks:
        return np.asarray(np.logical_and.reduce(masks))
    found = run.riders[name]
    if found.dtype.kind != "i":
        return np.ones(len(found), dtype=bool)
    return np.asarray(found.compute() != missing_value(found.dtype))  # it stands for one that could not be read


def classes_of(labels: Sequence[np.ndarray]) -> tuple[list[object], np.ndarray]:
    """The classes in order, and each row's number among them: LEFT_OUT where the label is NaN or an empty text.

    Text of any storage is the same text, and a number the same number in any dtype.
    """
    numbers: dict[object, int] = {}
    places = []
    for values in labels:
        found, inverse = _distinct(values)
        places.append(np.array([numbers.setdefault(value, len(numbers)) for value in found], dtype=np.int64)[inverse])
    classes = [value for value in numbers if value is not None]
    rank = {value: i for i, value in enumerate(sorted(classes, key=lambda value: (str(type(value)), value)))}
    order = np.array([LEFT_OUT if value is None else rank[value] for value in numbers], dtype=np.int64)
    return sorted(rank, key=rank.__getitem__), order[np.concatenate(places)]


def _distinct(values: np.ndarray) -> tuple[list[object], np.ndarray]:
    """The values, plain ones, with None for a missing one, and which of them stands where."""
    if values.dtype.kind in "biuf":
        found, inverse = np.unique(values, return_inverse=True)
        return [None if value != value else int(value) for value in found.tolist()], inverse
    numbers: dict[object, int] = {}  # no array of text: its width would be that of the longest one
    inverse = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values.tolist()), np.int64, len(values))
    texts = (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in numbers)
    return [text.strip() or None for text in texts], inverse


def held_out(codes: np.ndarray, seed: int) -> np.ndarray:
    """Which rows test: a fifth of each class, one at least of a class of two or more, never all."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(codes != LEFT_OUT))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes[order])
    n_wanted = np.where(sizes > 1, np.maximum(1, np.round(_HELD_OUT * sizes)), 0)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = np.zeros(len(codes), dtype=bool)
    is_test[order[place < n_wanted[codes[order]]]] = True
    return is_test
