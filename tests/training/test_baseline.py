"""Tests of baselines: the errors of principal components and of the mean, and the warning if features are worse."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.scan.scaler import Scaler
from shardpress.training import components
from shardpress.training.components import Baseline, baseline_of, principal_components


def test_baseline_errors_equal_those_of_reconstructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_BLOCK_BYTES", 8 * 6 * 7)
    rng = np.random.default_rng(0)
    trained, validation = (rng.integers(0, 256, (n, 6)).astype(np.uint8) for n in (80, 31))
    scaler = Scaler(np.zeros(6), np.full(6, 255.0))
    found = principal_components(scaler.transform(trained), 2, rng)
    baseline = baseline_of(found, validation, scaler)
    x = validation / 255
    mean = (trained / 255).mean(axis=0)
    back = mean + (x - mean) @ found.components @ found.components.T
    np.testing.assert_allclose(baseline.components, np.square(x - back).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(baseline.mean, np.square(x - mean).mean(axis=1), rtol=1e-5)
    assert baseline.n_components == 2


def test_errors_of_exact_reconstructions_are_not_negative() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((50, 2)) @ rng.random((2, 9)) / 2).astype(np.float32)
    scaler = Scaler(np.zeros(9), np.ones(9))
    errors = baseline_of(principal_components(rows, 3, rng), rows, scaler).components
    assert (errors >= 0).all()
    assert errors.max() < 1e-12


def is_worse(baseline: Baseline, errors: np.ndarray) -> bool:
    return bool(baseline.comparison(errors.astype(np.float32))["is_worse"])


def test_worse_means_significant_and_more_than_one_percent() -> None:
    rng = np.random.default_rng(1)
    for n_rows, share, worse in [(3000, 1.005, False), (3000, 1.05, True), (3000, 0.9, False), (9, 1.05, False)]:
        errors = rng.uniform(0.5, 1.5, n_rows)
        noise = rng.normal(0, 0.2, n_rows)
        noise -= noise.mean()
        baseline = Baseline(4, errors, 10 * errors)
        assert is_worse(baseline, share * errors + noise) == worse, (n_rows, share)
    whole = Baseline(4, np.full(3000, 1e-9), np.ones(3000))
    assert not is_worse(whole, np.full(3000, 1e-4)), "both are negligible"
    few = Baseline(4, np.ones(9), np.full(9, 10.0))
    assert is_worse(few, np.full(9, 3.0)), "with few rows, only if all of them agree"


def test_plain_values_hold_both_errors() -> None:
    comparison = Baseline(4, np.array([1.0, 3.0]), np.array([5.0, 7.0])).comparison(
        np.array([2.0, 2.0], dtype=np.float32)
    )
    assert comparison == {"n_components": 4, "components": 2.0, "mean": 6.0, "is_worse": False}
