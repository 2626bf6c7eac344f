"""Tests of nested networks: the decoder gets only the first features of some rows in training."""

import numpy as np
import pytest

from shardpress_kernels import graph
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.hostmath import activated
from shardpress_kernels.network import Head, Network, TargetLoss
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.cases import case, each
from tests.support.networks import random_parameters
from tests.support.steps import forget
from tests.support.tolerances import assert_close

LOSS = TargetLoss(weight=0.3, scale=2.0)
SMALL = {
    "linear": Network((7, 5), code="linear", nested=True),
    "gain": Network((7, 5), gain=True, nested=True),
    "deep": Network((7, 8, 5), "leaky-relu", "linear", nested=True, head=Head("classes", 3)),
}
# Numbers of features below and above the width of a tile and of a strip.
LARGE = [
    Network((65, 33), code="linear", nested=True),
    Network((40, 70, 17), "relu", "linear", gain=True, nested=True, head=Head("numbers", 1)),
    Network((230, 210), code="linear", nested=True),
]
HEIGHTS = [1, 5, 6, 25, 97, 259]


@pytest.fixture
def rng():
    return np.random.default_rng(20240317)


def kept_of(rng, network, n_rows):
    """Return numbers of features, including none and all."""
    return rng.integers(0, network.n_features + 1, n_rows).astype(np.float32)


def targets_of(rng, network, n_rows):
    if network.head is None:
        return None
    if network.head.kind == "numbers":
        return rng.normal(size=n_rows).astype(np.float32)
    return rng.integers(-1, network.head.n_outputs, n_rows).astype(np.float32)


def for_reference(targets):
    return None if targets is None else reference.Targets(targets, LOSS)


def float64(parameters):
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def error(network, x, p, kept):
    """Return the mean squared error of rows whose last features are replaced row by row."""
    h = reference.code(network, x, p)
    total = 0.0
    for row, code, n in zip(x, h, kept, strict=True):
        s = (code - network.center) * p["gain"] if network.gain else code.copy()
        s[int(n) :] = 0
        for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s = activated(kind, p[W] @ s + p[b_output])
        total += np.sum((s - row) ** 2)
    return total / x.size


@each("name", ["linear", "gain"])
def test_gradients_equal_finite_differences(rng, name):
    network = SMALL[name]
    x = rng.random((9, 7))
    kept = kept_of(rng, network, 9)
    p = float64(random_parameters(rng, network))
    found, gradients = reference.gradients(network, x, x, p, kept=kept)
    assert found == pytest.approx(error(network, x, p, kept), rel=1e-12)
    for (parameter, array), gradient in zip(p.items(), gradients, strict=True):
        for i in np.ndindex(array.shape):
            with case(parameter, i):
                value = array[i]
                array[i] = value + 1e-6
                above = error(network, x, p, kept)
                array[i] = value - 1e-6
                slope = (above - error(network, x, p, kept)) / 2e-6
                array[i] = value
                assert gradient[i] == pytest.approx(slope, rel=0, abs=1e-7)


def test_all_features_give_the_gradients_of_a_plain_network(rng):
    network = SMALL["deep"]
    x = rng.random((9, 7))
    p = float64(random_parameters(rng, network))
    targets = for_reference(targets_of(rng, network, 9))
    nested = reference.gradients(network, x, x, p, targets, np.full(9, 5))
    plain = reference.gradients(network, x, x, p, targets)
    assert nested[0] == plain[0]
    for found, expected in zip(nested[1], plain[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert network.encoder == Network((7, 8, 5), "leaky-relu", "linear")


@pytest.mark.compiler
@pytest.mark.process
@each("name", SMALL)
def test_the_graph_equals_the_reference_in_float32_throughout(rng, name):
    network = SMALL[name]
    autoencoder = Autoencoder(network)
    autoencoder.set_parameters(random_parameters(rng, network))
    rows = theano.tensor.fmatrix()
    values = theano.tensor.fvector()
    numbers = theano.tensor.fvector()
    targets = None
    if network.head is not None:
        targets = graph.Targets(values, np.float32(LOSS.weight * LOSS.scale * 7 / 2), np.float32(LOSS.scale))
    found = graph.error_and_gradients(network, rows, rows, autoencoder.shared, targets=targets, kept=numbers)
    outputs = [found[0], *found[1]]
    types = {variable.dtype for variable in theano.gof.graph.ancestors(outputs) if variable.ndim}
    assert "float64" not in types
    x = rng.random((11, 7), dtype=np.float32)
    t = targets_of(rng, network, 11)
    kept = kept_of(rng, network, 11)
    function = theano.function([rows, values, numbers], outputs, on_unused_input="ignore")
    error_found, *gradients = function(x, np.zeros(11, np.float32) if t is None else t, kept)
    p = float64(autoencoder.parameters())
    expected_error, expected = reference.gradients(network, x, x, p, for_reference(t), kept)
    assert_close(error_found, expected_error, "cpu", "float32", "cost")
    for array, gradient in zip(gradients, expected, strict=True):
        assert_close(array, gradient, "cpu", "float32", "gradients")


@pytest.mark.compiler
@each("network", LARGE)
def test_a_step_equals_numpy_at_tile_edges(rng, network):
    shapes = network.shapes.items()
    parameters = {name: rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32) for name, shape in shapes}
    zeros = np.zeros(network.n_inputs, np.float32)
    autoencoder = Autoencoder(network, zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255))
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"), loss=LOSS)
    for n_rows in HEIGHTS:
        with case(n_rows):
            rows = rng.integers(0, 256, (n_rows, network.n_inputs)).astype(np.float32)
            targets = targets_of(rng, network, n_rows)
            kept = kept_of(rng, network, n_rows)
            autoencoder.set_parameters(parameters)
            forget(step)
            step.begin(rows, None, n_rows, targets, kept)
            found_error = step.take([-1.0], with_cost=True)
            x = rows / 255
            expected_error, gradients = reference.gradients(
                network, x, x, float64(parameters), for_reference(targets), kept
            )
            assert_close(found_error, expected_error, "cpu", "float32", "cost")
            # In the first step at a rate of -1, the velocity is the gradient.
            for found, expected in zip(step.state().values(), gradients, strict=True):
                assert_close(found, expected, "cpu", "float32", "gradients")
    empty = np.zeros((4, network.n_inputs), np.float32)
    targets = targets_of(rng, network, 4)
    with pytest.raises(ValueError, match="kept"):
        step.begin(empty, None, 4, targets)
    for wrong in (np.zeros(3, np.float32), np.full(4, np.nan, np.float32)):
        step.begin(empty, None, 4, targets, wrong)
        with pytest.raises(ValueError, match=r"kept|keeps"):
            step.take([0.1])
