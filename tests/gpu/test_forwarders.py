"""Tests of the workarounds for libgpuarray. Each fault occurs if the real library is opened directly."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from shardpress.errors import DeviceError
from shardpress.gpu.install import _build_forwarders
from tests.support.cards import driver
from tests.support.cuda.stub import variables
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

BEGIN = """
import ctypes
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tests.support.cuda.calls import CUDA, Card, call, code_of
def in_thread(*arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(code_of, *arguments).result()
"""


def with_and_without(code: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``facts`` with our libraries in front of a stub with these settings, and without our libraries."""
    ours, without = (run_python(BEGIN + code, **variables(forwarded, **settings)) for forwarded in (True, False))
    return ours.facts, without.facts


# ---- the driver


PYGPU = """
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
card = Card()
source = np.ones(16, np.float32)
place = card.upload(source)
source[:] = 2
def work():
    facts["found"] = float(card.download(place, np.zeros(16, np.float32)).mean())
    call("cuCtxPopCurrent_v2", None)
    facts["twice"] = code_of(call, "cuCtxPopCurrent_v2", None)
facts["code"] = in_thread(work)
card.synchronise()
facts["uploaded"] = float(card.download(place, np.zeros(16, np.float32)).mean())
"""


def test_uploads_are_waited_for_and_a_thread_gets_a_context_once() -> None:
    ours, without = with_and_without(THREAD, hold="uploads")
    assert ours == {"found": 1, "twice": 201, "code": 0, "uploaded": 1}
    assert without == {"code": 201, "uploaded": 2}


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
