"""The accuracy that a linear classifier of one model's features keeps on mapped features of another model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from shardpress.model.labels import NONE, LabelChoice, Labels
from shardpress.report.baselines import MIN_TEST_ROWS, are_correct
from shardpress.report.commonrows import CommonRows, EncodedRows
from shardpress.report.sampling import values_of
from shardpress.result.alignment import LinearMap
from shardpress.result.facts import KeptAccuracy
from shardpress.result.features import are_lost, reading

_MAX_CLASSES = 1000


def read_labels(run: EncodedRows, rows: np.ndarray, choice: LabelChoice) -> Labels:
    """Read the labels of rows, given their numbers in a run, from the extra that the choice names."""
    name = str(choice.named)
    mask = choice.masks.get(name, name)
    values, mask_values = run.read(rows, partial(_values, names=(name, mask)))
    return choice.as_labels(name, {mask: mask_values, name: values}, {name: are_lost(run.ranges, name)[rows]})


def _values(path: Path, positions: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    with reading(path) as file:
        return [values_of(file[name], positions) for name in names]


def kept_accuracy(common: CommonRows, labels: Labels, to_a: LinearMap) -> KeptAccuracy | None:
    """Train a linear classifier on the features of A, and test it on those of A, and on mapped features of B.

    It is trained on the rows to which the map was fitted, and tested on the others. Return None if there are too few
    rows or classes.
    """
    has_label = labels.codes != NONE
    codes = labels.codes[has_label]
    is_test = common.is_held_out[has_label]
    if is_test.sum() < MIN_TEST_ROWS or len(labels.names) > _MAX_CLASSES or len(np.unique(codes[~is_test])) < 2:
        return None
    features = common.a[has_label]
    # The training rows are those of A in both cases.
    mapped = np.where(is_test[:, None], to_a.apply(common.b[has_label]), features)
    accuracy = float(are_correct(features, codes, is_test).mean())
    return KeptAccuracy(
        labels.name, int(is_test.sum()), accuracy, mapped=float(are_correct(mapped, codes, is_test).mean())
    )
