"""Tests of memory: it stays within the budget and a documented constant, for any amount of data.

Sample: a budget of 40 MiB, and with TEST_CASES=all of 64 MiB, with a network that just fits into it. The data are four
times as large.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from tests.support.cases import ALL_CASES
from tests.support.helpers import numbered, write_shard

pytestmark = pytest.mark.process

MIB = 2**20
BUDGET = (64 if ALL_CASES else 40) * MIB
HIDDEN = ["--hidden", "512" if ALL_CASES else "256"]

# Memory of Python, NumPy, HDF5, Theano with its compiled code, and BLAS buffers, as in the README.
CONSTANT = 300 * MIB

CHILD = """
import json, re, sys
from tests.support.fields import run_with_sizes
code = run_with_sizes(sys.argv[1:])
# Not ru_maxrss: that counts what the parent had before it became this program.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"code": code, "peak": 1024 * peak}))
"""


def peak(source: str, output: Path) -> int:
    """Return the peak resident memory, in bytes, of a run in a process of its own."""
    flags = ["--input", source, "--output", str(output), "--epochs", "1", "--threads", "2", *HIDDEN]
    flags += ["--memory-budget", f"{BUDGET // MIB}MiB", f"shuffle_window={BUDGET // 8}", f"sample_bytes={BUDGET // 16}"]
    result = subprocess.run([sys.executable, "-c", CHILD, *flags], capture_output=True, text=True, check=False)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["code"] == 0, result.stderr
    return int(found["peak"])


def test_rows_of_four_times_the_budget_stay_within_it(tmp_path: Path) -> None:
    small = peak(write_shard(tmp_path / "x.h5", numbered(100, 784, dtype=np.float32)), tmp_path / "small")
    rng = np.random.default_rng(0)
    n_rows = 4 * BUDGET // (3 * 4 * 784) + 1
    shards = tmp_path / "shards"
    shards.mkdir()
    compressed = {"chunks": (64, 784), "compression": "gzip", "compression_opts": 1}
    for i in range(3):
        rows = rng.integers(0, 4, (n_rows, 784)).astype(np.float32)  # such values are compressed quickly
        write_shard(shards / f"{i}.h5", rows, **(compressed if i else {}))
    found = peak(str(shards), tmp_path / "out")
    assert found < BUDGET + CONSTANT
    # The peak of equal runs varies by 20 MiB.
    assert found - small < 1.5 * BUDGET, "memory for the rows alone is near the budget"
    assert open_features(tmp_path / "out").features.shape == (3 * n_rows, 64)


def test_extras_of_four_times_the_budget_stay_within_it(tmp_path: Path) -> None:
    """The extras are 20,000 texts: they count in the budget like rows and features."""
    n_rows = 20_000
    n_bytes = 4 * BUDGET // 20_000
    source = write_shard(tmp_path / "x.h5", np.random.default_rng(0).random((n_rows, 16), np.float32))
    with h5py.File(source, "a") as file:
        texts = file.create_dataset("text", (n_rows,), h5py.string_dtype())
        for start in range(0, n_rows, 1000):
            texts[start : start + 1000] = [b"%d" % i + b"x" * n_bytes for i in range(start, start + 1000)]
        del texts
    assert peak(source, tmp_path / "out") < BUDGET + CONSTANT
    with h5py.File(tmp_path / "out/index.h5") as file:
        assert all(file["text"][i].startswith(b"%dx" % i) for i in range(0, n_rows, 999))
