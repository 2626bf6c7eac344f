"""Tests of the model on the CPU, with our Ops and with Theano's graph: rows of every dtype, tiles, parameters.

Sample: rows of each dtype are scaled in one way; with TEST_CASES=all in every way.
"""

from dataclasses import replace

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS
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
    random_autoencoder,
    random_rows,
    scaling_of,
    step_of,
)
from tests.support.networks import random_parameters
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

both_ways = pytest.mark.usefixtures("path")


# ---- rows of every dtype


@pytest.mark.process
@both_ways
@each("working, dtype", cross(SCALINGS, [*DTYPES, np.dtype("?")]))
def test_scaling_and_encoding_every_dtype_equals_numpy(rng, dtype, working):
    if dtype.kind == "b":
        rows = rng.random((40, N_INPUTS)) > 0.5
    else:
        rows = random_rows(rng, 40, dtype)
    if working is None and dtype.kind != "b":
        rows //= rows.dtype.type(rows.max() // 4 or 1)  # large unscaled values would saturate the sigmoids
    center, scale = scaling_of(rows, working)
    autoencoder = random_autoencoder(rng, center=center, scale=scale)
    symbol = theano.tensor.TensorType(dtype.name, (False, False))()
    scaled = theano.function([symbol], autoencoder.scaled(symbol))(rows)
    x = reference.scaled(rows, () if center is None else (center, scale))
    assert scaled.dtype == np.float32
    assert_close(scaled, x, "cpu", working or "float32", "scaled")

    p = float64(autoencoder.parameters())
    features = autoencoder.encode(rows)
    assert features.dtype == np.float32
    assert_close(features, reference.code(NETWORK, x, p), "cpu", "float32", "features")
    errors = reference.row_errors(NETWORK, x, p)
    assert_close(autoencoder.errors(rows), errors, "cpu", "float32", "cost")
    assert_close(autoencoder.cost(rows), errors.mean(), "cpu", "float32", "cost")
    others = features[::-1]
    expected = reference.row_errors(NETWORK, x, p, others.astype(np.float64))
    assert_close(autoencoder.errors(rows, others), expected, "cpu", "float32", "cost")


# ---- tiles


WIDE = Network((100, 24))
DEEP = Network((100, 40, 24), "leaky-relu", "linear", gain=True)


@pytest.fixture(params=[WIDE, DEEP], ids=["wide", "deep"])
def images(rng, request):
    """Return a wide or a deep autoencoder, and rows that fill three tiles and a part of a fourth one."""
    rows = rng.integers(0, 256, (3 * TILE_ROWS + 5, 100), dtype=np.uint8)
    return random_autoencoder(rng, request.param, *scaling_of(rows, "float32")), rows


@both_ways
def test_results_of_a_row_do_not_depend_on_rows_after_it_or_splits(images):
    autoencoder, rows = images
    before = rows.copy()
    features = autoencoder.encode(rows)
    errors = autoencoder.errors(rows)
    decoded = autoencoder.errors(rows, features)
    np.testing.assert_array_equal(rows, before)
    for start in (0, TILE_ROWS, 3 * TILE_ROWS):
        for n_rows in (0, 1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, len(rows)):
            some = slice(start, start + n_rows)
            np.testing.assert_array_equal(autoencoder.encode(rows[some]), features[some])
            np.testing.assert_array_equal(autoencoder.errors(rows[some]), errors[some])
            np.testing.assert_array_equal(autoencoder.errors(rows[some], features[some]), decoded[some])
    p = float64(autoencoder.parameters())
    assert_close(features, reference.code(autoencoder.network, rows / 255, p), "cpu", "float32", "features")


@both_ways
@each("network", [WIDE, DEEP])
@each("bad", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_affects_no_other(rng, bad, network):
    rows = rng.random((TILE_ROWS + 9, 100), dtype=np.float32)
    autoencoder = random_autoencoder(rng, network)
    expected = autoencoder.encode(rows), autoencoder.errors(rows)
    others = np.delete(np.arange(len(rows)), [5, TILE_ROWS + 3])
    rows[[5, TILE_ROWS + 3], 17] = bad
    for found, clean in zip((autoencoder.encode(rows), autoencoder.errors(rows)), expected, strict=True):
        np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(autoencoder.errors(rows)[[5, TILE_ROWS + 3]]).any()


@both_ways
@each("network", [WIDE, DEEP, replace(DEEP, activation="relu", code="sigmoid")])
def test_nan_in_a_row_makes_all_its_features_nan(rng, network):
    rows = rng.random((9, 100), dtype=np.float32)
    rows[4, 50] = np.nan
    assert np.isnan(random_autoencoder(rng, network).encode(rows)).all(axis=1).tolist() == [i == 4 for i in range(9)]


# ---- parameters


@both_ways
def test_functions_are_compiled_once_for_each_dtype(rng, compiled):
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder)
    for rate in (0.1, 0.5):
        for n_rows in (2, 3):
            floats = np.ones((n_rows, N_INPUTS), np.float32)
            for rows in (floats, floats.astype(np.uint8)):
                autoencoder.encode(rows)
                autoencoder.errors(rows)
                autoencoder.cost(rows)  # uses `errors`
            take_step(step, floats, rate)
            take_step(step, floats, rate, with_cost=True)
    before = autoencoder.encode(floats)
    autoencoder.set_parameters(random_parameters(rng, NETWORK))
    assert not np.array_equal(autoencoder.encode(floats), before)
    assert len(compiled) == 6  # encode and errors for two dtypes, steps with and without the cost


def test_parameters_are_returned_as_float32_in_order(rng):
    autoencoder = Autoencoder(NETWORK)
    p = random_parameters(rng, NETWORK)
    autoencoder.set_parameters(float64(p))
    assert list(autoencoder.parameters()) == list(NETWORK.shapes)
    assert_same_arrays(autoencoder.parameters(), p)
    assert {array.dtype for array in autoencoder.parameters().values()} == {np.dtype("f4")}


@each(
    "change, phrase",
    [
        ({"gain": np.ones(3)}, "gain"),
        ({"W": np.ones((3, 7))}, r"\bW\b.*\(3, 7\).*\(7, 3\)"),
        ({"b_hidden": np.ones(1)}, r"\bb_hidden\b.*\(1,\).*\(3,\)"),
        ({"b_output": np.float32(1)}, r"\bb_output\b.*\(\).*\(7,\)"),
    ],
)
def test_wrong_parameters_are_refused_and_change_nothing(rng, change, phrase):
    autoencoder = random_autoencoder(rng)
    before = autoencoder.parameters()
    with pytest.raises(ValueError, match=phrase):
        autoencoder.set_parameters(random_parameters(rng, NETWORK) | change)
    assert_same_arrays(autoencoder.parameters(), before)
