"""Tests of a model's compiled functions: calls from several threads, and devices with little memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS, backend
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.faults import OutOfDeviceMemory
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.networks import random_parameters
from tests.support.tolerances import TOLERANCES

pytestmark = pytest.mark.compiler


@pytest.mark.process
@pytest.mark.usefixtures("path")
@each(
    "network",
    [
        Network((100, 24)),
        Network((100, 24, 9), "leaky-relu", "linear", gain=True, output_layer="hidden"),
    ],
)
def test_any_number_of_threads_can_encode_concurrently(network):
    # The first call compiles. Some rows have a dtype that no Op supports.
    center = np.full(100, 10, np.float32)
    autoencoder = Autoencoder(network, center, np.full(100, 1 / 80, np.float32), (center, center + 80))
    autoencoder.set_parameters(random_parameters(np.random.default_rng(0), network))
    rows = np.random.default_rng(1).integers(0, 100, (2 * TILE_ROWS + 9, 100))
    jobs = [(rows + i).astype(dtype) for i in range(5) for dtype in ("u1", "f4", "?")]

    def encode(rows):
        out = np.empty((len(rows), 24), np.float32)
        return autoencoder.encode_checked(rows, out), out, autoencoder.errors(rows)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encode, jobs))
    for job, results in zip(jobs, found, strict=True):
        for array, expected in zip(results, encode(job), strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=job.dtype.name)


# ---- a device without memory


@pytest.fixture
def device(monkeypatch):
    """Simulate a device with little memory; return a list whose last item is the number of rows that fit."""
    monkeypatch.setattr(backend, "uses_ops", lambda: False)
    rows_that_fit = [TILE_ROWS]
    compiled = backend.compile_function

    def compile_limited(*arguments):
        function = compiled(*arguments)

        def call(tile):
            if len(tile) > rows_that_fit[-1]:
                raise RuntimeError("b'cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory'")
            return function(tile)

        return call

    monkeypatch.setattr(backend, "compile_function", compile_limited)
    return rows_that_fit


def test_out_of_memory_reduces_rows_and_keeps_the_features(device, caplog):
    rows = np.random.default_rng(3).random((2 * TILE_ROWS + 7, 20), dtype=np.float32)
    autoencoder = Autoencoder(Network((20, 5)))
    autoencoder.set_parameters(random_parameters(np.random.default_rng(0), autoencoder.network))
    expected = autoencoder.encode(rows)
    for n_rows in (TILE_ROWS - 1, 300, 32):
        caplog.clear()
        device.append(n_rows)
        found = autoencoder.encode(rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES["cpu", "float32", "features"])
        assert "memory" in caplog.text
    device.append(31)
    with pytest.raises(OutOfDeviceMemory, match="32 rows"):
        autoencoder.encode(rows)
