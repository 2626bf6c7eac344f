"""Tests of the model on the CPU against slow, simple NumPy: gradients, features of rows of every dtype, parameters.

Sample: rows of each dtype are scaled in one way; with TEST_CASES=all in every way.
"""

from dataclasses import replace

import numpy as np
import pytest

from shardpress.model import Model
from shardpress_kernels import TILE_ROWS, graph
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.network import Network
from tests.support import reference
from tests.support.cases import cross, each
from tests.support.models import (
    DTYPES,
    N_INPUTS,
    NETWORK,
    SCALINGS,
    assert_same_arrays,
    float64,
    oracle_code,
    oracle_cost,
    oracle_gradients,
    oracle_reconstruction,
    oracle_scaled,
    random_autoencoder,
    random_rows,
    scaler_of,
    scaling_of,
    step_of,
)
from tests.support.networks import random_parameters
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

both_ways = pytest.mark.usefixtures("path")


# ---- gradients


@pytest.fixture
def error_and_gradients(rng):
    """Return an autoencoder, scaled rows, and [cost, gradients] from our graph and from Theano's differentiation."""
    autoencoder = random_autoencoder(rng)
    x = rng.random((11, N_INPUTS), dtype=np.float32)
    symbol = theano.tensor.fmatrix()
    cost, gradients = graph.error_and_gradients(autoencoder.network, symbol, symbol, autoencoder.shared)
    by_theano = theano.grad(cost, list(autoencoder.shared.values()))
    values = theano.function([symbol], [cost, *gradients, *by_theano])(x)
    return autoencoder, x, values[:4], [values[0], *values[4:]]


@pytest.mark.process
def test_gradients_equal_central_finite_differences(error_and_gradients):
    autoencoder, x, (cost, *gradients), _ = error_and_gradients
    p = float64(autoencoder.parameters())
    assert_close(cost, oracle_cost(p, x), "cpu", "float32", "cost")
    for gradient, (name, expected) in zip(gradients, oracle_gradients(p, x).items(), strict=True):
        assert gradient.shape == p[name].shape
        assert gradient.dtype == np.float32
        assert_close(gradient, expected, "cpu", "float32", "gradients")


def test_gradients_equal_those_of_theano(error_and_gradients):
    _, _, by_graph, by_theano = error_and_gradients
    for gradient, expected in zip(by_graph, by_theano, strict=True):
        assert_close(gradient, expected, "cpu", "float32", "gradients")


# ---- rows of every dtype


@pytest.mark.process
@both_ways
@each("working, dtype", cross(SCALINGS, DTYPES))
def test_scaling_and_encoding_every_dtype_equals_numpy(rng, dtype, working):
    rows = random_rows(rng, 40, dtype)
    if working is None:
        rows //= rows.dtype.type(rows.max() // 4 or 1)  # large unscaled values would saturate the sigmoids
    center, scale = scaling_of(rows, working)
    autoencoder = random_autoencoder(rng, center=center, scale=scale)
    symbol = theano.tensor.TensorType(dtype.name, (False, False))()
    x = theano.function([symbol], autoencoder.scaled(symbol))(rows)
    expected_x = oracle_scaled(rows, center, scale)
    assert x.dtype == np.float32
    assert_close(x, expected_x, "cpu", working or "float32", "scaled")

    p = float64(autoencoder.parameters())
    x = expected_x.astype(np.float64)
    h = oracle_code(p, x)
    y = oracle_reconstruction(p, oracle_code(p, x))
    features = autoencoder.encode(rows)
    assert features.dtype == np.float32
    assert_close(features, h, "cpu", "float32", "features")
    symbol = theano.tensor.fmatrix()
    decoded = theano.function([symbol], graph._reconstruction(autoencoder.network, symbol, autoencoder.shared))(
        features
    )
    assert_close(decoded, y, "cpu", "float32", "reconstruction")
    assert_close(autoencoder.errors(rows), np.mean((x - y) ** 2, axis=1), "cpu", "float32", "cost")
    assert_close(
        autoencoder.errors(rows, features[::-1]), np.mean((x - y[::-1]) ** 2, axis=1), "cpu", "float32", "cost"
    )
    assert_close(autoencoder.cost(rows), oracle_cost(p, x), "cpu", "float32", "cost")


@both_ways
@each("dtype", DTYPES)
def test_scaler_and_encoder_of_the_model_agree_with_the_device(rng, dtype):
    rows = random_rows(rng, 40, dtype)
    rows[:, 2] = rows[0, 2]  # a constant column
    scaler = scaler_of(rows)
    autoencoder = random_autoencoder(rng, NETWORK, *scaler.arrays(dtype))
    symbol = theano.tensor.TensorType(dtype.name, (False, False))()
    x = theano.function([symbol], autoencoder.scaled(symbol))(rows)
    np.testing.assert_array_equal(x, scaler.transform(rows))
    expected = Model(scaler, NETWORK, autoencoder.parameters()).encode(rows)
    assert_close(autoencoder.encode(rows), expected, "cpu", "float32", "features")


# ---- tiles


WIDE = Network((100, 24))
DEEP = Network((100, 40, 24), "leaky-relu", "linear", gain=True)


@pytest.fixture(params=[WIDE, DEEP], ids=["wide", "deep"])
def images(rng, request):
    """Return a wide or a deep autoencoder, and rows that fill three tiles and a part of a fourth one."""
    rows = rng.integers(0, 256, (3 * TILE_ROWS + 5, 100), dtype=np.uint8)
    return random_autoencoder(rng, request.param, *scaling_of(rows, "float32")), rows


@both_ways
@each("n_rows", [0, 1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 3 * TILE_ROWS + 5])
def test_features_of_a_row_do_not_depend_on_the_rows_after_it(images, n_rows):
    autoencoder, rows = images
    features = autoencoder.encode(rows[:n_rows])
    errors = autoencoder.errors(rows[:n_rows])
    decoded = autoencoder.errors(rows[:n_rows], features)
    assert features.shape == (n_rows, 24)
    assert errors.shape == (n_rows,)
    np.testing.assert_array_equal(features, autoencoder.encode(rows)[:n_rows])
    np.testing.assert_array_equal(errors, autoencoder.errors(rows)[:n_rows])
    np.testing.assert_array_equal(decoded, autoencoder.errors(rows, autoencoder.encode(rows))[:n_rows])


@both_ways
def test_features_do_not_depend_on_splits_at_whole_tiles(images):
    autoencoder, rows = images
    whole = autoencoder.encode(rows)
    for cuts in ([1], [2], [3], [1, 2], [1, 3], [1, 2, 3]):
        pieces = np.split(rows, [TILE_ROWS * cut for cut in cuts])
        np.testing.assert_array_equal(np.concatenate([autoencoder.encode(piece) for piece in pieces]), whole)
    expected = reference.code(autoencoder.network, rows / 255, float64(autoencoder.parameters()))
    assert_close(whole, expected, "cpu", "float32", "features")


@both_ways
def test_features_are_written_to_a_given_array(images):
    autoencoder, rows = images
    out = np.full((len(rows) + 2, 24), 7, dtype=np.float32)
    result = autoencoder.encode(rows, out[1:-1])
    assert np.shares_memory(result, out)
    np.testing.assert_array_equal(out[1:-1], autoencoder.encode(rows))
    assert (out[[0, -1]] == 7).all()


@both_ways
def test_rows_are_not_changed(images):
    autoencoder, rows = images
    before = rows.copy()
    autoencoder.encode(rows)
    autoencoder.cost(rows)
    np.testing.assert_array_equal(rows, before)


@both_ways
@each("network", [WIDE, DEEP])
@each("bad", [np.nan, np.inf])
def test_row_that_is_not_finite_affects_no_other(rng, bad, network):
    rows = rng.random((TILE_ROWS + 9, 100), dtype=np.float32)
    autoencoder = random_autoencoder(rng, network)
    expected = autoencoder.encode(rows), autoencoder.errors(rows)
    bad_rows = rows.copy()
    others = np.delete(np.arange(len(rows)), [5, TILE_ROWS + 3])
    bad_rows[[5, TILE_ROWS + 3]] = bad
    for found, clean in zip((autoencoder.encode(bad_rows), autoencoder.errors(bad_rows)), expected, strict=True):
        np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(autoencoder.errors(bad_rows)[[5, TILE_ROWS + 3]]).any()


@both_ways
@each("network", [WIDE, DEEP, replace(DEEP, activation="relu", code="sigmoid")])
def test_nan_in_a_row_makes_all_its_features_nan(rng, network):
    rows = rng.random((9, 100), dtype=np.float32)
    rows[4, 50] = np.nan
    assert np.isnan(random_autoencoder(rng, network).encode(rows)).all(axis=1).tolist() == [i == 4 for i in range(9)]


@both_ways
@each("shift, expected", [(300, 1), (-300, 0)])
def test_extreme_units_saturate_without_a_warning_or_nan(shift, expected):
    autoencoder = Autoencoder(Network((2, 3)))
    autoencoder.set_parameters({"W": np.zeros((2, 3)), "b_hidden": np.full(3, shift), "b_output": np.zeros(2)})
    np.testing.assert_array_equal(autoencoder.encode(np.zeros((4, 2), np.float32)), np.full((4, 3), expected))


# ---- compiling


@both_ways
def test_every_function_is_compiled_once_for_each_dtype(rng, compiled):
    autoencoder = random_autoencoder(rng)
    calls = {
        "encode": autoencoder.encode,
        "errors": autoencoder.errors,
        "cost": autoencoder.cost,  # uses `errors`
    }
    for dtype in ("u1", "f4"):
        for rows in (np.ones((3, N_INPUTS), dtype), np.ones((5, N_INPUTS), dtype)):
            for call in calls.values():
                call(rows)
    assert len(compiled) == 4  # encode and errors, for two dtypes


@both_ways
def test_changed_parameters_and_learning_rate_compile_nothing(rng, compiled):
    autoencoder = random_autoencoder(rng)
    rows = np.ones((2, N_INPUTS), np.float32)
    step = step_of(autoencoder)
    take_step(step, rows, 0.1)
    before = autoencoder.encode(rows)
    count = len(compiled)
    autoencoder.set_parameters(random_parameters(rng, NETWORK))
    take_step(step, rows, 0.5)
    assert not np.array_equal(autoencoder.encode(rows), before)
    assert len(compiled) == count


# ---- parameters


def test_parameters_are_returned_as_float32_in_order(rng):
    autoencoder = Autoencoder(NETWORK)
    p = random_parameters(rng, NETWORK)
    autoencoder.set_parameters(float64(p))
    assert list(autoencoder.parameters()) == list(autoencoder.network.shapes)
    assert_same_arrays(autoencoder.parameters(), p)
    assert {array.dtype for array in autoencoder.parameters().values()} == {np.dtype("f4")}


@each(
    "change, phrase",
    [
        ({"b_output": None}, r"\['W', 'b_hidden'\].*\['W', 'b_hidden', 'b_output'\]"),
        ({"gain": np.ones(3)}, r"\['W', 'b_hidden', 'b_output', 'gain'\]"),
        ({"W": np.ones((3, 7))}, r"\bW\b.*\(3, 7\).*\(7, 3\)"),
        ({"b_hidden": np.ones(1)}, r"\bb_hidden\b.*\(1,\).*\(3,\)"),
        ({"b_output": np.float32(1)}, r"\bb_output\b.*\(\).*\(7,\)"),
    ],
)
def test_wrong_parameters_are_refused_and_change_nothing(rng, change, phrase):
    autoencoder = random_autoencoder(rng)
    before = autoencoder.parameters()
    values = {name: array for name, array in (random_parameters(rng, NETWORK) | change).items() if array is not None}
    with pytest.raises(ValueError, match=phrase):
        autoencoder.set_parameters(values)
    assert_same_arrays(autoencoder.parameters(), before)
