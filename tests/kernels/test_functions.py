"""Test of a model's compiled functions: calls from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shardpress_kernels import TILE_ROWS
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from tests.support.networks import random_parameters

pytestmark = pytest.mark.compiler


@pytest.mark.process
@pytest.mark.usefixtures("path")
def test_any_number_of_threads_can_encode_concurrently():
    # The first call compiles. Some rows have a dtype that no Op supports.
    network = Network((100, 24, 9), "leaky-relu", "linear", gain=True, output_layer="hidden")
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
