"""Tests of the backend: the fallback if the requested device is missing, and the number of cores for products."""

import ctypes

import pytest

from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

FILE = "cuda101"  # a card that does not exist

START = "from shardpress_kernels import backend\ndevice = backend.start()\n"


def has_nvidia_driver():
    try:
        ctypes.CDLL("libcuda.so")
    except OSError:
        return False
    return True


needs_pygpu = pytest.mark.usefixtures("pygpu")
without_a_card = pytest.mark.skipif(has_nvidia_driver(), reason="this machine has an NVIDIA driver")


# ---- fallback


FALL_BACK = """
import numpy as np
from dataclasses import asdict
from shardpress_kernels import backend
devices = [backend.start(), backend.start(False), backend.start(require=False)]
facts["device"] = asdict(devices[0])
facts["text"] = str(devices[0])
facts["same"] = len(set(devices))
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


@needs_pygpu
@without_a_card
def test_cuda_without_a_card_computes_on_the_cpu_and_warns_once():
    ended = run_python(FALL_BACK, THEANO_FLAGS="device=cuda")
    device = ended.facts["device"]
    assert (device["requested"], device["used"]) == ("cuda", "cpu")
    assert "libcuda.so" in device["reason"]
    (warning,) = ended.stderr.splitlines()
    for part in ("device=cuda ", device["reason"], "shardpress doctor"):
        assert part in warning
    assert ended.facts["text"].startswith(f"cpu ({device['name']})")
    assert ended.facts["text"].endswith(f"cuda: {device['reason']}")
    assert ended.facts["same"] == 1
    assert ended.facts["product"] == [[0, 1, 2], [3, 4, 5]]
    assert ended.facts["operations"] == ["Dot22"]
    assert ended.facts["error"].startswith("device=cuda ")
    assert device["reason"] in ended.facts["error"]


REFUSED = """
from shardpress_kernels import backend
for _ in range(2):
    try:
        backend.start({require})
    except backend.DeviceUnavailable as error:
        facts.setdefault("errors", []).append(str(error))
"""


@needs_pygpu
@without_a_card
@pytest.mark.parametrize(("require", "flags"), [("require=True", ""), ("", ",force_device=True")])
def test_missing_required_device_is_an_error(require, flags):
    ended = run_python(REFUSED.format(require=require), THEANO_FLAGS=f"device=cuda{flags}")
    assert len(ended.facts["errors"]) == 2
    assert all("device=cuda " in error and "libcuda.so" in error for error in ended.facts["errors"])
    assert ended.stderr == ""


def test_force_device_in_a_file_requires_the_device(tmp_path):
    (tmp_path / ".theanorc").write_text(f"[global]\ndevice = {FILE}\nforce_device = True\n")
    ended = run_python(REFUSED.format(require=""), HOME=tmp_path)
    assert [error.split(" ")[0] for error in ended.facts["errors"]] == [f"device={FILE}"] * 2


def test_missing_pygpu_is_named_with_its_installer():
    code = "import sys\nsys.modules['pygpu'] = None\n" + START + "facts |= {'used': device.used, 'why': device.reason}"
    ended = run_python(code, THEANO_FLAGS="device=cuda")
    assert ended.facts["used"] == "cpu"
    assert "pygpu " in ended.facts["why"]
    assert "install_pygpu.sh" in ended.facts["why"]
    assert len(ended.stderr.splitlines()) == 1


def test_cpu_needs_no_pygpu_and_logs_nothing():
    code = "import sys\nsys.modules['pygpu'] = None\n" + START + "facts |= {'used': device.used, 'text': str(device)}"
    ended = run_python(code, THEANO_FLAGS="device=cpu,force_device=True")
    assert ended.facts["used"] == "cpu"
    assert ended.facts["text"].startswith("cpu (")
    assert ended.stderr == ""


# ---- products


PRODUCTS = """
import pathlib
import numpy as np
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.step import TrainingStep
autoencoder = Autoencoder(Network((5, 3)))
rows = np.ones((4, 5), np.float32)
autoencoder.encode(rows)
step = TrainingStep(autoencoder, "momentum", rows.dtype)
step.begin(rows, None, len(rows))
step.take([0.1])
from shardpress_kernels import backend
cache = backend.load().config.compiledir
mapped = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
modules = [pathlib.Path(name).read_bytes() for name in mapped if name.startswith(cache)]
facts["modules"] = len(modules)
facts["prefixed"] = sum(b"\\0scipy_sgemm_\\0" in module for module in modules)
facts["plain"] = sum(b"\\0sgemm_\\0" in module for module in modules)
import scipy_openblas32
facts["library"] = any(name.startswith(scipy_openblas32.get_lib_dir()) for name in mapped)
"""


def test_products_run_in_the_installed_openblas():
    ended = run_python(PRODUCTS, THEANO_FLAGS="optimizer_excluding=fused")
    assert ended.stderr == ""  # Theano warns if it has no BLAS
    assert ended.facts["modules"] > 0
    assert ended.facts["prefixed"] > 0
    assert ended.facts["plain"] == 0
    assert ended.facts["library"]


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
"""


def test_small_products_use_one_core_and_large_ones_all():
    facts = run_python(CORES, OPENBLAS_NUM_THREADS=None).facts
    assert facts["threads"] == [1, facts["cores"], 1]


def test_number_of_blas_threads_set_by_the_user_is_kept():
    assert run_python(CORES, OPENBLAS_NUM_THREADS="2").facts["threads"] == [2, 2, 2]
