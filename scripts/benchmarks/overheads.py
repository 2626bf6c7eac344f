"""Measure what safety costs: the durable protocol, the checkpoints, and running a finished run again.

    run.py overheads                      2 GB of synthetic rows in overheads/
    run.py overheads --gigabytes 0.2 --rounds 3

The contestants take turns in one process, so that a noisy machine is noisy for both; what counts are the ratios. The
cheap contestant writes the same files without a digest, a sync or a record, and trains without a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
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
from pipeline.run.budget import Budget, make_budget
from pipeline.settings.config import Config
from pipeline.settings.resolve import Settings, network_of, resolve
from pipeline.shards.open import open_shards
from pipeline.shards.shard import Shard, row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import Training
from pipeline.training.loop import CheckpointPolicy, training_loop
from pipeline.training.order import Order, slab_starts
from pipeline.training.rows import StreamedRows
from pipeline.training.start import start_of
from scripts.benchmarks.common import fresh, script

N_COLUMNS = 784
NO_FINGERPRINT = "0" * 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--gigabytes", type=float, default=2.0, help="of rows (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    add("--output", type=Path, default=Path("overheads"), help="working folder (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    folder = options.output.resolve()
    shards = folder / "shards"
    n_rows = int(options.gigabytes * 1e9 / (4 * N_COLUMNS))
    size = ("--rows", n_rows, "--columns", N_COLUMNS, "--shards", 8)
    script("make_data.py", "synthetic", *size, "--output", shards)
    once = ("extract.py", "--quiet", "--input", shards, "--output", folder / "features", "--epochs", 1, "--overwrite")
    script(*once)
    print(f"{n_rows} rows x {N_COLUMNS} columns of float32, {backend.start()}, {options.rounds} rounds", flush=True)

    encoding = Encoding(shards, folder)
    training = TwoEpochs(shards, folder)
    found = {
        # Encoding takes a fraction of a second: a disk that is slow for a moment must not decide.
        "encoding": take_turns({"simply": encoding.simply, "durably": encoding.durably}, 5 * options.rounds),
        "training": take_turns(
            {"without checkpoints": training.without_checkpoints, "with checkpoints": training.with_checkpoints},
            options.rounds,
        ),
        "finished run": take_turns(
            {
                "one pass of reading": partial(seconds_of, partial(read, folder / "features")),
                "the run again": partial(seconds_of, partial(script, *once)),
            },
            options.rounds,
        ),
    }
    for name, seconds in found.items():
        spread = "; ".join(f"{who} {median(s):.3f} s ({min(s):.3f} to {max(s):.3f})" for who, s in seconds.items())
        cheap, safe = seconds.values()
        ratio = median(b / a for a, b in zip(cheap, safe, strict=True))
        print(f"{name}: {spread}; ratio {ratio:.3f}, difference {median(safe) - median(cheap):+.3f} s")
    (folder / "overheads.json").write_text(json.dumps(found, indent=1))
    return 0


def take_turns(contestants: dict[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(n_rounds + 1):
        for name, contestant in contestants.items():
            took = contestant()
            if i:
                seconds[name].append(took)
    return seconds


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(features: Path) -> None:
    """Read the files of a run with their digests."""
    for path in sorted(features.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest(iter(partial(file.read, 2**20), b""))


def budget_of(settings: Settings, shards: Sequence[Shard], n_replicas: int) -> Budget:
    """Return the budget of a run with these settings."""
    network = network_of(settings.network, shards[0].n_inputs)
    return make_budget(settings.machine, settings.storage, network, n_replicas, shards, TILE_ROWS)


class Encoding:
    """Encoding with files simply written, and with the durable protocol."""

    def __init__(self, folder: Path, work: Path) -> None:
        shards = open_shards([str(folder)])
        self.work = work
        self.model = load_model(work / "features")
        n_rows = sum(shard.n_rows for shard in shards)
        settings = resolve(Config(), n_rows, self.model.n_inputs, self.model.network)
        self.budget = budget_of(settings, shards, n_replicas=0)
        self.dtype = row_dtype(shards)
        self.autoencoder = autoencoder_of(self.model.scaler, self.model.network, self.dtype)
        self.autoencoder.set_parameters(self.model.parameters)
        self.parts, _ = plan_parts(shards, self.budget.part_rows, [])

    def encode(self, directory: Path, commit: Callable[[PartFacts], object]) -> None:
        budget = self.budget
        sizes = (budget.block_rows, budget.part_rows, budget.n_threads)
        settings = EncodeSettings(str(directory), IN_MEMORY, self.dtype.name, *sizes)
        tasks = [(encode_part, EncodeTask(part, settings)) for part in self.parts]
        encode = self.autoencoder.encode_checked
        with serving(settings, self.model, encode, Disk()), threads(budget.n_writers) as pool:
            compute(tasks, pool, budget.n_writers, commit)

    def simply(self) -> float:
        target = fresh(self.work / "simple")
        (target / "parts").mkdir(parents=True)
        with patch("pipeline.encoding.encode.write_result", write_simply):
            return seconds_of(lambda: self.encode(target, lambda done: None))

    def durably(self) -> float:
        with locked(fresh(self.work / "durable")) as ledger:
            return seconds_of(lambda: self._encode_durably(ledger))

    def _encode_durably(self, ledger: Ledger) -> None:
        with GroupCommit(ledger) as group:
            self.encode(ledger.directory, lambda done: group.add(done.record(NO_FINGERPRINT)))


def write_simply(directory: Path, disk: Disk, stem: str, suffix: str, data: memoryview) -> Entry:
    """Write a file without a digest or a sync."""
    (directory / f"{stem}{suffix}").write_bytes(data)
    return Entry(stem, len(data), "")


def take_all_steps(training: Training, save: Callable[[Checkpoint], object]) -> None:
    """Train to the end."""
    with training_loop(training, checkpoints=CheckpointPolicy(save)) as steps:
        for _ in steps:
            pass


class TwoEpochs:
    """Two streamed epochs without checkpoints, and with them."""

    def __init__(self, folder: Path, work: Path) -> None:
        shards = open_shards([str(folder)])
        self.work = work
        self.shards = shards
        config = Config.of(epochs=2, validation_fraction=0, hidden=(), code_activation="sigmoid", decoder_gain=False)
        self.config = resolve(config, sum(shard.n_rows for shard in shards), N_COLUMNS)
        self.budget = budget_of(self.config, shards, n_replicas=1)
        window_rows = self.budget.window_rows
        starts = slab_starts(shards, window_rows // 4)
        self.order = Order(starts, np.empty(0, dtype=np.int64), window_rows, self.config.training.seed)
        scaling = load_model(work / "features").scaler.arrays(row_dtype(shards))
        self.autoencoder = Autoencoder(Network((N_COLUMNS, self.config.network.n_features)), *scaling)
        settings = self.config.training
        rule = Rule(settings.optimizer, settings.momentum)
        self.step = TrainingStep(self.autoencoder, rule, row_dtype(shards))
        self.step.compile()

    def fit(self, save: Callable[[Checkpoint], object]) -> float:
        rng = np.random.default_rng(self.config.training.seed)
        self.autoencoder.set_parameters(start_of(self.autoencoder.network, rng, None))
        self.step.set_state({name: np.zeros_like(array) for name, array in self.step.state().items()})
        rows = StreamedRows(self.shards, self.budget.n_threads)
        watched = np.empty((0, N_COLUMNS), np.float32)
        training = Training(self.autoencoder, self.step, rows, self.order, watched, self.config.training)
        return seconds_of(lambda: take_all_steps(training, save))

    def without_checkpoints(self) -> float:
        return self.fit(lambda checkpoint: None)

    def with_checkpoints(self) -> float:
        with locked(fresh(self.work / "durable")) as ledger:
            return self.fit(partial(keep, ledger))


def keep(ledger: Ledger, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint."""
    entry = ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    ledger.commit(Record(f"checkpoint-{checkpoint.n_steps:012d}", NO_FINGERPRINT, entry))
