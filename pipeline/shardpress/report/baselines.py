"""Accuracies of a linear classifier on features, and on baselines that need no training.

All of them are measured on the same rows with the same split. Differences have an error bar of two standard errors:
each test row is assigned by both classifiers, so the error bar is that of the mean of paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpress.labels import NONE, Labels
from shardpress.report.probe import are_correct, standardized
from shardpress.report.sample import Sample
from shardpress.training.components import Components, principal_components

BASELINES = ("components", "standardized", "columns")
"""Keys of the baselines: principal components of the scaled and of the standardized columns, and the columns."""
MIN_TEST_ROWS = 30  # with fewer rows, an accuracy would be meaningless
_STANDARD_ERRORS = 2


@dataclass(frozen=True)
class Split:
    """Rows with a label, divided into training rows and test rows."""

    has_label: np.ndarray  # bool (n_rows,)
    codes: np.ndarray  # int64 (n_labelled,), the class of each row with a label
    is_test: np.ndarray  # bool (n_labelled,)

    @classmethod
    def of(cls, labels: Labels, is_test: np.ndarray) -> Split | None:
        """Divide rows. `is_test` (n_rows,) is a mask of all rows. Return None if there are too few rows or classes."""
        has_label = labels.codes != NONE
        split = cls(has_label, labels.codes[has_label], is_test[has_label])
        if split.n_test < MIN_TEST_ROWS or len(np.unique(split.train_codes)) < 2:
            return None
        return split

    @property
    def train_codes(self) -> np.ndarray:
        return self.codes[~self.is_test]

    @property
    def n_test(self) -> int:
        return int(self.is_test.sum())

    def are_commonest(self) -> np.ndarray:
        """Return a mask of the test rows that belong to the most frequent class of the training rows."""
        commonest = np.bincount(self.train_codes).argmax()
        return np.asarray(self.codes[self.is_test] == commonest)

    def are_correct(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask of the test rows that a linear classifier of rows (n_labelled, n_columns) assigns correctly."""
        return are_correct(rows, self.codes, self.is_test)


def probe_facts(sample: Sample, components: Components, labels: Labels, is_test: np.ndarray) -> dict[str, Any] | None:
    """Return the accuracy of a linear classifier on features and baselines, and the error bars of their differences.

    The principal components are those of the scaled training rows. Return None if there are too few rows, or only one
    label. ``commonest`` is the accuracy of the most frequent label.
    """
    split = Split.of(labels, is_test)
    if split is None:
        return None
    rows = sample.scaled[split.has_label]
    features = sample.features[split.has_label]
    n_components = min(features.shape[1], components.components.shape[1], len(split.train_codes))
    on_features = split.are_correct(features)
    others = {
        "components": split.are_correct(_projected(rows, components, n_components)),
        "standardized": split.are_correct(_standardized_components(rows, split.is_test, n_components)),
        "columns": split.are_correct(rows),
        "commonest": split.are_commonest(),
    }
    return {
        "labels": labels.name,
        "n_train": len(split.train_codes),
        "n_test": split.n_test,
        "n_components": n_components,
        "features": float(on_features.mean()),
        **{name: float(correct.mean()) for name, correct in others.items()},
        "margins": _margins(on_features, others),
    }


def _projected(rows: np.ndarray, components: Components, n_components: int) -> np.ndarray:
    return np.asarray((rows - components.mean) @ components.components[:, :n_components])


def _standardized_components(rows: np.ndarray, is_test: np.ndarray, n_components: int) -> np.ndarray:
    """Return rows (n_rows, n_components) as principal components of columns with mean 0 and unit variance."""
    columns = standardized(rows, ~is_test).astype(np.float32)
    components = principal_components(columns[~is_test], n_components, np.random.default_rng(0))
    return _projected(columns, components, n_components)


def _margins(on_features: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the error bar of the difference between each accuracy and the accuracy on features.

    All arrays are masks (n_test,) of the rows that are assigned correctly.
    """
    margins = {}
    for name, correct in others.items():
        differences = correct.astype(np.float64) - on_features
        margins[name] = float(_STANDARD_ERRORS * differences.std() / np.sqrt(len(differences)))
    return margins
