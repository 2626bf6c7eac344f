"""Tests of the detection of dead, saturated and duplicate features."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.training import verdict
from shardpress.training.verdict import _Units, count_units


def random_features(n_rows: int, n_features: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, (n_rows, n_features)).astype(np.float32)


def test_varying_features_are_not_counted() -> None:
    assert count_units(random_features(200, 10), "sigmoid") == _Units(200, 10, 0, 0, 0, 0.0)


def test_a_dead_feature_hardly_varies_compared_with_the_others() -> None:
    features = random_features(200, 5)
    features[:, 1] = 0.7
    features[:, 3] = 0.5 + 1e-4 * (features[:, 3] - 0.5)
    assert count_units(features, "sigmoid").dead == 2
    assert count_units(1000 * features, "linear").dead == 2, "the scale of a linear code does not matter"
    assert count_units(np.full((50, 3), 0.5, dtype=np.float32), "sigmoid").dead == 3


def test_a_saturated_feature_is_extreme_for_most_rows() -> None:
    features = random_features(200, 4)
    features[:99, 0] = 0.001  # almost half
    features[:101, 1] = 0.995
    features[:60, 2] = 0.001
    features[60:120, 2] = 0.999
    found = count_units(features, "sigmoid")
    assert (found.saturated, found.saturated_share) == (2, pytest.approx((99 + 101 + 120) / 800))
    linear = count_units(features, "linear")
    assert (linear.saturated, linear.saturated_share) == (0, 0)


@pytest.mark.parametrize("n_compared", [1, 3, 256])
def test_a_duplicate_repeats_an_earlier_feature(monkeypatch: pytest.MonkeyPatch, n_compared: int) -> None:
    monkeypatch.setattr(verdict, "_COMPARED", n_compared)
    features = random_features(200, 8)
    features[:, 2] = 0.3 + features[:, 0] / 2
    features[:, 3] = 1 - features[:, 0]  # equal to the previous one up to the sign
    features[:, 7] = features[:, 6]
    features[:, 5] = 0.5  # dead features are all equal, but count only as dead
    found = count_units(features, "sigmoid")
    assert (found.duplicate, found.dead) == (3, 1)
