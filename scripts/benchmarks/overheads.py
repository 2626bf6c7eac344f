"""Measure the costs of reliability: the durable protocol, checkpoints, and the repetition of a finished run.

    run.py overheads                      2 GB of synthetic rows in overheads/
    run.py overheads --gigabytes 0.2 --rounds 3

The two contestants of each pair take turns, and the result is the ratio of their times. The cheap one writes the same
files without a digest, a sync or a record, or trains without checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

from kernels import backend
from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.encoding.encode import encode_part
from pipeline.formats import digest
from pipeline.output.disk import Disk
from pipeline.output.records import Entry
from pipeline.run.engine import run as run_pipeline
from pipeline.settings.config import Config
from pipeline.training.loop import CheckpointPolicy
from scripts.benchmarks.common import fresh, median_ratio, script, seconds_of, synthetic_shards, take_turns
from scripts.benchmarks.tasks import compute_and_commit, encoding_tasks

N_WRITERS = len(os.sched_getaffinity(0)) + 2  # the default of a run


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--gigabytes", type=float, default=2.0, help="size of the data (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    add("--output", type=Path, default=Path("overheads"), help="working directory (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print the results, and return the exit code."""
    folder = options.output.resolve()
    shards = synthetic_shards(folder, options.gigabytes, 8)
    print(f"{options.gigabytes} GB of float32, {backend.start()}, {options.rounds} rounds", flush=True)
    seconds = {
        # Encoding takes a fraction of a second, so a slow moment of the disk matters.
        "encoding": compare(encoders(folder, shards), 5 * options.rounds),
        "training": compare(trainings(folder, shards), options.rounds),
        "finished run": compare(finished_runs(folder, shards), options.rounds),
    }
    (folder / "overheads.json").write_text(json.dumps(seconds, indent=1))
    for name, pair in seconds.items():
        print_pair(name, pair)
    return 0


def compare(contestants: dict[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round, after a round to warm up."""
    take_turns(contestants, 1)
    return take_turns(contestants, n_rounds)


def print_pair(name: str, seconds: dict[str, list[float]]) -> None:
    """Print the medians of a cheap and a safe contestant, their ratio and their difference."""
    for contestant, each in seconds.items():
        print(f"{name} {contestant}: {median(each):.3f} s ({min(each):.3f} to {max(each):.3f})")
    cheap, safe = seconds.values()
    difference = median(safe) - median(cheap)
    print(f"{name}: ratio {median_ratio(safe, cheap):.3f}, difference {difference:+.3f} s", flush=True)


def encoders(folder: Path, shards: Path) -> dict[str, Callable[[], float]]:
    """Return two ways to encode shards: with plain writes, and with the durable protocol."""
    tasks = encoding_tasks(folder, shards, encode_part)
    parts = Path(tasks[0][1].settings.directory) / "parts"

    def encode(is_durable: bool) -> float:
        fresh(parts).mkdir()
        with threads(N_WRITERS) as pool:
            if is_durable:
                return seconds_of(lambda: compute_and_commit(folder, tasks, pool, N_WRITERS))
            with patch("pipeline.encoding.encode.write_result", write_plainly):
                return seconds_of(lambda: compute(tasks, pool, N_WRITERS))

    return {"with plain writes": partial(encode, False), "with the durable protocol": partial(encode, True)}


def write_plainly(directory: Path, disk: Disk, stem: str, suffix: str, data: memoryview) -> Entry:
    """Write a file without a digest or a sync."""
    (directory / f"{stem}{suffix}").write_bytes(data)
    return Entry(stem, len(data), "")


def trainings(folder: Path, shards: Path) -> dict[str, Callable[[], float]]:
    """Return two ways to train two epochs: without checkpoints, and with them."""
    config = Config.of(
        input=(str(shards),),
        output=str(folder / "trained"),
        epochs=2,
        validation_fraction=0.0,
        baseline=False,
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
            return run_pipeline(config, ["overheads"]).seconds["training"]

    return {"without checkpoints": partial(train, False), "with checkpoints": partial(train, True)}


def finished_runs(folder: Path, shards: Path) -> dict[str, Callable[[], float]]:
    """Return two contestants: computing the digests of all files of a finished run, and repeating the run."""
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
