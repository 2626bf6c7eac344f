"""Tests of initial parameters: random as published, or set so that the network reconstructs rows as components do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress.training.components import Components, principal_components
from shardpress.training.start import start_of
from shardpress_kernels.network import Network
from tests.support.cases import each

N_INPUTS = 12
ROUNDING = 5e-4  # of initial weights that are components
CHAINS = [(), (6,), (8,), (7, 9), (6, 6, 10)]
NETWORKS = [
    Network((N_INPUTS, *hidden, 3), activation, code, gain)
    for hidden in CHAINS
    for activation in ("relu", "leaky-relu")
    for code in ("linear", "sigmoid")
    for gain in (False, True)
]


@pytest.fixture
def x() -> np.ndarray:
    """Return scaled rows, far from 0, that differ in all directions."""
    rng = np.random.default_rng(0)
    return (0.5 + 0.05 * rng.normal(size=(500, N_INPUTS)) @ rng.normal(size=(N_INPUTS, N_INPUTS))).astype(np.float32)


def components_of(x: np.ndarray, k: int = 3) -> Components:
    return principal_components(x, k, np.random.default_rng(7))


def started_model(network: Network, mean: np.ndarray | None, components: Components | None = None) -> Model:
    """Return a model with initial parameters that takes scaled rows."""
    found = start_of(network, np.random.default_rng(1), mean, components)
    assert {name: array.shape for name, array in found.items()} == network.shapes
    parameters = {name: array.astype(np.float32) for name, array in found.items()}
    return Model(Scaler(np.zeros(N_INPUTS), np.ones(N_INPUTS)), network, parameters)


@each("network", NETWORKS)
def test_the_mean_row_starts_as_its_own_reconstruction(network, x):
    without_mean = start_of(network, np.random.default_rng(1), None)
    assert not any(array.any() for name, array in without_mean.items() if name.startswith("b_"))
    mean = x.mean(axis=0, dtype=np.float64)
    for components in (None, components_of(x)):
        model = started_model(network, mean, components)
        row = mean[None].astype(np.float32)
        features = model.encode(row)
        np.testing.assert_allclose(features, np.full((1, 3), network.center), atol=1e-5)
        np.testing.assert_allclose(model.decode(features), row, atol=1e-5)


@each("network", NETWORKS)
def test_features_start_as_components_for_any_layers(network, x):
    components = components_of(x)
    model = started_model(network, None, components)
    features = model.encode(x)
    found = model.decode(features)
    expected_features = (x - components.mean) @ components.components
    expected = components.mean + expected_features @ components.components.T
    if network.code == "linear":
        np.testing.assert_allclose(found, expected, atol=ROUNDING)
        np.testing.assert_allclose(features, expected_features, atol=ROUNDING)
        return
    least = np.mean((expected - x) ** 2)
    assert np.mean((found - x) ** 2) < least * (1.005 if network.gain else 1.05)
    assert np.abs(features - 0.5).max() < (0.3 if network.gain else 0.5), "no unit is saturated"


@each("network", NETWORKS)
def test_rounding_of_components_does_not_change_the_start(network, x):
    constant = x.copy()
    constant[:, 2] = 0.5
    components = components_of(constant)
    noise = 1e-12 * np.random.default_rng(3).normal(size=components.components.shape)
    others = replace(components, components=components.components + noise)
    first, other = (started_model(network, None, found).parameters for found in (components, others))
    for name, array in first.items():
        assert array.tobytes() == other[name].tobytes(), name
