"""Tests of the model on the CPU: tiles of rows for Theano's graph, compilation of functions, and parameters."""

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS
from shardpress_kernels.network import Network
from tests.support import reference
from tests.support.cases import each
from tests.support.models import (
    N_INPUTS,
    NETWORK,
    assert_same_arrays,
    float64,
    random_autoencoder,
    scaling_of,
    step_of,
)
from tests.support.networks import random_parameters
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

DEEP = Network((100, 40, 24), "leaky-relu", "linear", gain=True)


@pytest.mark.usefixtures("without_ops")
def test_results_of_a_row_do_not_depend_on_rows_after_it_or_splits(rng):
    rows = rng.integers(0, 256, (3 * TILE_ROWS + 5, 100), dtype=np.uint8)  # the last of four tiles is not full
    autoencoder = random_autoencoder(rng, DEEP, *scaling_of(rows, "float32"))
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
    assert_close(features, reference.code(DEEP, rows / 255, p), "cpu", "float32", "features")


@pytest.mark.usefixtures("path")
@each("bad", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_affects_no_other(rng, bad):
    rows = rng.random((TILE_ROWS + 9, 100), dtype=np.float32)
    autoencoder = random_autoencoder(rng, DEEP)
    expected = autoencoder.encode(rows), autoencoder.errors(rows)
    others = np.delete(np.arange(len(rows)), [5, TILE_ROWS + 3])
    rows[[5, TILE_ROWS + 3], 17] = bad
    for found, clean in zip((autoencoder.encode(rows), autoencoder.errors(rows)), expected, strict=True):
        np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(autoencoder.errors(rows)[[5, TILE_ROWS + 3]]).any()


@pytest.mark.usefixtures("path")
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
