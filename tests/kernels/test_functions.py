"""Tests of a model's compiled functions: calls from several threads, and devices with little memory."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS, backend
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.calls import on_device
from shardpress_kernels.faults import OutOfDeviceMemory
from shardpress_kernels.network import Network
from shardpress_kernels.step import TrainingStep
from tests.support.cases import each
from tests.support.networks import random_parameters
from tests.support.steps import take_step
from tests.support.tolerances import TOLERANCES

pytestmark = pytest.mark.compiler

# ---- threads


@pytest.mark.process
@pytest.mark.parametrize("fuses", [True, False])
@each(
    "network",
    [
        Network((100, 24)),
        Network((100, 30, 24), "leaky-relu", "linear"),
        Network((100, 24, 9), "leaky-relu", output_layer="hidden"),
    ],
)
def test_any_number_of_threads_can_encode_concurrently(monkeypatch, fuses, network):
    # The first call compiles. Some rows have a dtype that no Op supports.
    monkeypatch.setattr(backend, "uses_ops", lambda: fuses)
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


@each("is_device", [True, False])
def test_running_calls_on_a_device_are_counted(monkeypatch, is_device):
    n_running = []
    compile_it = backend.compile_function

    def compile_watched(*arguments, **options):
        function = compile_it(*arguments, **options)

        def call(*arrays):
            n_running.append(on_device.n)
            return function(*arrays)

        return call

    monkeypatch.setattr(backend, "uses_ops", lambda: False)
    monkeypatch.setattr(backend, "compile_function", compile_watched)
    autoencoder = Autoencoder(Network((5, 2)), np.zeros(5, np.float32), np.ones(5, np.float32))
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"))
    monkeypatch.setattr(backend, "device_call", lambda: on_device if is_device else nullcontext())
    rows = np.random.default_rng(0).random((4, 5), np.float32)
    autoencoder.encode(rows)
    take_step(step, rows, 0.1)
    assert n_running == [int(is_device)] * 2
    assert on_device.n == 0


@pytest.mark.parametrize(("fuses", "max_calls"), [(True, 2), (False, 1)])
def test_concurrent_calls_are_limited_to_cores_or_one_in_theano(monkeypatch, fuses, max_calls):
    monkeypatch.setattr(backend, "uses_ops", lambda: fuses)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    inside = []
    counts = []
    compile_it = backend.compile_function

    def compile_counted(*arguments):
        function = compile_it(*arguments)

        def call(*arrays):
            inside.append(None)
            os.sched_yield()  # other threads can enter unless the limit prevents it
            counts.append(len(inside))
            try:
                return function(*arrays)
            finally:
                inside.pop()

        return call

    monkeypatch.setattr(backend, "compile_function", compile_counted)
    autoencoder = some_autoencoder()
    rows = np.ones((40, 20), np.float32)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: autoencoder.encode(rows), range(100)))
    assert len(counts) == 100
    assert max(counts) <= max_calls


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


def some_autoencoder():
    autoencoder = Autoencoder(Network((20, 5)))
    autoencoder.set_parameters(random_parameters(np.random.default_rng(0), autoencoder.network))
    return autoencoder


@pytest.mark.parametrize("n_rows", [TILE_ROWS - 1, 300, 32])
def test_out_of_memory_reduces_rows_and_keeps_the_features(device, caplog, n_rows):
    rows = np.random.default_rng(3).random((2 * TILE_ROWS + 7, 20), dtype=np.float32)
    autoencoder = some_autoencoder()
    expected = autoencoder.encode(rows)
    device.append(n_rows)
    found = autoencoder.encode(rows)
    assert np.allclose(found, expected, rtol=0, atol=TOLERANCES["cpu", "float32", "features"])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings
    assert all("memory" in warning for warning in warnings)


def test_device_with_almost_no_memory_is_an_error(device):
    device.append(31)
    with pytest.raises(OutOfDeviceMemory, match="32 rows"):
        some_autoencoder().encode(np.zeros((40, 20), dtype=np.float32))


def test_other_device_errors_are_not_out_of_memory(monkeypatch):
    def broken(tile):
        raise RuntimeError("cuCtxSynchronize: CUDA_ERROR_ECC_UNCORRECTABLE")

    monkeypatch.setattr(backend, "uses_ops", lambda: False)
    monkeypatch.setattr(backend, "compile_function", lambda *arguments: broken)
    with pytest.raises(RuntimeError, match="ECC"):
        some_autoencoder().encode(np.zeros((40, 20), dtype=np.float32))
