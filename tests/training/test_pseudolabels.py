"""Tests of pseudo-labels: classes of rows without a target are estimated if only a few rows have one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from shardpress.model.scaler import Scaler
from shardpress.training.feed import ResidentRows
from shardpress.training.pseudolabels import with_pseudo_labels
from shardpress.training.targets import Targets
from shardpress_kernels.network import Head

N = 1000
NOTHING = np.empty(0, np.int64)


def clusters() -> tuple[np.ndarray, np.ndarray, Scaler]:
    """Return rows in overlapping clusters, their classes and a scaling to [0, 1]."""
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, N)
    rows = (rng.normal(size=(N, 6)) + 2 * np.eye(6)[classes]).astype(np.float32)
    rows[:, 5] = 7  # a constant column
    wide = rows.astype(np.float64)
    return rows, classes, Scaler(wide.min(axis=0), wide.max(axis=0))


def targets_of(classes: np.ndarray, known: np.ndarray) -> Targets:
    values = np.full(N, -1, np.float32)
    values[known] = classes[known]
    return Targets("y", Head("classes", 3), values, ("a", "b", "c"), len(known) / N, digest="")


def estimate(
    rows: np.ndarray, scaler: Scaler, targets: Targets, left_out: np.ndarray = NOTHING, max_rows: int = N
) -> Targets:
    return with_pseudo_labels(targets, ResidentRows(rows), scaler, left_out, max_rows, seed=0)


def test_confident_rows_get_the_class_of_a_ridge_classifier() -> None:
    rows, classes, scaler = clusters()
    known = np.arange(0, N, 20)
    targets = targets_of(classes, known)
    found = estimate(rows, scaler, targets)
    np.testing.assert_array_equal(found.values[known], targets.values[known])
    others = np.setdiff1d(np.arange(N), known)
    is_estimated = found.values[others] >= 0
    assert is_estimated.mean() == pytest.approx(0.7, abs=0.01)
    assert found.share == pytest.approx(0.05 + 0.95 * 0.7, abs=0.01)
    x = StandardScaler().fit(scaler.scaled(rows[known])).transform(scaler.scaled(rows))
    expected = RidgeClassifierCV(10.0 ** np.arange(-2, 5)).fit(x[known], classes[known]).predict(x[others])
    assert (found.values[others] == expected)[is_estimated].mean() > 0.98
    right = found.values[others] == classes[others]
    assert right[is_estimated].mean() > (expected == classes[others]).mean() + 0.03  # confident rows are easier
    assert found.head == targets.head
    one_class = replace(targets, values=np.where(targets.values == 1, 1, -1).astype(np.float32))
    for unsuitable in (one_class, replace(targets, share=0.2), replace(targets, head=Head("numbers", 1))):
        assert estimate(rows, scaler, unsuitable) is unsuitable


def test_rows_that_are_left_out_have_no_influence() -> None:
    rows, classes, scaler = clusters()
    known = np.arange(0, N, 10)
    left_out = np.arange(3, N, 4)
    trained_on = np.setdiff1d(np.arange(N), left_out)
    changed = rows.copy()
    changed[left_out] = np.nan
    other_classes = classes.copy()
    other_classes[left_out] = 2
    for max_rows in (N, 30):
        found = estimate(rows, scaler, targets_of(classes, known), left_out, max_rows)
        again = estimate(changed, scaler, targets_of(other_classes, known), left_out, max_rows)
        np.testing.assert_array_equal(found.values[trained_on], again.values[trained_on])
    without_target = np.setdiff1d(left_out, known)
    assert (found.values[without_target] == -1).all()
