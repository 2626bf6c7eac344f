"""Tests of the NumPy reference of all networks, against explicit formulas and finite differences."""

import numpy as np

from shardpress_kernels.hostmath import activated, target_losses
from shardpress_kernels.network import Head, Network, TargetLoss
from tests.support import reference
from tests.support.cases import case, each
from tests.support.networks import NETWORKS, random_parameters

LOSS = TargetLoss(weight=0.3, scale=2.5)
# All networks have 7 columns.
WITH_HEAD = {
    "hidden classes": Network((7, 8, 3), "leaky-relu", gain=True, head=Head("classes", 2)),
    "hidden numbers": Network((7, 8, 5, 3), "leaky-relu", head=Head("numbers", 1)),
}
NESTED = {
    "nested gain": Network((7, 5), gain=True, nested=True),
    "nested deep": Network((7, 8, 5), "leaky-relu", "linear", nested=True, head=Head("classes", 3)),
}


def float64_parameters(rng, network):
    return {name: array.astype(np.float64) for name, array in random_parameters(rng, network).items()}


def loss_of(outputs, target):
    """Return the loss of one row, as `shardpress_kernels.network` defines it."""
    if len(outputs) == 1:
        return 0 if np.isnan(target) else (outputs[0] - target) ** 2 / 2
    return 0 if target < 0 else -np.log(np.exp(outputs[int(target)]) / np.exp(outputs).sum())


def cost(network, x, visible, p, targets, kept):
    """Return the squared error of rows and the weighted loss of their targets, row by row."""
    total = 0.0
    for row, code, target, n in zip(x, visible, targets, kept, strict=True):
        for (W, b_hidden, _), kind in zip(network.layers, network.activations, strict=True):
            code = activated(kind, code @ p[W] + p[b_hidden])
        s = (code - network.center) * p["gain"] if network.gain else code.copy()
        s[n:] = 0
        for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s = activated(kind, p[W] @ s + p[b_output])
        total += np.mean((s - row) ** 2) / len(x)
        if network.head is not None:
            total += LOSS.weight * loss_of(LOSS.scale * (code @ p["W_head"] + p["b_head"]), target) / len(x)
    return total


def slopes(cost_of, parameters, width=1e-6):
    """Return central finite differences; no unit crosses a kink because `width` is small."""
    found = {name: np.zeros_like(array) for name, array in parameters.items()}
    for name, array in parameters.items():
        for i in np.ndindex(array.shape):
            value = array[i]
            array[i] = value + width
            above = cost_of(parameters)
            array[i] = value - width
            found[name][i] = (above - cost_of(parameters)) / (2 * width)
            array[i] = value
    return found


@each("name, network", (NETWORKS | WITH_HEAD | NESTED).items())
def test_cost_and_gradients_equal_loops_and_finite_differences(rng, name, network):
    x = rng.random((9, 7))
    visible = reference.masked(x, rng.integers(0, 256, x.shape, dtype=np.uint8), 0.3)
    p = float64_parameters(rng, network)
    values = np.array([0, 1, 1, 0, 1, 0, 1, 1, 0], np.float32)
    values[3] = np.nan if network.head is not None and network.head.kind == "numbers" else -1
    kept = np.full(9, network.n_features)
    if network.nested:
        kept[:6] = range(6)
    targets = None if network.head is None else reference.Targets(values, LOSS)
    error, gradients = reference.gradients(network, x, visible, p, targets, kept if network.nested else None)
    if network.head is None:  # otherwise the cost includes the loss of the targets
        np.testing.assert_allclose(error, cost(network, x, visible, p, values, kept), rtol=1e-12)
    expected = slopes(lambda parameters: cost(network, x, visible, parameters, values, kept), p)
    for gradient, (parameter, slope) in zip(gradients, expected.items(), strict=True):
        with case(name, parameter):
            np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-8 * max(1, np.abs(slope).max()))
            assert slope.any()  # every parameter affects the cost


@each("corruption, n_hidden", [(0.0, 0), (1 / 256, 1), (0.25, 64), (1.0, 256)])
def test_number_of_masking_noise_values_follows_the_corruption(corruption, n_hidden):
    noise = np.arange(256, dtype=np.uint8)[None]
    corrupted = reference.masked(np.full((1, 256), 7.0), noise, corruption)
    np.testing.assert_array_equal(corrupted[0], np.where(np.arange(256) < n_hidden, 0.0, 7.0))


@each("head", [Head("classes", 4), Head("numbers", 1)])
def test_losses_equal_their_formulas_and_do_not_overflow(rng, head):
    targets = rng.integers(0, head.n_outputs, 50).astype(np.float32)
    targets[::3] = -1 if head.kind == "classes" else np.nan
    z = rng.normal(size=(50, head.n_outputs))
    expected = [loss_of(outputs, target) for outputs, target in zip(z, targets, strict=True)]
    np.testing.assert_allclose(target_losses(head, z, targets), expected, rtol=1e-12, atol=1e-15)
    assert np.isfinite(target_losses(head, 1e4 * z, targets)).all()
    assert np.isfinite(reference.head_errors(head, 1e4 * z, targets)).all()
