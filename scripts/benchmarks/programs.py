"""Races and measurements of whole programs, on files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from kernels.network import Network
from scripts.benchmarks.common import ROOT, fresh, report_of
from scripts.benchmarks.memory import encoding_rate
from scripts.benchmarks.race import Bench, environment

# Dtype and layout of the files, number of rows, and the required ratio.
LAYOUTS: dict[str, tuple[dict[str, Any], int, float]] = {
    "contiguous float32": ({"dtype": "f4"}, 1_600_000, 1.5),
    "contiguous uint8": ({"dtype": "u1"}, 1_600_000, 1.5),
    "gzip uint8": ({"dtype": "u1", "chunks": (256, 784), "compression": "gzip", "compression_opts": 4}, 400_000, 1.8),
    "lzf float32": ({"dtype": "f4", "chunks": (64, 784), "compression": "lzf"}, 400_000, 1.5),
    "badly chunked": (
        {"dtype": "u1", "chunks": (2048, 25), "compression": "gzip", "compression_opts": 4},
        400_000,
        1.5,
    ),
}
GROWTH_ROWS = 400_000
# The program prints its own peak memory, because the peak that the kernel reports for a child includes the memory of
# this process at the start.
_PROGRAM = """
import sys
from scripts.extract import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def extract(*flags: object, **variables: str) -> tuple[float, int]:
    """Run scripts/extract.py, and return its seconds and its peak memory in bytes."""
    command = [sys.executable, "-c", _PROGRAM, "--quiet", *map(str, flags)]
    start = time.perf_counter()
    printed = subprocess.check_output(command, cwd=ROOT, env=environment(**variables), text=True)
    return time.perf_counter() - start, 1024 * int(printed.split()[-1])


def make_shards(folder: Path, n_rows: int, n_shards: int, dtype: str, n_inputs: int = 784, **layout: Any) -> Path:
    """Write rows that compress like images: half of the pixels are 0, and the others are smooth."""
    fresh(folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(64, n_inputs)).cumsum(axis=1).astype(np.float32)
    for i in range(n_shards):
        n = (i + 1) * n_rows // n_shards - i * n_rows // n_shards
        with h5py.File(folder / f"{i:04d}.h5", "w") as file:
            X = file.create_dataset("X", (n, n_inputs), dtype, **layout)
            for start in range(0, n, 8192):
                stop = min(start + 8192, n)
                X[start:stop] = draw_pixels(rng, stop - start, base)
    return folder


def draw_pixels(rng: np.random.Generator, n_rows: int, base: np.ndarray) -> np.ndarray:
    """Return rows that are mixtures of 8 rows of `base`."""
    weights = rng.normal(size=(n_rows, 8)).astype(np.float32)
    chosen = base[rng.integers(0, len(base), 8)]
    return np.clip(4 * weights @ chosen + 0.5, 0, 255).astype(np.uint8)


def fitted_model(bench: Bench) -> Path:
    """Train a model with one layer of sigmoids, like the peers' model."""
    shards = make_shards(bench.folder / "shards-small", 20_000, 1, dtype="u1")
    output = fresh(bench.folder / "model")
    one_layer = ("--hidden", "none", "--code-activation", "sigmoid", "--decoder-gain", "no")
    extract("--input", shards, "--output", output, "--epochs", 1, *one_layer, **bench.variables)
    return output


def files(bench: Bench) -> None:
    """Encode files, with a warm and a cold page cache."""
    model = fitted_model(bench)
    for name, (layout, most_rows, least) in LAYOUTS.items():
        n_rows = int(most_rows * bench.size)
        shards = make_shards(bench.folder / "shards", n_rows, 4, **layout)
        race = partial(race_files, bench, shards, model)
        ratios = race(f"{name}, {n_rows} rows, page cache warm", lambda: None)
        race(f"{name}, {n_rows} rows, page cache cold", partial(evict, shards))
        shutil.rmtree(shards)
        bench.demand_of_peers(f"files, {name},", ratios, least)
        if name.startswith("contiguous"):
            rate = n_rows / ratios["ours"]
            rate_in_memory = encoding_rate(bench, Network((784, 64)), layout["dtype"])
            bench.demand(f"files, {name}, vs our rate in memory", rate / rate_in_memory, 0.7)


def race_files(bench: Bench, shards: Path, model: Path, what: str, before: Callable[[], object]) -> dict[str, float]:
    """Race for the features of some shards, and return the ratios."""
    sizes = {"shards": str(shards), "model": str(model)}
    return bench.race("encode_files", what, ("ours", "jax", "torch", "sklearn"), sizes, (0.0, 1e-3), before=before)


def evict(shards: Path) -> None:
    """Ask the kernel to drop files from the page cache."""
    for path in shards.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(bench: Bench) -> None:
    """Scan and train 5 epochs, in memory and streamed; the costs of the models must be similar."""
    data = ROOT / "data"
    if any(data.glob("fashion-mnist-train-*.h5")):
        race_trainings(bench, data, "Fashion-MNIST, in memory", 2**31)
    else:
        shards = make_shards(bench.folder / "shards-train", 60_000, 4, dtype="u1")
        race_trainings(bench, shards, "60000 rows, in memory", 2**31)
    n_rows = int(500_000 * bench.size)
    shards = make_shards(bench.folder / "shards-train", n_rows, 4, dtype="u1")
    race_trainings(bench, shards, f"{n_rows} rows, streamed", 2**27)


def race_trainings(bench: Bench, shards: Path, what: str, memory: int) -> None:
    """Race for a training run on some shards with a memory budget."""
    sizes = {"shards": str(shards), "epochs": 5, "batch_size": 512, "memory": memory}
    ratios = bench.race("train_files", what, ("ours", "jax", "torch", "torch-compile"), sizes, (0.1, 0.0))
    bench.demand_of_peers(f"training, {what},", ratios, 1.2)


def startup(bench: Bench) -> None:
    """Measure a whole process that trains four steps, with a cold and a warm compile cache."""
    shards = make_shards(bench.folder / "shards-tiny", 2000, 1, dtype="u1")
    flags = ("--input", shards, "--output", bench.folder / "tiny", "--epochs", 1, "--batch-size", 512, "--restart")
    cache = bench.folder / "cache"
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(min(3, bench.rounds)):
        fresh(cache)
        for each in seconds.values():
            each.append(extract(*flags, XDG_CACHE_HOME=str(cache), **bench.variables)[0])
    for name, most in (("warm", 4.0), ("cold", 40.0)):
        what = f"start-up, {name} compile cache, a whole tiny run, s"
        print(f"{what}: {median(seconds[name]):.2f}", flush=True)
        bench.demand(what, median(seconds[name]), most=most)
    bench.results.append({"case": "startup", "seconds": seconds})


def growth(bench: Bench) -> None:
    """Measure time per row and peak memory with more rows, and with more shards of the same rows."""
    model = fitted_model(bench)
    folder = fresh(bench.folder / "growth")
    n_rows = int(GROWTH_ROWS * bench.size)
    cases = {
        "rows x1": (n_rows, 4),
        "rows x4": (4 * n_rows, 4),
        "rows x16": (16 * n_rows, 4),
        "1 shard": (4 * n_rows, 1),
        "10 shards": (4 * n_rows, 10),
        "1000 shards": (4 * n_rows, 1000),
    }
    seconds = {}
    peaks = {}
    for name, sizes in cases.items():
        seconds[name], peaks[name] = encode_shards(bench, folder / name, model, *sizes)
        print(f"growth, {name}: {seconds[name]:.3g} s per row, peak {peaks[name]:.3g} bytes", flush=True)
    shutil.rmtree(folder)
    bench.results.append({"case": "growth", "seconds per row": seconds, "peak": peaks})
    bench.demand("growth of time per row, x1 to x16", seconds["rows x16"] / seconds["rows x1"], most=1.1)
    bench.demand("growth of time per row, 1 to 1000 shards", seconds["1000 shards"] / seconds["1 shard"], most=1.1)
    bench.demand("growth of peak memory, x1 to x16", peaks["rows x16"] / peaks["rows x1"], most=1.05)


def encode_shards(bench: Bench, folder: Path, model: Path, n_rows: int, n_shards: int) -> tuple[float, float]:
    """Encode new shards several times; return the medians of the seconds per row and of the peak memory."""
    shards = make_shards(folder / "shards", n_rows, n_shards, dtype="u1")
    seconds = []
    peaks = []
    for i in range(min(5, bench.rounds)):
        output = folder / str(i)
        flags = ("--input", shards, "--model", model, "--memory-budget", "512MiB", "--output", output)
        _, peak = extract(*flags, **bench.variables)
        peaks.append(peak)
        seconds.append(sum(report_of(output)["summary"]["seconds"].values()) / n_rows)
        empty_files(output)
    empty_files(shards)
    return median(seconds), median(peaks)


def empty_files(folder: Path) -> None:
    """Truncate all files. Removing them would slow down the next run, because ext4 searches recently freed inodes."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
