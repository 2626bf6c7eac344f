"""Tests of the emulated CUDA card: results, delayed copies, errors, and faults on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cuda.stub import variables
from tests.support.interpreters import run_python
from tests.support.thread_sanitizer import EXIT_CODE, run_sanitized

pytestmark = pytest.mark.process

BEGIN = """
import ctypes
import numpy as np
from tests.support.cuda.calls import CUDA, Card, call, code_of
FILL = 'extern "C" __global__ void fill(float *x, float value) { x[blockIdx.x * blockDim.x + threadIdx.x] = value; }'
"""


def facts_of(code: str, **settings: Any) -> dict[str, Any]:
    """Return the ``facts`` of code that runs on a stub with these settings."""
    ended = run_python(BEGIN + code, **variables(**settings))
    assert ended.code == 0, ended.stderr
    return ended.facts


# -- results


def test_every_thread_of_every_block_runs_once() -> None:
    facts = facts_of("""
card = Card()
kernel = card.kernel('''
extern "C" __global__ void place(long long *x) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int n_threads = blockDim.x * blockDim.y * blockDim.z;
    atomicAdd((unsigned long long *)x + block * n_threads + thread, block * 1000ull + thread);
}''', "place")
zeros = np.zeros(24 * 60, np.int64)
place = card.upload(zeros)
card.launch(kernel, (2, 3, 4), (3, 4, 5), [place])
found = card.download(place, np.empty_like(zeros))
facts["right"] = np.array_equal(found.reshape(24, 60), np.arange(24)[:, None] * 1000 + np.arange(60))
""")
    assert facts == {"right": True}


SUM = """
extern "C" __global__ void total(const float *x, float *sums, int n) {
    extern __shared__ float partial[];
    __shared__ float last;
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += x[blockIdx.x * n + i];
    partial[threadIdx.x] = sum;
    BARRIER;
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half)
            partial[threadIdx.x] += partial[threadIdx.x + half];
        BARRIER;
    }
    if (threadIdx.x == blockDim.x - 1)
        last = partial[0];
    BARRIER;
    if (threadIdx.x == 0)
        sums[blockIdx.x] = last;
}
"""
SUMS = f"""
card = Card()
kernel = card.kernel('''{SUM}'''.replace("BARRIER", barrier), "total")
x = np.random.default_rng(0).random((5, 1000)).astype(np.float32)
sums = card.allocate(20)
card.launch(kernel, [5], [128], [card.upload(x), sums, ctypes.c_int(1000)])
found = card.download(sums, np.empty(5, np.float32))
facts["close"] = bool(np.allclose(found, x.sum(axis=1, dtype=float), rtol=1e-5))
"""


def test_threads_of_a_block_synchronize_and_share_memory() -> None:
    assert facts_of('barrier = "__syncthreads()"' + SUMS) == {"close": True}


def test_missing_barrier_gives_a_wrong_result() -> None:
    assert facts_of('barrier = ""' + SUMS) == {"close": False}


@pytest.mark.parametrize(("barrier", "code"), [("__syncthreads()", 0), ("", EXIT_CODE)])
def test_thread_sanitizer_reports_a_missing_barrier(barrier: str, code: int) -> None:
    # `python -m tests.support.thread_sanitizer` runs all kernels of shardpress, Theano and libgpuarray in the same way.
    ended = run_sanitized(f'{BEGIN}barrier = "{barrier}"{SUMS}')
    assert ended.code == code, ended.stderr
    assert ("data race" in ended.stderr) is bool(code), ended.stderr


def test_unwritten_memory_is_nan() -> None:
    facts = facts_of("""
card = Card()
facts["all"] = bool(np.isnan(card.download(card.allocate(40), np.zeros(10, np.float32))).all())
""")
    assert facts == {"all": True}


# -- delayed copies

READ = """
card = Card()
kernel = card.kernel(FILL, "fill")
place = card.upload(np.zeros(64, np.float32))
card.launch(kernel, [2], [32], [place, ctypes.c_float(7)])
found = card.download(place, np.zeros(64, np.float32))
facts["before"] = bool((found == 7).all())
card.synchronise()
facts["after"] = bool((found == 7).all())
"""


def test_synchronous_download_is_complete_on_return() -> None:
    # Drivers up to CUDA 12.1 copy synchronously.
    assert facts_of(READ) == {"before": True, "after": True}


def test_delayed_download_is_complete_with_its_stream() -> None:
    assert facts_of(READ, hold="downloads") == {"before": False, "after": True}


@pytest.mark.parametrize(("hold", "expected"), [(None, 1), ("uploads", 2)])
def test_upload_is_staged_unless_it_is_delayed(hold: str | None, expected: int) -> None:
    facts = facts_of(
        """
card = Card()
source = np.ones(16, np.float32)
place = card.upload(source)
source[:] = 2
card.synchronise()
facts["found"] = float(card.download(place, np.zeros(16, np.float32)).mean())
""",
        hold=hold,
    )
    assert facts == {"found": expected}


def test_stream_waits_for_an_event_of_another_stream() -> None:
    facts = facts_of("""
card = Card()
other = ctypes.c_void_p()
event = ctypes.c_void_p()
kernel = card.kernel(FILL, "fill")
place = card.upload(np.zeros(32, np.float32))
call("cuStreamCreate", ctypes.byref(other), 0)
call("cuEventCreate", ctypes.byref(event), 0)
card.launch(kernel, [1], [32], [place, ctypes.c_float(3)])
call("cuEventRecord", event, card.stream)
call("cuStreamWaitEvent", other, event, 0)
card.stream = other
facts["found"] = float(card.download(place, np.zeros(32, np.float32)).mean())
""")
    assert facts == {"found": 3}


# -- errors


def test_call_from_a_thread_without_a_context_is_refused() -> None:
    facts = facts_of("""
from concurrent.futures import ThreadPoolExecutor
card = Card()
def elsewhere(*arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(code_of, *arguments).result()
facts["here"] = code_of(card.allocate, 4)
facts["elsewhere"] = elsewhere(card.allocate, 4)
def with_one():
    call("cuCtxPushCurrent_v2", card.context)
    card.allocate(4)
facts["with one"] = elsewhere(with_one)
call("cuCtxPopCurrent_v2", None)
facts["popped"] = code_of(card.allocate, 4)
""")
    assert facts == {"here": 0, "elsewhere": 201, "with one": 0, "popped": 201}


# NVRTC 12.9 writes PTX 8.8, which older drivers refuse. PTX for an architecture that the card lacks is also refused.
@pytest.mark.parametrize(
    ("driver", "architecture", "expected"),
    [
        ("12.9", "compute_90", 0),
        ("13.0", "compute_90", 0),
        ("12.8", "compute_90", 222),
        ("12.4", "compute_90", 222),
        ("12.9", "compute_100", 209),
    ],
)
def test_unknown_ptx_or_architecture_is_refused(driver: str, architecture: str, expected: int) -> None:
    facts = facts_of(f'facts["code"] = code_of(Card().kernel, FILL, "fill", "{architecture}")', driver=driver)
    assert facts == {"code": expected}


@pytest.mark.parametrize(("visible", "expected"), [(None, 3), ("2,0", 2), ("1,-1,2", 1), ("", None)])
def test_cuda_visible_devices_selects_cards(visible: str | None, expected: int | None) -> None:
    code = """
facts["code"] = code_of(call, "cuInit", 0)
n = ctypes.c_int()
if not facts["code"]:
    call("cuDeviceGetCount", ctypes.byref(n))
    facts["n"] = n.value
"""
    ended = run_python(BEGIN + code, **variables(cards=3), CUDA_VISIBLE_DEVICES=visible)
    assert ended.facts == ({"code": 100} if expected is None else {"code": 0, "n": expected}), ended.stderr


# -- faults on demand


@pytest.mark.parametrize("settings", [{"oom_at": 3}, {"memory": 2}])
def test_memory_runs_out_where_configured(settings: dict[str, int]) -> None:
    facts = facts_of(
        """
card = Card()
places = [card.allocate(1 << 20), card.allocate(1 << 20)]
facts["third"] = code_of(card.allocate, 1 << 20)
for place in places:
    call("cuMemFree_v2", place)
facts["later"] = code_of(card.allocate, 1 << 20)
""",
        **settings,
    )
    assert facts == {"third": 2, "later": 0}


def test_lost_card_fails_on_synchronization_and_afterwards() -> None:
    facts = facts_of(
        """
card = Card()
kernel = card.kernel(FILL, "fill")
place = card.upload(np.zeros(32, np.float32))
facts["launches"] = [code_of(card.launch, kernel, [1], [32], [place, ctypes.c_float(3)]) for i in range(2)]
facts["wait"] = code_of(card.synchronise)
facts["later"] = [code_of(card.allocate, 4), code_of(card.download, place, np.zeros(32, np.float32))]
call("cuCtxPopCurrent_v2", None)
""",
        lost_at=2,
    )
    assert facts == {"launches": [0, 0], "wait": 214, "later": [214, 214]}


def test_log_has_a_line_for_each_call(tmp_path: Path) -> None:
    facts_of("Card().upload(np.zeros(64, np.float32))", log=tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-4:] == ["cuMemAlloc_v2", "allocate 256", "cuMemcpyHtoDAsync_v2", "upload 256"]
