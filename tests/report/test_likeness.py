"""Tests of similarity measures on features that are rotated, scaled or random, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.report.compare import _likeness
from tests.support.cases import each

RNG = np.random.default_rng(0)
A = RNG.normal(size=(300, 6)) * [3, 2, 2, 1, 1, 0.5] + RNG.normal(size=6)
ROTATION = np.linalg.qr(RNG.normal(size=(6, 6)))[0]


def test_identical_features_are_similar_and_random_ones_are_not() -> None:
    same = _likeness(A, A)
    assert (same.change, same.neighbours, same.cka) == (0, 1, pytest.approx(1))
    random = _likeness(A, RNG.normal(size=(300, 6)))
    assert max(random.cka, random.neighbours) < 0.1


def test_alignment_and_neighbours_are_invariant_to_rotation() -> None:
    found = _likeness(A, 3 * A @ ROTATION + 1)
    assert found.cka == pytest.approx(1)
    assert found.neighbours > 0.999  # except for equal distances
    assert found.change is not None
    assert found.change > 1


def test_alignment_and_neighbours_equal_their_definitions() -> None:
    """Kornblith et al. define CKA as HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = A A' and L = B B'."""
    B = np.tanh(A @ RNG.normal(size=(6, 9))) + RNG.normal(size=(300, 9)) / 4
    center = np.eye(len(A)) - 1 / len(A)
    K, L = (center @ each @ each.T @ center for each in (A, B))
    shared = 0
    for i in range(len(A)):
        neighbours = [set(np.argsort(np.linalg.norm(each - each[i], axis=1))[1:11]) for each in (A, B)]
        shared += len(neighbours[0] & neighbours[1])
    found = _likeness(A, B)
    assert found.cka == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))
    assert found.neighbours == pytest.approx(shared / (10 * len(A)))


def test_change_is_relative_to_the_variation_of_each_column() -> None:
    B = A + 0.1 * A.std(axis=0) * RNG.normal(size=A.shape)
    scale = np.array([1, 2, 0.5, 3, 1, 0.7])
    assert _likeness(A, B).change == pytest.approx(0.1, rel=0.1)
    assert _likeness(A * scale, B * scale).change == pytest.approx(_likeness(A, B).change)
    dead = np.hstack([A, np.full((len(A), 1), 0.5)])
    found = _likeness(dead, dead + 1e-4 * (np.arange(7) == 6)).change
    assert found is not None
    assert 0 < found < 0.005  # the change of a constant unit


@each("n_rows", [2, 3])
def test_few_rows_and_constant_units_give_finite_numbers(n_rows: int) -> None:
    a = A[:n_rows].copy()
    a[:, 2] = 0.25
    for b in (a, np.ones((n_rows, 3)), A[:n_rows]):
        found = _likeness(a, b)
        assert np.isfinite([found.cka, found.neighbours]).all()
    assert _likeness(np.ones((n_rows, 3)), np.ones((n_rows, 3))).change == 0
