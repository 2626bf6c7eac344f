"""Measure the costs of reliability: the durable protocol, checkpoints, and the repetition of a finished run.

    run.py overheads                      2 GB of synthetic rows in overheads/
    run.py overheads --gigabytes 0.2 --rounds 3

Each case measures two programs alternately, and prints the ratio of their times. The first one writes the same files
without a digest, a sync or a record, or trains without checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

from scripts.benchmarks.harness import add_options, fresh, interleave, print_times, script, seconds_of, synthetic_shards
from scripts.benchmarks.tasks import compute_and_commit, encoding_tasks
from shardpress.base.formats import digest
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding.encode import encode_parts
from shardpress.output.disk import Disk
from shardpress.result.records import Entry
from shardpress.run.engine import run as run_pipeline
from shardpress.settings.config import Config
from shardpress.training.loop import CheckpointPolicy
from shardpress_kernels import backend

N_WRITERS = len(os.sched_getaffinity(0)) + 2  # the default of a run

Pair = dict[str, Callable[[], float]]
"""Two programs, which return their seconds."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, "overheads", 5, CASES)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the data (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print the results, and return the exit code."""
    folder = options.output.resolve()
    shards = synthetic_shards(folder, options.gigabytes, 8)
    print(f"{options.gigabytes} GB of float32, {backend.start()}, {options.rounds} rounds", flush=True)
    results = {}
    for name in options.cases or CASES:
        case, factor = CASES[name]
        pair = case(folder, shards)
        interleave(pair, 1)  # warms the caches
        results[name] = interleave(pair, factor * options.rounds)
        print(name)
        print_times(results[name])
    (folder / "overheads.json").write_text(json.dumps(results, indent=1))
    return 0


def encoding(folder: Path, shards: Path) -> Pair:
    """Encode shards with plain writes, and with the durable protocol."""
    tasks = encoding_tasks(folder, shards, encode_parts)
    parts = Path(tasks[0][1].settings.directory) / "parts"

    def encode_plainly() -> float:
        fresh(parts).mkdir()
        with threads(N_WRITERS) as pool, patch("shardpress.encoding.encode.write_file", write_plainly):
            return seconds_of(lambda: compute(tasks, pool, N_WRITERS))

    def encode_durably() -> float:
        fresh(parts).mkdir()
        with threads(N_WRITERS) as pool:
            return seconds_of(lambda: compute_and_commit(folder, tasks, pool, N_WRITERS))

    return {"with plain writes": encode_plainly, "with the durable protocol": encode_durably}


def write_plainly(directory: Path, disk: Disk, name: str, data: memoryview) -> Entry:
    """Write a file without a digest or a sync."""
    (directory / name).write_bytes(data)
    return Entry(name, len(data), "")


def training(folder: Path, shards: Path) -> Pair:
    """Train two epochs without checkpoints, and with them."""
    config = Config.of(
        input=(str(shards),),
        output=str(folder / "trained"),
        epochs=2,
        validation_fraction=0.0,
        start="random",
        hidden=(),
        code_activation="sigmoid",
        decoder_gain=False,
        memory_budget=2**30,
    )

    def train(has_checkpoints: bool) -> float:
        fresh(folder / "trained")
        without = patch.object(CheckpointPolicy, "save", lambda policy, training: None)
        with nullcontext() if has_checkpoints else without:
            return run_pipeline(config, ["overheads"]).summary.seconds["training"]

    return {"without checkpoints": partial(train, False), "with checkpoints": partial(train, True)}


def finished_run(folder: Path, shards: Path) -> Pair:
    """Compute the digests of all files of a finished run, and repeat the run."""
    output = folder / "finished"
    command = ("extract.py", "--quiet", "--overwrite", "--epochs", 1, "--input", shards, "--output", output)
    script(*command)
    return {
        "one pass of reading": lambda: seconds_of(lambda: digest_files(output)),
        "the run again": lambda: seconds_of(lambda: script(*command)),
    }


def digest_files(folder: Path) -> None:
    """Read all files and compute their digests."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest(iter(partial(file.read, 2**20), b""))


# Each case, and the factor of its number of rounds. Encoding takes a fraction of a second, so a slow moment of the disk
# matters.
CASES: dict[str, tuple[Callable[[Path, Path], Pair], int]] = {
    "encoding": (encoding, 5),
    "training": (training, 1),
    "finished-run": (finished_run, 1),
}
