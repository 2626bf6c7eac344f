"""Tests of similarity measures on features that are rotated, permuted, scaled or random."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.report.compare import _likeness, _linear_cka, _neighbour_overlap

RNG = np.random.default_rng(0)
A = RNG.normal(size=(300, 6)) * [3, 2, 2, 1, 1, 0.5] + RNG.normal(size=6)
ROTATION = np.linalg.qr(RNG.normal(size=(6, 6)))[0]


def test_identical_features_are_fully_similar() -> None:
    found = _likeness(A, A)
    assert (found.change, found.neighbours) == (0, 1)
    np.testing.assert_allclose(found.cka, 1)


def test_alignment_and_neighbours_are_invariant_to_rotation() -> None:
    found = _likeness(A, 3 * A @ ROTATION + 1)
    np.testing.assert_allclose(found.cka, 1)
    assert found.neighbours > 0.999  # except for equal distances
    assert found.change is not None
    assert found.change > 1


def test_alignment_equals_its_definition_by_kernels() -> None:
    """Kornblith et al. define CKA as HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = A A' and L = B B'."""
    B = np.tanh(A @ RNG.normal(size=(6, 9)))
    center = np.eye(len(A)) - 1 / len(A)
    K, L = (center @ each @ each.T @ center for each in (A, B))
    np.testing.assert_allclose(_linear_cka(A, B), (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))


def test_neighbours_equal_the_result_of_a_loop() -> None:
    B = A + RNG.normal(size=A.shape)
    shared = 0
    for i in range(len(A)):
        neighbours = [set(np.argsort(np.linalg.norm(each - each[i], axis=1))[1:11]) for each in (A, B)]
        shared += len(neighbours[0] & neighbours[1])
    np.testing.assert_allclose(_neighbour_overlap(A, B), shared / (10 * len(A)))


def test_change_is_relative_to_the_variation_of_each_column() -> None:
    B = A + RNG.normal(size=A.shape) / 10
    scale = np.array([1, 2, 0.5, 3, 1, 0.7])
    np.testing.assert_allclose(_likeness(A * scale, B * scale).change, _likeness(A, B).change)
    noise = RNG.normal(size=A.shape)
    np.testing.assert_allclose(_likeness(A, A + 0.1 * A.std(axis=0) * noise).change, 0.1, rtol=0.1)
    dead = np.hstack([A, np.full((len(A), 1), 0.5)])
    found = _likeness(dead, dead + 1e-4 * (np.arange(7) == 6)).change
    assert found is not None
    assert 0 < found < 0.005  # the change of a constant unit


def test_random_features_are_dissimilar() -> None:
    found = _likeness(A, RNG.normal(size=(300, 6)))
    assert found.cka < 0.1
    assert found.neighbours < 0.1


@pytest.mark.parametrize("n_rows", [2, 3])
def test_few_rows_and_constant_units_give_finite_numbers(n_rows: int) -> None:
    a = A[:n_rows].copy()
    a[:, 2] = 0.25
    for b in (a, np.ones((n_rows, 3)), A[:n_rows]):
        found = _likeness(a, b)
        assert np.isfinite([found.cka, found.neighbours]).all()
    assert _likeness(np.ones((n_rows, 3)), np.ones((n_rows, 3))).change == 0
