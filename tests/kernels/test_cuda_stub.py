"""Tests of the emulated CUDA card: it shows the faults of kernels and of cards that other tests rely on."""

from __future__ import annotations

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
"""
# Each block sums its values in shared memory. All sizes of a grid and a block are above 1.
SUMS = '''
SUM = """
extern "C" __global__ void total(const float *x, float *sums, int n) {
    extern __shared__ float partial[];
    int thread = threadIdx.x + blockDim.x * threadIdx.y;
    int block = blockIdx.x + gridDim.x * blockIdx.y;
    int n_threads = blockDim.x * blockDim.y;
    float sum = 0;
    for (int i = thread; i < n; i += n_threads)
        sum += x[block * n + i];
    partial[thread] = sum;
    BARRIER;
    for (int half = n_threads / 2; half; half /= 2) {
        if (thread < half)
            partial[thread] += partial[thread + half];
        BARRIER;
    }
    if (thread == 0)
        sums[block] = partial[0];
}
"""
card = Card()
kernel = card.kernel(SUM.replace("BARRIER", barrier), "total")
x = np.random.default_rng(0).random((6, 1000)).astype(np.float32)
sums = card.allocate(24)
card.launch(kernel, [2, 3], [16, 8], [card.upload(x), sums, ctypes.c_int(1000)])
found = card.download(sums, np.empty(6, np.float32))
facts["close"] = bool(np.allclose(found, x.sum(axis=1, dtype=float), rtol=1e-5))
'''


def facts_of(code: str, **settings: Any) -> dict[str, Any]:
    """Return the ``facts`` of code that runs on a stub with these settings."""
    ended = run_python(BEGIN + code, **variables(**settings))
    assert ended.code == 0, ended.stderr
    return ended.facts


@pytest.mark.parametrize(("barrier", "is_close"), [("__syncthreads()", True), ("", False)])
def test_threads_share_memory_and_need_barriers(barrier: str, is_close: bool) -> None:
    assert facts_of(f'barrier = "{barrier}"' + SUMS) == {"close": is_close}


@pytest.mark.parametrize(("barrier", "code"), [("__syncthreads()", 0), ("", EXIT_CODE)])
def test_thread_sanitizer_reports_a_missing_barrier(barrier: str, code: int) -> None:
    # `python -m tests.support.thread_sanitizer` runs all kernels of shardpress, Theano and libgpuarray in the same way.
    ended = run_sanitized(f'{BEGIN}barrier = "{barrier}"{SUMS}')
    assert ended.code == code, ended.stderr
    assert ("data race" in ended.stderr) is bool(code), ended.stderr
