"""Measure what safety costs: the durable protocol, the checkpoints, and running a finished run again.

    run.py overheads                      2 GB of synthetic rows in overheads/
    run.py overheads --gigabytes 0.2 --rounds 3

The contestants take turns in one process, so that a noisy machine is noisy for both; what counts are the ratios. The
cheap contestant writes the same files without a digest, a sync or a record, and trains without a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from kernels import TILE_ROWS, backend
from kernels.autoencoder import Autoencoder
from kernels.network import Network
from kernels.step import TrainingStep
from kernels.updates import Rule
from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.device import autoencoder_of
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.encoding.worker import IN_MEMORY, EncodeSettings, serving
from pipeline.formats import digest
from pipeline.model import load_model
from pipeline.output.disk import Disk
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.ledger import Ledger
from pipeline.output.lock import locked
from pipeline.output.records import Entry, Record
from pipeline.run.budget import make_budget
from pipeline.settings.config import Config
from pipeline.settings.resolve import resolve
from pipeline.shards.open import open_shards
from pipeline.shards.shard import row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import Training, train
from pipeline.training.order import Order, slab_starts
from pipeline.training.rows import StreamedRows
from pipeline.training.start import start_of

N_COLUMNS = 784


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of rows (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("overheads"), help="working folder (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    folder = options.output
    shards = folder / "shards"
    n_rows = int(options.gigabytes * 1e9 / (4 * N_COLUMNS))
    script("make_data.py", "synthetic", "--rows", n_rows, "--columns", N_COLUMNS, "--shards", 8, "--output", shards)
    once = ("extract.py", "--quiet", "--input", shards, "--output", folder / "features", "--epochs", 1, "--overwrite")
    script(*once)
    print(f"{n_rows} rows x {N_COLUMNS} columns of float32, {backend.start()}, {options.rounds} rounds", flush=True)

    found = {
        # Which takes a fraction of a second: a disk that is slow for a moment must not decide.
        "encoding": take_turns(encodings(shards, folder), 5 * options.rounds),
        "training": take_turns(trainings(shards, folder), options.rounds),
        "finished run": take_turns(again(once, folder / "features"), options.rounds),
    }
    for name, seconds in found.items():
        spread = "; ".join(f"{who} {median(s):.3f} s ({min(s):.3f} to {max(s):.3f})" for who, s in seconds.items())
        cheap, safe = (median(s) for s in seconds.values())
        paired = median(b / a for a, b in zip(*seconds.values(), strict=True))
        print(f"{name}: {spread}; ratio {paired:.3f}, difference {safe - cheap:+.3f} s")
    (folder / "overheads.json").write_text(json.dumps(found, indent=1))
    return 0


def script(*command: Any) -> None:
    """A script of ours, to its end."""
    subprocess.run([sys.executable, f"scripts/{command[0]}", *map(str, command[1:])], check=True)


def take_turns(contestants: dict[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(n_rounds + 1):
        for name, contestant in contestants.items():
            took = contestant()
            if i:
                seconds[name].append(took)
    return seconds


# -- encoding ----------------------------------------------------------------------------------------------------


def encodings(folder: Path, work: Path) -> dict[str, Callable[[], float]]:
    """Encoding with files simply written, and with the durable protocol."""
    shards = open_shards([str(folder)])
    model = load_model(work / "features")
    settings = resolve(Config(), sum(shard.n_rows for shard in shards), model.n_inputs, model.network)
    budget = make_budget(settings, shards, TILE_ROWS)
    dtype = row_dtype(shards)
    autoencoder = autoencoder_of(model.scaler, model.network, dtype)
    autoencoder.set_parameters(model.parameters)
    parts, _ = plan_parts(shards, budget.part_rows, [])
    sizes = (budget.block_rows, budget.part_rows, budget.n_threads)

    def encode(directory: Path, commit: Callable[[PartFacts], object]) -> float:
        start, n_at_once = time.perf_counter(), budget.n_writers
        settings = EncodeSettings(str(directory), IN_MEMORY, dtype.name, *sizes)
        tasks = [(encode_part, EncodeTask(part, settings)) for part in parts]
        with serving(settings, model, autoencoder.encode_checked, Disk()), threads(n_at_once) as pool:
            compute(tasks, pool, n_at_once, commit)
        return time.perf_counter() - start

    def simply() -> float:
        target = fresh(work / "simple")
        (target / "parts").mkdir(parents=True)

        def write(directory: Path, disk: Disk, stem: str, suffix: str, data: memoryview) -> Entry:
            (directory / f"{stem}{suffix}").write_bytes(data)
            return Entry(stem, len(data), "")

        with patch("pipeline.encoding.encode.write_result", write):
            return encode(target, lambda done: None)

    def durably() -> float:
        with locked(fresh(work / "durable")) as ledger:
            start = time.perf_counter()
            with GroupCommit(ledger) as group:
                encode(ledger.directory, lambda done: group.add(done.record("0" * 64)))
            return time.perf_counter() - start

    return {"simply": simply, "durably": durably}


def fresh(folder: Path) -> Path:
    """A folder that is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


# -- training ----------------------------------------------------------------------------------------------------


def trainings(folder: Path, work: Path) -> dict[str, Callable[[], float]]:
    """Two streamed epochs without checkpoints, and with them."""
    shards = open_shards([str(folder)])
    n_rows = sum(shard.n_rows for shard in shards)
    config = resolve(
        Config(epochs=2, validation_fraction=0, hidden=(), code_activation="sigmoid", decoder_gain=False),
        n_rows,
        N_COLUMNS,
    )
    budget = make_budget(config, shards, TILE_ROWS)
    none = np.empty(0, dtype=np.int64)
    order = Order(slab_starts(shards, budget.window_rows // 4), none, budget.window_rows, config.seed)
    model = load_model(work / "features")
    autoencoder = Autoencoder(Network((N_COLUMNS, config.n_features)), *model.scaler.arrays(row_dtype(shards)))
    step = TrainingStep(autoencoder, Rule(config.optimizer, config.momentum), row_dtype(shards))
    step.compile()

    def fit(save: Callable[[Checkpoint], object]) -> float:
        autoencoder.set_parameters(start_of(autoencoder.network, np.random.default_rng(config.seed), None))
        step.set_state({name: np.zeros_like(array) for name, array in step.state().items()})
        rows = StreamedRows(shards, budget.n_threads)
        training = Training(autoencoder, step, rows, order, np.empty((0, N_COLUMNS), np.float32), config)
        start = time.perf_counter()
        train(training, save)
        return time.perf_counter() - start

    def with_checkpoints() -> float:
        with locked(fresh(work / "durable")) as ledger:
            return fit(partial(keep, ledger))

    return {"without checkpoints": lambda: fit(lambda checkpoint: None), "with checkpoints": with_checkpoints}


def keep(ledger: Ledger, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint."""
    entry = ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    ledger.commit(Record(f"checkpoint-{checkpoint.n_steps:012d}", "0" * 64, entry))


# -- a finished run ----------------------------------------------------------------------------------------------


def again(command: Sequence[Any], features: Path) -> dict[str, Callable[[], float]]:
    """One pass of reading the features with their digests, and the finished run typed again."""

    def read() -> float:
        start = time.perf_counter()
        for path in sorted(features.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    digest(iter(partial(file.read, 2**20), b""))
        return time.perf_counter() - start

    def rerun() -> float:
        start = time.perf_counter()
        script(*command)
        return time.perf_counter() - start

    return {"one pass of reading": read, "the run again": rerun}
