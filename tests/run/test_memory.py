"""Test of memory: it stays within the budget and a documented constant, for any amount of data.

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

from shardpress.result.features import open_features
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
import dask.local  # which a run with a single task does not load
from tests.support.fields import run_with_sizes
flags = sys.argv[1:-1]
peaks = []
for source in sys.argv[-1].split(","):
    assert run_with_sizes(["--input", source, "--output", source + ".out", *flags]) == 0
    # Not ru_maxrss: that counts what the parent had before it became this program.
    peaks.append(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
print(json.dumps(peaks))
"""


def peaks(*sources: Path) -> list[int]:
    """Return the peak resident memory, in bytes, of one process after each of several runs."""
    flags = ["--epochs", "1", "--threads", "2", *HIDDEN, "--memory-budget", f"{BUDGET // MIB}MiB"]
    flags += [f"shuffle_window={BUDGET // 8}", f"sample_bytes={BUDGET // 16}", ",".join(map(str, sources))]
    result = subprocess.run([sys.executable, "-c", CHILD, *flags], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [int(peak) for peak in json.loads(result.stdout.splitlines()[-1])]


def write_rows(folder: Path, n_rows: int) -> None:
    """Write three shards, of which two are compressed."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    compressed = {"chunks": (64, 784), "compression": "gzip", "compression_opts": 1}
    for i in range(3):
        rows = rng.integers(0, 4, (n_rows, 784)).astype(np.float32)  # such values are compressed quickly
        write_shard(folder / f"{i}.h5", rows, **(compressed if i else {}))


def write_texts(path: Path, n_bytes: int) -> None:
    """Write a shard with few columns and 20,000 texts."""
    texts = np.array([b"%d" % i + b"x" * n_bytes for i in range(20_000)], dtype=h5py.string_dtype())
    write_shard(path, np.random.default_rng(0).random((20_000, 16), np.float32), extras={"text": texts})


def test_rows_or_extras_of_four_times_the_budget_stay_within_it(tmp_path: Path) -> None:
    n_rows = 4 * BUDGET // (3 * 4 * 784) + 1
    write_shard(tmp_path / "small.h5", numbered(100, 784, dtype=np.float32))
    write_rows(tmp_path / "rows", n_rows)
    write_texts(tmp_path / "texts.h5", 4 * BUDGET // 20_000)
    small, with_texts = peaks(tmp_path / "small.h5", tmp_path / "texts.h5")
    (with_rows,) = peaks(tmp_path / "rows")
    assert max(with_rows, with_texts) < BUDGET + CONSTANT
    # The peak of equal runs varies by 20 MiB.
    assert with_rows - small < 1.5 * BUDGET, "memory for the rows alone is near the budget"
    assert open_features(tmp_path / "rows.out").features.shape == (3 * n_rows, 64)
    with h5py.File(tmp_path / "texts.h5.out/index.h5") as file:
        assert all(file["text"][i].startswith(b"%dx" % i) for i in range(0, 20_000, 999))
