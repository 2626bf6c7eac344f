"""Tests of the workarounds for libgpuarray. Each fault occurs if the real library is opened directly."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from shardpress.base.errors import DeviceError
from shardpress.setup.install import _build_forwarders
from tests.support.cards import driver
from tests.support.cuda.stub import variables
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process


def with_and_without(code: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``facts`` with our libraries in front of a stub with these settings, and without our libraries."""
    ours, without = (run_python(code, **variables(forwarded, **settings)) for forwarded in (True, False))
    return ours.facts, without.facts


# ---- the driver


PYGPU = """
import numpy as np
import pygpu
context = pygpu.init("cuda0")
x = pygpu.array(np.arange(1000, dtype=np.float32), context=context, cls=pygpu._array.ndgpuarray)
found = np.full(1000, -1, np.float32)
(x + x).read(found)
facts["right"] = bool((found == 2 * np.arange(1000)).all())
"""


@pytest.mark.usefixtures("pygpu")
def test_downloads_of_libgpuarray_are_complete_on_return() -> None:
    ours, without = with_and_without(PYGPU, hold="downloads")
    assert (ours, without) == ({"right": True}, {"right": False})


THREAD = """
import ctypes
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int, c_size_t, c_void_p
import numpy as np
cuda = ctypes.CDLL("libcuda.so")
device = c_int()
context = c_void_p()
stream = c_void_p()
place = c_void_p()
source = np.ones(16, np.float32)
found = np.zeros(16, np.float32)
n_bytes = c_size_t(source.nbytes)
assert not cuda.cuInit(0)
assert not cuda.cuDeviceGet(byref(device), 0)
assert not cuda.cuDevicePrimaryCtxRetain(byref(context), device)
assert not cuda.cuCtxPushCurrent_v2(context)
assert not cuda.cuStreamCreate(byref(stream), 0)
assert not cuda.cuMemAlloc_v2(byref(place), n_bytes)
assert not cuda.cuMemcpyHtoDAsync_v2(place, c_void_p(source.ctypes.data), n_bytes, stream)
source[:] = 2
def download():
    return cuda.cuMemcpyDtoHAsync_v2(c_void_p(found.ctypes.data), place, n_bytes, stream)
def work():
    facts["code"] = download()
    facts["found"] = float(found.mean())
    facts["pops"] = [cuda.cuCtxPopCurrent_v2(None), cuda.cuCtxPopCurrent_v2(None)]
with ThreadPoolExecutor(1) as pool:
    pool.submit(work).result()
assert not cuda.cuStreamSynchronize(stream)
assert not download()
facts["uploaded"] = float(found.mean())
"""


def test_uploads_are_waited_for_and_a_thread_gets_a_context_once() -> None:
    ours, without = with_and_without(THREAD, hold="uploads")
    # 201 is CUDA_ERROR_INVALID_CONTEXT: the thread has no context, or no second one.
    assert ours == {"code": 0, "found": 1, "pops": [0, 201], "uploaded": 1}
    assert without == {"code": 201, "found": 0, "pops": [201, 201], "uploaded": 2}


# ---- NVRTC


@pytest.mark.usefixtures("pygpu")
def test_libgpuarray_computes_on_cards_with_unknown_architecture() -> None:
    code = f"try:\n{indent(PYGPU, '    ')}\nexcept Exception as error:\n    facts['error'] = str(error)"
    ours, without = with_and_without(code, capability="12.1")
    assert ours == {"right": True}
    assert set(without) == {"error"}  # the message depends on the build of pygpu


# ---- building


def test_missing_driver_is_named_and_found_once_installed(tmp_path: Path) -> None:
    _build_forwarders(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["libcuda.so"]
    code = f"import ctypes\nours = ctypes.CDLL('{tmp_path}/libcuda.so')\n"
    ended = run_python(code, check=False, LD_LIBRARY_PATH=None)
    assert ended.code == 0 or "libcuda.so.1: cannot open shared object file" in ended.stderr
    code += "facts['codes'] = [ours.cuInit(0), ours.cuMemAlloc_v2(None, 4)]"
    later = driver(tmp_path / "driver", (12, 4)).parent
    assert run_python(code, LD_LIBRARY_PATH=later).facts == {"codes": [0, 500]}, (
        "CUDA_ERROR_NOT_FOUND for missing functions"
    )


def test_failing_compiler_replaces_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so").write_text("an earlier one")
    for compiler in ("/nowhere/g++", "false -m64"):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(DeviceError, match=r"g\+\+|false"):
            _build_forwarders(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]
