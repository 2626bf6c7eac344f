"""Tests of a fitted model applied without Theano: the estimator's results equal the formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress.interop import applying
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.model import Model
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network

pytestmark = pytest.mark.process

NETWORK = Network((5, 2), code="linear")
MINIMUM = np.array([-3.0, 0.0, 5.0, 100.0, -1.0])
MAXIMUM = np.array([-1.0, 8.0, 6.0, 300.0, 1.0])


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TiedAutoencoder:
    """Return an estimator with random parameters."""
    monkeypatch.setattr(applying, "has_theano", lambda: False)
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in NETWORK.shapes.items()}
    model = Model(Scaler(MINIMUM, MAXIMUM), NETWORK, parameters)
    (tmp_path / "model.h5").write_bytes(model.to_hdf5())
    return TiedAutoencoder.from_run(tmp_path / "model.h5")


def some_rows() -> np.ndarray:
    return MINIMUM + np.random.default_rng(1).random((20, 5)) * (MAXIMUM - MINIMUM)


def test_scores_are_negative_mean_squared_errors(fitted: TiedAutoencoder) -> None:
    rows = some_rows()
    scaled = (rows - MINIMUM) / (MAXIMUM - MINIMUM)
    W, b_hidden, b_output = (fitted.model_.parameters[name].astype(float) for name in ("W", "b_hidden", "b_output"))
    reconstruction = (scaled @ W + b_hidden) @ W.T + b_output
    errors = np.mean((scaled - reconstruction) ** 2, axis=1)
    np.testing.assert_allclose(fitted.score_samples(rows), -errors, rtol=1e-5)
    assert fitted.score(rows) == pytest.approx(-errors.mean(), rel=1e-5)


def test_decoded_features_are_rows_in_original_units(fitted: TiedAutoencoder) -> None:
    features = fitted.transform(some_rows())
    W, b_output = (fitted.model_.parameters[name].astype(float) for name in ("W", "b_output"))
    expected = MINIMUM + (features.astype(float) @ W.T + b_output) * (MAXIMUM - MINIMUM)
    np.testing.assert_allclose(fitted.inverse_transform(features), expected, rtol=1e-6)
