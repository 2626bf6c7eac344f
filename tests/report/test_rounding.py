"""Tests of the allowed rounding error: float32 never exceeds it in any order of summation, and it is small."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress.report.recompute import _error_bound, _rounding_bound
from shardpress_kernels.network import Network
from tests.support.cases import each

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

NETWORKS = [
    Network((784, 64)),
    Network((784, 8), code="linear"),
    Network((50, 512, 16), gain=True),
    Network((300, 40, 30, 20), "leaky-relu", "linear"),
    Network((20000, 3)),
]


def model_of(network: Network, rng: np.random.Generator) -> Model:
    sizes = {name: rng.choice([0.1, 1, 3]) / np.sqrt(shape[0]) for name, shape in network.shapes.items()}
    parameters = {name: (rng.normal(size=network.shapes[name]) * sizes[name]).astype(np.float32) for name in sizes}
    low = rng.normal(size=network.n_inputs)
    return Model(Scaler(low, low + rng.uniform(1, 2, network.n_inputs)), network, parameters)


def encode_in_one_chain(model: Model, rows: np.ndarray) -> np.ndarray:
    """Return float32 features whose sums add one term after another, which is the least accurate order."""
    a = model.scaler.transform(rows)
    for (weights, bias, _), kind in zip(model.network.layers, model.network.activations, strict=True):
        W = model.parameters[weights]
        z = np.stack([np.cumsum(row[:, None] * W, axis=0, dtype=np.float32)[-1] for row in a]) + model.parameters[bias]
        slope = {"relu": 0.0, "leaky-relu": 0.1}.get(kind, 1.0)
        a = 1 / (1 + np.exp(-z)) if kind == "sigmoid" else np.where(z > 0, z, np.float32(slope) * z)
    return a


@each("network", NETWORKS)
def test_float32_in_any_order_stays_within_tight_bounds(network: Network) -> None:
    """Rows are inside, at the end of and outside the range of the model."""
    rng = np.random.default_rng(network.n_inputs)
    model = model_of(network, rng)
    rows = model.scaler.minimum + rng.uniform(-0.5, 1.5, (20, network.n_inputs))
    rows[0] = model.scaler.maximum
    rows[1, 1:] = model.scaler.minimum[1:]
    features = model.encode(rows)
    of_features = _rounding_bound(model, rows)
    assert (np.abs(encode_in_one_chain(model, rows) - features) < of_features / 2).all()
    assert (of_features < 1e-2 * np.maximum(1, np.abs(features).max())).all()
    model.parameters[network.layers[0][2]][:] = 0.5  # near the middle of the rows
    expected = model.row_errors(rows, features)
    assert (_error_bound(model, rows, features, of_features) < 1e-2 * expected).all()


def test_bounds_are_infinite_where_float32_overflows() -> None:
    model = model_of(Network((5, 3), code="linear"), np.random.default_rng(0))
    rows = np.array([[1.0] * 5, [1e30] * 5, [1e300] * 5])
    allowed = _error_bound(model, rows, np.zeros((3, 3)), np.zeros((3, 3)))
    assert np.isfinite(allowed).tolist() == [True, False, False]
    assert np.isfinite(_rounding_bound(model, rows)).all(axis=1).tolist() == [True, False, False]
