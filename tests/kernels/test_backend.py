"""Tests of the backend: the fallback if the requested device is missing, and the number of cores for products."""

import ctypes

import pytest

from tests.support.interpreters import run_python

pytestmark = pytest.mark.process


def has_nvidia_driver():
    try:
        ctypes.CDLL("libcuda.so")
    except OSError:
        return False
    return True


# ---- fallback


FALL_BACK = """
import numpy as np
from dataclasses import asdict
from shardpress_kernels import backend
facts["device"] = asdict(backend.start())
backend.start(require=False)
theano = backend.load()
weights = backend.shared(np.eye(3, dtype=np.float32), name="weights")
rows = theano.tensor.fmatrix()
product = theano.function([rows], theano.tensor.dot(rows, weights))
facts["product"] = product(np.arange(6, dtype=np.float32).reshape(2, 3)).tolist()
facts["operations"] = [type(node.op).__name__ for node in product.maker.fgraph.apply_nodes]
try:
    backend.start(require=True)
except backend.DeviceUnavailable as error:
    facts["error"] = str(error)
"""


@pytest.mark.usefixtures("pygpu")
@pytest.mark.skipif(has_nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_cuda_without_a_card_computes_on_the_cpu_and_warns_once():
    # Theano itself refuses to start a device when it inherits the second variable from a parent process.
    ended = run_python(FALL_BACK, THEANO_FLAGS="device=cuda", THEANO_GPU_IS_ALREADY_ACTIVE="Yes")
    device = ended.facts["device"]
    assert (device["requested"], device["used"]) == ("cuda", "cpu")
    assert "libcuda.so" in device["reason"]
    (warning,) = ended.stderr.splitlines()
    assert device["reason"] in warning
    assert "shardpress doctor" in warning
    assert ended.facts["product"] == [[0, 1, 2], [3, 4, 5]]
    assert ended.facts["operations"] == ["Dot22"]
    assert device["reason"] in ended.facts["error"]


WITHOUT_PYGPU = """
import sys
sys.modules["pygpu"] = None
from shardpress_kernels import backend
device = backend.start()
facts |= {"used": device.used, "why": device.reason}
"""


def test_missing_pygpu_is_named_with_its_installer():
    ended = run_python(WITHOUT_PYGPU, THEANO_FLAGS="device=cuda")
    assert ended.facts["used"] == "cpu"
    assert "install_pygpu.sh" in ended.facts["why"]
    assert len(ended.stderr.splitlines()) == 1


# ---- products


PRODUCTS = """
import pathlib
import numpy as np
import scipy_openblas32
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.network import Network
Autoencoder(Network((5, 3))).encode(np.ones((4, 5), np.float32))
mapped = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
modules = [pathlib.Path(name).read_bytes() for name in mapped if name.startswith(theano.config.compiledir)]
facts["prefixed"] = any(b"\\0scipy_sgemm_\\0" in module for module in modules)
facts["plain"] = any(b"\\0sgemm_\\0" in module for module in modules)
facts["library"] = any(name.startswith(scipy_openblas32.get_lib_dir()) for name in mapped)
"""


def test_products_run_in_the_installed_openblas():
    ended = run_python(PRODUCTS, THEANO_FLAGS="optimizer_excluding=fused")
    assert ended.stderr == ""  # Theano warns if it has no BLAS
    assert ended.facts == {"prefixed": True, "plain": False, "library": True}


# ---- cores

CORES = """
import ctypes, os, scipy_openblas32
from shardpress_kernels import backend
library = ctypes.CDLL(scipy_openblas32.get_lib_dir() + "/libscipy_openblas.so")
library.scipy_openblas_set_num_threads(2)
backend.start()
facts["threads"] = []
for n_flops in (10**6, 10**9, 10**6):
    backend.use_cores_for(n_flops)
    facts["threads"].append(library.scipy_openblas_get_num_threads())
facts["cores"] = len(os.sched_getaffinity(0))
facts["n_threads"] = backend.n_cores()
"""


def test_large_products_use_all_cores_or_the_threads_of_the_user():
    facts = run_python(CORES, OPENBLAS_NUM_THREADS=None, OMP_NUM_THREADS="3").facts
    assert facts["threads"] == [1, facts["cores"], 1]
    assert facts["n_threads"] == 3
    facts = run_python(CORES, OPENBLAS_NUM_THREADS="2").facts
    assert facts["threads"] == [2, 2, 2]
    assert facts["n_threads"] == 2
