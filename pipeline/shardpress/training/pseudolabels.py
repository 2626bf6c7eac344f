"""Pseudo-labels: estimated classes of rows without a target, if only a few rows have one.

A head that learns the classes of a few rows fits these rows too closely. It therefore also learns the classes that a
ridge classifier of the columns assigns to other rows, as far as the classifier is confident.

Source: Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", 2013.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from shardpress.base.ridge import fit_ridge
from shardpress.model.scaler import Scaler
from shardpress.training.components import blocks
from shardpress.training.feed import Rows
from shardpress.training.targets import Targets

log = logging.getLogger(__name__)

_FEW = 0.2  # share of rows with a target above which no others are estimated
_CONFIDENT = 0.7  # share of the estimated classes that are used
_DIGITS = 4  # of the confidence: processors round scores in different ways, but must choose the same rows
_SALT = 11  # of the seed
_NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class _Classifier:
    """A linear classifier of scaled rows: the matrix (n_inputs, n_classes) and the constants (n_classes,)."""

    W: np.ndarray
    b: np.ndarray

    def classify(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the class of each scaled row, int16, and the difference between its two largest scores, float32."""
        scores = rows @ self.W + self.b
        largest = np.partition(scores, -2, axis=1)
        confidence = np.round(largest[:, -1] - largest[:, -2], _DIGITS)
        return scores.argmax(axis=1).astype(np.int16), confidence.astype(np.float32)


def with_pseudo_labels(
    targets: Targets, rows: Rows, scaler: Scaler, left_out: np.ndarray, max_rows: int, seed: int
) -> Targets:
    """Return targets with the estimated classes of rows without a target.

    They are returned unchanged if they are numbers or not few, or if the rows to train on have only one class. The rows
    `left_out`, sorted, are not trained on: their targets are neither used nor estimated. At most `max_rows` rows are in
    memory, with as many numbers as a row has columns.
    """
    if targets.head.kind != "classes" or targets.share >= _FEW:
        return targets
    is_trained_on = np.ones(len(targets.values), dtype=bool)
    is_trained_on[left_out] = False
    has_target = targets.values >= 0
    is_other = is_trained_on & ~has_target
    classifier = _fitted(targets, rows, scaler, np.flatnonzero(is_trained_on & has_target), max_rows, seed)
    if classifier is None or not is_other.any():
        return targets
    values = targets.values.copy()
    values[is_other] = _confident_classes(classifier, rows, scaler, is_other, seed)
    share = float(np.count_nonzero(values[is_trained_on] >= 0) / np.count_nonzero(is_trained_on))
    log.info(
        "target: known for only a few rows; a linear classifier of the columns estimates it for others, in total for "
        "%.3g %% of the rows",
        100 * share,
    )
    return replace(targets, values=values, share=share)


def _fitted(
    targets: Targets, rows: Rows, scaler: Scaler, known: np.ndarray, max_rows: int, seed: int
) -> _Classifier | None:
    """Return a classifier that is fitted to the `known` rows, or to some of them; None if they have only one class."""
    n_inputs = len(scaler.minimum)
    n_classes = targets.head.n_outputs
    n_most = max(2, max_rows * n_inputs // max(n_inputs, n_classes))  # there can be more classes than columns
    if len(known) > n_most:
        known = np.sort(np.random.default_rng((seed, _SALT)).choice(known, n_most, replace=False))
    classes = targets.values[known].astype(np.int64)
    if len(np.unique(classes)) < 2:
        return None
    W, b = fit_ridge(scaler.scaled(rows.take(known)), np.eye(n_classes)[classes])
    return _Classifier(W, b)


def _confident_classes(
    classifier: _Classifier, rows: Rows, scaler: Scaler, is_chosen: np.ndarray, seed: int
) -> np.ndarray:
    """Return the classes of the chosen rows, int16 (n_chosen,), or -1 where the classifier is not confident."""
    estimates = []
    for block in blocks(len(is_chosen), max(classifier.W.shape)):
        numbers = block.start + np.flatnonzero(is_chosen[block])
        if len(numbers):
            estimates.append(classifier.classify(scaler.scaled(rows.take(numbers))))
    classes = np.concatenate([classes for classes, _ in estimates])
    confidence = np.concatenate([confidence for _, confidence in estimates])
    classes[_least_confident(confidence, seed)] = _NO_CLASS
    return classes


def _least_confident(confidence: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions of the rows whose estimates are not used.

    Rows with the same confidence are in random order: without a signal in the columns, all have the same one.
    """
    n_unused = int((1 - _CONFIDENT) * (len(confidence) - 1))
    random_order = np.random.default_rng((seed, _SALT, 1)).permutation(len(confidence))
    return random_order[np.argsort(confidence[random_order], kind="stable")[:n_unused]]
