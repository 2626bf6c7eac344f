"""Tests of the model on the CPU: no row affects another row, in its tile or in other tiles."""

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from tests.support import reference
from tests.support.networks import random_parameters
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

DEEP = Network((100, 40, 24), "leaky-relu", "linear", gain=True)


@pytest.mark.usefixtures("without_ops")
def test_results_of_a_row_do_not_depend_on_rows_after_it_or_splits(rng):
    rows = rng.integers(0, 256, (3 * TILE_ROWS + 5, 100), dtype=np.uint8)  # the last of four tiles is not full
    autoencoder = Autoencoder(DEEP, np.zeros(100, np.float32), np.full(100, 1 / 255, np.float32))
    autoencoder.set_parameters(random_parameters(rng, DEEP))
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
    p = {name: array.astype(np.float64) for name, array in autoencoder.parameters().items()}
    assert_close(features, reference.code(DEEP, rows / 255, p), "cpu", "features")
    assert_close(errors, reference.row_errors(DEEP, rows / 255, p), "cpu", "cost")


@pytest.mark.usefixtures("path")
def test_row_that_is_not_finite_affects_no_other(rng):
    rows = rng.random((TILE_ROWS + 9, 100), dtype=np.float32)
    autoencoder = Autoencoder(DEEP)
    autoencoder.set_parameters(random_parameters(rng, DEEP))
    expected = autoencoder.encode(rows), autoencoder.errors(rows)
    others = np.delete(np.arange(len(rows)), [5, TILE_ROWS + 3])
    rows[[5, TILE_ROWS + 3], 17] = [np.nan, -np.inf]
    for found, clean in zip((autoencoder.encode(rows), autoencoder.errors(rows)), expected, strict=True):
        np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(autoencoder.errors(rows)[[5, TILE_ROWS + 3]]).any()
