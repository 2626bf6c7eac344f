"""Tests of the CPU Ops on networks of several layers against the NumPy reference; `test_ops` contains all other tests.

Sample: each network encodes rows of one dtype; with TEST_CASES=all, rows of both dtypes.
"""

import numpy as np
import pytest

from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.rules import RULES
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.cases import cross, each
from tests.support.steps import forget, take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

# Sizes below and above three limits: the width of a tile (8, 16 or 64 columns), the 512 rows of W that are processed at
# a time, and the size of W from which batches have more rows.
NETWORKS = [
    Network((65, 33), code="linear", gain=True),
    Network((64, 17), gain=True),
    Network((2049, 129, 8)),
    Network((70, 513, 66), "leaky-relu", "linear", gain=True),
    Network((5, 20, 16, 3, 1), "leaky-relu"),
    Network((65, 130, 9), "leaky-relu", gain=True, output_layer="hidden"),
]
HEIGHTS = [1, 5, 6, 25, 97, 259]


@pytest.fixture
def rng():
    return np.random.default_rng(20240317)


def random_parameters(rng, network):
    """Return parameters for which the output of every layer stays near 1."""
    shapes = network.shapes.items()
    parameters = {name: rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32) for name, shape in shapes}
    return parameters | ({"gain": rng.uniform(1, 2, network.n_features).astype(np.float32)} if network.gain else {})


def float64(parameters):
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def scaling_of(network):
    """Return the center, the scale and the limits of each column for bytes."""
    zeros = np.zeros(network.n_inputs, np.float32)
    return zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255)


def autoencoder_of(network, parameters, n_threads=2):
    autoencoder = Autoencoder(network, *scaling_of(network))
    autoencoder.set_parameters(parameters)
    autoencoder.n_threads.set_value(np.int64(n_threads))
    assert autoencoder.uses_ops(np.dtype("f4"))
    return autoencoder


def random_rows(rng, n_rows, network, dtype=np.float32):
    rows = rng.integers(0, 256, (n_rows, network.n_inputs)).astype(dtype)
    return rows, reference.scaled(rows, scaling_of(network)[:2])


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), np.asarray(expected).view(np.uint32))


# ---- against NumPy


@each("dtype, network", cross(["uint8", "float32"], NETWORKS))
def test_features_and_errors_equal_numpy_at_tile_edges(rng, network, dtype):
    check_features_and_errors(rng, network, dtype)


def check_features_and_errors(rng, network, dtype):
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters)
    p = float64(parameters)
    for n_rows in [0, *HEIGHTS]:
        rows, x = random_rows(rng, n_rows, network, dtype)
        assert_close(autoencoder.encode(rows), reference.features(network, x, p), "cpu", "float32", "features")
        assert_close(autoencoder.errors(rows), reference.row_errors(network, x, p), "cpu", "float32", "cost")
        others = autoencoder.encode(np.ascontiguousarray(rows[::-1]))
        expected = reference.row_errors(network, x, p, others.astype(np.float64))
        assert_close(autoencoder.errors(rows, others), expected, "cpu", "float32", "cost")


@each("network, corruption", [*((network, 0.0) for network in NETWORKS), (NETWORKS[0], 0.25), (NETWORKS[3], 0.25)])
def test_error_and_gradients_equal_numpy_at_tile_edges(rng, network, corruption):
    check_error_and_gradients(rng, network, corruption)


def test_network_with_every_option_equals_numpy(rng):
    # One network has all options. Separate networks for all options and instruction sets would compile for minutes.
    check_features_and_errors(rng, NETWORKS[3], "uint8")
    check_error_and_gradients(rng, NETWORKS[3], 0.25)


def check_error_and_gradients(rng, network, corruption):
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters)
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"), corruption=corruption)
    for n_rows in HEIGHTS:
        rows, x = random_rows(rng, n_rows, network)
        noise = rng.integers(0, 256, rows.shape, dtype=np.uint8) if corruption else None
        corrupted = reference.masked(x, noise, corruption) if corruption else x
        autoencoder.set_parameters(parameters)
        forget(step)
        cost, gradients = reference.gradients(network, x, corrupted, float64(parameters))
        found_cost = take_step(step, rows, -1.0, with_cost=True, noise=noise)
        assert_close(found_cost, cost, "cpu", "float32", "cost")
        # In the first step at a rate of -1, the velocity is the gradient.
        for found, expected in zip(step.state().values(), gradients, strict=True):
            assert_close(found, expected, "cpu", "float32", "gradients")


@each("rule", RULES)
def test_every_rule_equals_its_numpy_reference(rng, rule):
    network = Network((70, 40, 9), "leaky-relu", gain=True)
    parameters = random_parameters(rng, network)
    expected = float64(parameters)
    states = [[np.zeros_like(array) for _ in RULES[rule].states] for array in expected.values()]
    autoencoder = autoencoder_of(network, parameters)
    step = TrainingStep(autoencoder, rule, np.dtype("f4"))
    for count in range(1, 9):
        rows, x = random_rows(rng, 259, network)
        take_step(step, rows, 0.01 / count)
        rate = 0.01 / count * (np.sqrt(1 - 0.999**count) / (1 - 0.9**count) if rule == "adam" else 1)
        _, gradients = reference.gradients(network, x, x, expected)
        for parameter, gradient, own in zip(expected.values(), gradients, states, strict=True):
            for array, values in zip(
                [parameter, *own], RULES[rule].update(parameter, gradient, rate, *own), strict=True
            ):
                array[...] = values
    for found, array in zip(autoencoder.parameters().values(), expected.values(), strict=True):
        assert_close(found, array, "cpu", "float32", "parameters")


# ---- the same bits


@each("dtype, network", cross(["uint8", "float32"], NETWORKS[2:]))
def test_row_gives_the_same_bits_with_any_rows_and_threads(rng, network, dtype):
    parameters = random_parameters(rng, network)
    rows, _ = random_rows(rng, 211, network, dtype)
    first = autoencoder_of(network, parameters, n_threads=1)
    features = first.encode(rows)
    errors = first.errors(rows)
    decoded = first.errors(rows, features)
    for n_threads in (1, 2, 4):
        autoencoder = autoencoder_of(network, parameters, n_threads=n_threads)
        for start, stop in [(0, 211), (3, 4), (5, 200), (205, 211)]:
            assert_same_bits(autoencoder.encode(rows[start:stop]), features[start:stop])
            assert_same_bits(autoencoder.errors(rows[start:stop]), errors[start:stop])
            assert_same_bits(autoencoder.errors(rows[start:stop], features[start:stop]), decoded[start:stop])
        assert_same_bits(autoencoder.encode(np.ascontiguousarray(rows[::-1])), features[::-1])


@each("network", [NETWORKS[1], NETWORKS[3]])
def test_training_gives_the_same_bits_with_any_threads_and_place(rng, network):
    parameters = random_parameters(rng, network)
    rows, _ = random_rows(rng, 300, network, "uint8")
    minibatches = [rng.permutation(300)[:n_rows] for n_rows in (259, 7, 259)]
    noise = [rng.integers(0, 256, (len(numbers), network.n_inputs), dtype=np.uint8) for numbers in minibatches]
    results = []
    for n_threads, resident in [(1, rows), (2, rows), (4, rows), (2, None)]:
        autoencoder = autoencoder_of(network, parameters, n_threads=n_threads)
        step = TrainingStep(autoencoder, "adam", rows.dtype, resident, corruption=0.3)
        for numbers, own in zip(minibatches, noise, strict=True):
            take_step(step, rows[numbers] if resident is None else numbers, 0.01, noise=own)
        results.append([*autoencoder.parameters().values(), *step.state().values()])
    for found in results[1:]:
        for array, expected in zip(found, results[0], strict=True):
            assert_same_bits(array, expected)


# ---- NaN and Inf


@each("dtype", ["uint8", "float32"])
@each("network", [Network((20, 3), code="linear"), Network((20, 40, 3), "leaky-relu", "linear"), Network((20, 40, 3))])
def test_rows_with_features_that_are_not_finite_are_reported(rng, network, dtype):
    # All sums are finite, except in the rows in which a column with huge weights is not zero.
    parameters = random_parameters(rng, network)
    rows, _ = random_rows(rng, 60, network, dtype)
    parameters[network.layers[0][0]][4] = 3e38
    rows[:, 4] = 0
    rows[[5, 6, 59], 4] = 255
    rows[:, 3] = rows[:, 4]
    parameters[network.layers[0][0]][3] = 3e38
    autoencoder = autoencoder_of(network, parameters)
    out = np.empty((60, 3), np.float32)
    found = autoencoder.encode_checked(rows, out)
    np.testing.assert_array_equal(found, np.flatnonzero(~np.isfinite(out).all(axis=1)))
    assert set(found) <= {5, 6, 59}
    assert len(found) == 3 or network.code == "sigmoid"


@each("bad", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_affects_no_other(rng, bad):
    network = Network((100, 70, 9), "leaky-relu", gain=True)
    autoencoder = autoencoder_of(network, random_parameters(rng, network))
    rows, _ = random_rows(rng, 50, network)
    features = autoencoder.encode(rows)
    errors = autoencoder.errors(rows)
    bad_rows = rows.copy()
    others = np.delete(np.arange(50), [5, 49])
    bad_rows[[5, 49], 17] = bad
    assert_same_bits(autoencoder.encode(bad_rows)[others], features[others])
    assert_same_bits(autoencoder.errors(bad_rows)[others], errors[others])
    assert not np.isfinite(autoencoder.errors(bad_rows)[[5, 49]]).any()


# ---- errors


def test_arrays_of_wrong_shapes_are_refused_by_name(rng):
    network = Network((5, 4, 3), gain=True)
    autoencoder = autoencoder_of(network, random_parameters(rng, network))
    rows = np.zeros((4, 5), np.float32)
    for name, shape in {"W_2": (6, 3), "b_hidden_1": (5,), "b_output_2": (3,), "gain": (2,)}.items():
        before = autoencoder.shared[name].get_value()
        autoencoder.shared[name].set_value(np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=rf"\b{name}\b.*\({shape[0]}, .*\({before.shape[0]}, "):
            autoencoder.encode(rows)
        autoencoder.shared[name].set_value(before)


def test_noise_of_a_wrong_shape_is_refused(rng):
    network = Network((5, 3))
    step = TrainingStep(
        autoencoder_of(network, random_parameters(rng, network)), "adam", np.dtype("f4"), corruption=0.5
    )
    with pytest.raises(ValueError, match=r"noise.*\(3, 5\).*\(4, 5\)"):
        take_step(step, np.zeros((4, 5), np.float32), 0.1, noise=np.zeros((3, 5), np.uint8))
