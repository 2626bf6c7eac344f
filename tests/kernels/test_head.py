"""Tests of networks with a head, against finite differences and the NumPy reference."""

import numpy as np
import pytest

from shardpress_kernels import graph
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.hostmath import target_losses
from shardpress_kernels.network import Head, Network, TargetLoss
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.cases import case, each
from tests.support.networks import random_parameters
from tests.support.steps import forget
from tests.support.tolerances import assert_close

SMALL = {
    "classes": Network((7, 3), head=Head("classes", 4)),
    "numbers": Network((7, 3), code="linear", gain=True, head=Head("numbers", 1)),
    "hidden classes": Network((7, 8, 3), "leaky-relu", gain=True, head=Head("classes", 2)),
    "hidden numbers": Network((7, 8, 5, 3), head=Head("numbers", 1)),
}
# Numbers of outputs below and above the width of a tile and of a strip, and numbers of features above 512.
LARGE = [
    Network((65, 33), gain=True, head=Head("classes", 10)),
    Network((40, 70, 17), "relu", "linear", head=Head("classes", 65)),
    Network((30, 530, 520), head=Head("classes", 300)),
    Network((64, 20), gain=True, head=Head("numbers", 1)),
]
HEIGHTS = [1, 5, 6, 25, 97, 259, 600]
LOSS = TargetLoss(weight=0.3, scale=2.5)


@pytest.fixture
def rng():
    return np.random.default_rng(20240317)


def targets_of(rng, network, n_rows, missing=0.3):
    """Return targets. Some are missing."""
    is_missing = rng.random(n_rows) < missing
    if network.head.kind == "numbers":
        return np.where(is_missing, np.nan, rng.normal(size=n_rows)).astype(np.float32)
    return np.where(is_missing, -1, rng.integers(0, network.head.n_outputs, n_rows)).astype(np.float32)


def float64(parameters):
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def cost(network, x, visible, parameters, targets):
    """Return the error of the reconstruction plus the weighted mean loss, written out row by row."""
    a, s = reference.forward(network, visible, parameters)
    z = LOSS.scale * (a[-1] @ parameters["W_head"] + parameters["b_head"])
    losses = []
    for outputs, target in zip(z, targets, strict=True):
        if network.head.kind == "numbers":
            losses.append(0 if np.isnan(target) else (outputs[0] - target) ** 2 / 2)
        else:
            losses.append(0 if target < 0 else -np.log(np.exp(outputs[int(target)]) / np.exp(outputs).sum()))
    return np.mean((s[0] - x) ** 2) + LOSS.weight * np.mean(losses)


def small_model(rng, network):
    """Return parameters that are scaled so that every layer's outputs stay near 1."""
    parameters = random_parameters(rng, network)
    for name, array in parameters.items():
        if array.ndim == 2:
            array *= 2 / np.sqrt(len(array))
        assert array.shape == network.shapes[name]
    return parameters


# -- the reference -------------------------------------------------------------------------------------------------


@each("name", SMALL)
def test_gradients_equal_finite_differences(rng, name):
    network = SMALL[name]
    x = rng.random((9, 7))
    visible = reference.masked(x, rng.integers(0, 256, x.shape, dtype=np.uint8), 0.3)
    targets = targets_of(rng, network, 9)
    p = float64(random_parameters(rng, network))
    error, gradients = reference.gradients(network, x, visible, p, reference.Targets(targets, LOSS))
    assert error == pytest.approx(np.mean((reference.forward(network, visible, p)[1][0] - x) ** 2), rel=1e-12)
    for (parameter, array), gradient in zip(p.items(), gradients, strict=True):
        assert gradient.any()
        for i in np.ndindex(array.shape):
            with case(parameter, i):
                value = array[i]
                array[i] = value + 1e-6
                above = cost(network, x, visible, p, targets)
                array[i] = value - 1e-6
                slope = (above - cost(network, x, visible, p, targets)) / 2e-6
                array[i] = value
                assert gradient[i] == pytest.approx(slope, rel=0, abs=1e-7)


@each("name", SMALL)
def test_losses_are_those_of_their_formulas_and_do_not_overflow(rng, name):
    head = SMALL[name].head
    targets = targets_of(rng, SMALL[name], 50)
    z = rng.normal(size=(50, head.n_outputs))
    expected = []
    for outputs, target in zip(z, targets, strict=True):
        if head.kind == "numbers":
            expected.append(0 if np.isnan(target) else (outputs[0] - target) ** 2 / 2)
        else:
            expected.append(0 if target < 0 else -np.log(np.exp(outputs[int(target)]) / np.exp(outputs).sum()))
    np.testing.assert_allclose(target_losses(head, z, targets), expected, rtol=1e-12, atol=1e-15)
    if head.kind == "classes":
        assert np.isfinite(target_losses(head, 1e4 * z, targets)).all()
        assert np.isfinite(reference.head_errors(head, 1e4 * z, targets)).all()


def test_a_head_does_not_belong_to_the_encoder():
    network = SMALL["hidden classes"]
    assert network.encoder == Network((7, 8, 3), "leaky-relu", gain=True)
    assert list(network.shapes)[-2:] == ["W_head", "b_head"]
    assert list(network.shapes)[:-2] == list(network.encoder.shapes)


# -- the graph -----------------------------------------------------------------------------------------------------


@pytest.mark.compiler
@pytest.mark.process
@each("name", SMALL)
def test_the_graph_equals_the_reference_in_float32_throughout(rng, name):
    network = SMALL[name]
    autoencoder = Autoencoder(network)
    autoencoder.set_parameters(random_parameters(rng, network))
    p = float64(autoencoder.parameters())
    rows = theano.tensor.fmatrix()
    values = theano.tensor.fvector()
    targets = graph.Targets(values, np.float32(LOSS.weight * LOSS.scale * 7 / 2), np.float32(LOSS.scale))
    results = graph.error_and_gradients(network, rows, rows, autoencoder.shared, targets=targets)
    outputs = [results[0], *results[1]]
    types = {variable.dtype for variable in theano.gof.graph.ancestors(outputs) if variable.ndim}
    assert "float64" not in types
    x = rng.random((11, 7), dtype=np.float32)
    t = targets_of(rng, network, 11)
    error, *gradients = theano.function([rows, values], outputs)(x, t)
    expected_error, expected = reference.gradients(network, x, x, p, reference.Targets(t, LOSS))
    assert_close(error, expected_error, "cpu", "float32", "cost")
    for found, gradient in zip(gradients, expected, strict=True):
        assert_close(found, gradient, "cpu", "float32", "gradients")


# -- the Op --------------------------------------------------------------------------------------------------------


def model_of(network, parameters, n_threads=2):
    zeros = np.zeros(network.n_inputs, np.float32)
    autoencoder = Autoencoder(network, zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255))
    autoencoder.set_parameters(parameters)
    autoencoder.n_threads.set_value(np.int64(n_threads))
    assert autoencoder.uses_ops(np.dtype("f4"))
    return autoencoder


def take(step, minibatch, targets, rate, noise=None):
    step.begin(minibatch, noise, len(minibatch), targets)
    return step.take([rate], with_cost=True)


@pytest.mark.compiler
@each("network, corruption", [*((network, 0.0) for network in LARGE), (LARGE[3], 0.25)])
def test_a_step_equals_numpy_at_tile_edges(rng, network, corruption):
    parameters = small_model(rng, network)
    autoencoder = model_of(network, parameters)
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"), None, corruption, LOSS)
    for n_rows in HEIGHTS:
        with case(n_rows):
            rows = rng.integers(0, 256, (n_rows, network.n_inputs)).astype(np.float32)
            x = rows / 255
            noise = rng.integers(0, 256, rows.shape, dtype=np.uint8) if corruption else None
            visible = reference.masked(x, noise, corruption) if corruption else x
            targets = targets_of(rng, network, n_rows)
            autoencoder.set_parameters(parameters)
            forget(step)
            found_error = take(step, rows, targets, -1.0, noise)
            error, gradients = reference.gradients(
                network, x, visible, float64(parameters), reference.Targets(targets, LOSS)
            )
            assert_close(found_error, error, "cpu", "float32", "cost")
            # In the first step at a rate of -1, the velocity is the gradient.
            for found, expected in zip(step.state().values(), gradients, strict=True):
                assert_close(found, expected, "cpu", "float32", "gradients")


@pytest.mark.compiler
@each("network", LARGE[::3])
def test_threads_and_the_place_of_rows_change_no_bit(rng, network):
    parameters = small_model(rng, network)
    rows = rng.integers(0, 256, (300, network.n_inputs), dtype=np.uint8)
    minibatches = [rng.permutation(300)[:n_rows] for n_rows in (259, 7, 259)]
    targets = [targets_of(rng, network, len(numbers)) for numbers in minibatches]
    results = []
    for n_threads, resident in [(1, rows), (2, rows), (4, rows), (2, None)]:
        autoencoder = model_of(network, parameters, n_threads)
        step = TrainingStep(autoencoder, "adam", rows.dtype, resident, loss=LOSS)
        for numbers, own in zip(minibatches, targets, strict=True):
            take(step, rows[numbers] if resident is None else numbers, own, 0.01)
        results.append([*autoencoder.parameters().values(), *step.state().values()])
    for found in results[1:]:
        for array, expected in zip(found, results[0], strict=True):
            np.testing.assert_array_equal(array.view(np.uint32), expected.view(np.uint32))


@pytest.mark.compiler
def test_without_targets_the_head_has_no_influence(rng):
    network = LARGE[0]
    parameters = small_model(rng, network)
    rows = rng.integers(0, 256, (100, 65), dtype=np.uint8)
    found = []
    for each_network in (network, network.encoder):
        autoencoder = model_of(each_network, {name: parameters[name] for name in each_network.shapes})
        step = TrainingStep(autoencoder, "adam", rows.dtype, loss=LOSS)
        targets = np.full(100, -1, np.float32) if each_network.head else None
        found.append((take(step, rows, targets, 0.01), autoencoder.parameters()))
    assert found[0][0] == found[1][0]
    for name in network.encoder.shapes:
        np.testing.assert_array_equal(found[0][1][name], found[1][1][name])
    np.testing.assert_array_equal(found[0][1]["W_head"], parameters["W_head"])


@pytest.mark.compiler
def test_a_head_learns_its_targets_and_the_encoder_does_not_depend_on_it(rng):
    network = Network((20, 4), code="linear", head=Head("classes", 3))
    classes = rng.integers(0, 3, 400)
    rows = rng.integers(0, 256, (400, 20)).astype(np.float32)
    rows[:, 0] = 80 * classes
    autoencoder = model_of(network, small_model(rng, network))
    step = TrainingStep(autoencoder, "adam", rows.dtype, loss=TargetLoss(1.0, 1.0))
    for _ in range(400):
        take(step, rows, classes.astype(np.float32), 0.01)
    p = autoencoder.parameters()
    z = autoencoder.encode(rows) @ p["W_head"] + p["b_head"]
    assert (z.argmax(axis=1) == classes).mean() > 0.95
    features = autoencoder.encode(rows)
    errors = autoencoder.errors(rows)
    autoencoder.set_parameters(p | {"W_head": p["W_head"] + 1})
    np.testing.assert_array_equal(autoencoder.encode(rows), features)
    np.testing.assert_array_equal(autoencoder.errors(rows), errors)


@pytest.mark.compiler
def test_missing_and_wrong_targets_are_refused(rng):
    network = Network((5, 3), head=Head("classes", 3))
    step = TrainingStep(model_of(network, small_model(rng, network)), "adam", np.dtype("f4"), loss=LOSS)
    rows = np.zeros((4, 5), np.float32)
    for targets, words in (
        (None, "targets"),
        (np.zeros(3, np.float32), "the targets"),
        (np.array([0, 1, 3, 2], np.float32), "row 2 "),
        (np.array([np.nan, 0, 1, 2], np.float32), "row 0 "),
    ):
        with case(words), pytest.raises(ValueError, match=words):
            take(step, rows, targets, 0.1)
    encoder = network.encoder
    without_head = TrainingStep(model_of(encoder, small_model(rng, encoder)), "adam", rows.dtype)
    with pytest.raises(ValueError, match="targets"):
        take(without_head, rows, np.zeros(4, np.float32), 0.1)
