"""Tests of the NumPy reference of all networks, against explicit formulas and finite differences."""

import numpy as np
import pytest

from shardpress_kernels.network import Network
from tests.support import reference
from tests.support.cases import each
from tests.support.networks import NETWORKS, random_parameters


def float64_parameters(rng, network):
    return {name: array.astype(np.float64) for name, array in random_parameters(rng, network).items()}


def cost(network, x, corrupted, parameters):
    """Return the mean squared difference between rows and their reconstruction from `corrupted`."""
    return np.mean((reference.forward(network, corrupted, parameters)[1][0] - x) ** 2)


def differences(network, x, corrupted, parameters, width=1e-6):
    """Return central finite differences of the cost for each entry; no unit crosses a kink because `width` is small."""
    found = {name: np.zeros_like(array) for name, array in parameters.items()}
    for name, array in parameters.items():
        for i in np.ndindex(array.shape):
            value = array[i]
            array[i] = value + width
            above = cost(network, x, corrupted, parameters)
            array[i] = value - width
            found[name][i] = (above - cost(network, x, corrupted, parameters)) / (2 * width)
            array[i] = value
    return found


@each("name", NETWORKS)
@each("corruption", [0.0, 0.3])
def test_gradients_of_every_option_equal_finite_differences(rng, name, corruption):
    network = NETWORKS[name]
    x = rng.random((9, 7))
    corrupted = reference.masked(x, rng.integers(0, 256, x.shape, dtype=np.uint8), corruption)
    p = float64_parameters(rng, network)
    found_cost, gradients = reference.gradients(network, x, corrupted, p)
    assert found_cost == pytest.approx(cost(network, x, corrupted, p), rel=1e-12)
    for gradient, expected in zip(gradients, differences(network, x, corrupted, p).values(), strict=True):
        assert gradient.shape == expected.shape
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8 * max(1, np.abs(expected).max()))
        assert expected.any()  # every parameter affects the cost


def test_one_layer_equals_its_formulas(rng):
    network = Network((7, 3))
    x = rng.random((5, 7))
    p = float64_parameters(rng, network)
    h = 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))
    np.testing.assert_array_equal(reference.code(network, x, p), h)
    y = h @ p["W"].T + p["b_output"]
    np.testing.assert_array_equal(reference.row_errors(network, x, p), np.mean((y - x) ** 2, axis=1))


def test_stacked_layers_and_their_decoder_equal_their_formulas(rng):
    # The formulas of leaky units, a linear code and the gain are written out.
    network = Network((7, 6, 3), "leaky-relu", "linear", gain=True)
    x = rng.random((5, 7))
    p = float64_parameters(rng, network)

    def leaky(z):
        return np.maximum(z, 0) + 0.1 * np.minimum(z, 0)

    hidden = leaky(x @ p["W_1"] + p["b_hidden_1"])
    h = hidden @ p["W_2"] + p["b_hidden_2"]
    back = leaky((h * p["gain"]) @ p["W_2"].T + p["b_output_2"])
    y = back @ p["W_1"].T + p["b_output_1"]
    a, s = reference.forward(network, x, p)
    for found, expected in zip([*a, *s], [x, hidden, h, y, back, h * p["gain"]], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_gain_of_one_shifts_the_reconstruction_by_half_a_weight(rng):
    plain = Network((7, 3))
    with_gain = Network((7, 3), gain=True)
    x = rng.random((5, 7))
    p = float64_parameters(rng, plain)
    _, (y, _) = reference.forward(plain, x, p)
    _, (z, _) = reference.forward(with_gain, x, {**p, "gain": np.ones(3)})
    np.testing.assert_allclose(z, y - p["W"].sum(axis=1) / 2, rtol=1e-12)


def test_parameters_can_be_given_in_order_or_by_name(rng):
    for network in NETWORKS.values():
        x = rng.random((5, 7))
        p = float64_parameters(rng, network)
        by_name, in_order = (reference.gradients(network, x, x, given) for given in (p, list(p.values())))
        for found, expected in zip(by_name[1], in_order[1], strict=True):
            np.testing.assert_array_equal(found, expected)


@each("corruption, n_hidden", [(0.0, 0), (1 / 256, 1), (0.25, 64), (0.5, 128), (1.0, 256)])
def test_number_of_masking_noise_values_follows_the_corruption(corruption, n_hidden):
    noise = np.arange(256, dtype=np.uint8)[None]
    x = np.full((1, 256), 7.0)
    corrupted = reference.masked(x, noise, corruption)
    np.testing.assert_array_equal(corrupted[0] == 0, np.arange(256) < n_hidden)
    assert set(corrupted.ravel()) <= {0.0, 7.0}
