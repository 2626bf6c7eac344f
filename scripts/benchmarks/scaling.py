"""Measure the costs and the speed of several processes, and the costs that `simulate` needs.

    run.py scaling                             everything, with 1.25 GB of synthetic rows in scaling/
    run.py scaling overhead driver             some of the measurements
    run.py scaling workers --gigabytes 0.2 --rounds 1

Results go to scaling/scaling.json, where each measurement replaces an earlier one of the same name. All ports are on
the loopback interface, and all processes end with the benchmark.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec import structs

from scripts.benchmarks.cluster import LocalCluster, executor_on, local_cluster, processor_seconds
from scripts.benchmarks.harness import (
    add_options,
    fresh,
    interleave,
    median_ratio,
    script,
    seconds_of,
    synthetic_shards,
)
from scripts.benchmarks.tasks import FINGERPRINT, compute_and_commit, empty_part, encoding_tasks, trained_model
from shardpress.cluster.executor import batch_size, compute
from shardpress.cluster.threads import threads
from shardpress.encoding.encode import encode_parts
from shardpress.encoding.index import write_index
from shardpress.encoding.partfile import row_shapes
from shardpress.model.encoder import Model
from shardpress.output.folder import JOURNAL
from shardpress.output.lock import locked
from shardpress.result.finished import Result, load_model, result_bytes
from shardpress.result.records import Part, in_order, stretches_of
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import scan
from shardpress.shards.open import open_shards
from shardpress.training.averaging import Average, Weights, outer_step
from shardpress_kernels.backend import start

SMALL_GIGABYTES = 0.03
BLOCK_ROWS = 2688  # about 8 MiB, as in a run
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
N_REMOTE_THREADS = 2
N_AT_ONCE = 16  # tasks submitted at a time for two workers

Numbers = dict[str, float]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, "scaling", 3, MEASUREMENTS)
    add = parser.add_argument
    add("--gigabytes", type=float, default=1.25, help="size of the data (default: %(default)s)")
    add("--tasks", type=int, default=3000, help="empty tasks that measure the overhead (default: %(default)s)")
    add("--parts", type=int, default=100_000, help="parts of the driver's largest run (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print and store the results, and return the exit code."""
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{start()}, load {os.getloadavg()[0]:.1f}", flush=True)
    file = options.output / "scaling.json"
    for name in options.cases or MEASUREMENTS:
        found = MEASUREMENTS[name](options)
        print(f"{name}: {json.dumps(found, indent=1)}", flush=True)
        results = json.loads(file.read_text()) if file.exists() else {}
        results[name] = {"load": os.getloadavg()[0], "found": found}
        file.write_text(json.dumps(results, indent=1))
    return 0


def measure(work: Callable[[Callable[[object], None]], object], cluster: LocalCluster | None = None) -> Numbers:
    """Return the seconds and the processor seconds of some tasks.

    `work` runs the tasks, and calls the function that it receives with each result. ``end`` is the time after the last
    result.
    """
    ends: list[float] = []
    before = used_seconds(cluster)
    begin = time.perf_counter()
    work(lambda result: ends.append(time.perf_counter()))
    end = time.perf_counter()
    numbers = {name: seconds - before[name] for name, seconds in used_seconds(cluster).items()}
    return {"seconds": end - begin, "end": end - ends[-1], "n_tasks": len(ends), **numbers}


def used_seconds(cluster: LocalCluster | None) -> Numbers:
    """Return the processor seconds of this process, and of the processes of a cluster, so far."""
    used = {"driver_seconds": time.process_time()}
    if cluster is not None:
        used["scheduler_seconds"] = processor_seconds(cluster.scheduler)
        used["processor_seconds"] = processor_seconds(*cluster.workers)
    return used


def overhead(options: argparse.Namespace) -> dict[str, Numbers]:
    """Measure the seconds per empty task with threads and with a scheduler."""
    shards = synthetic_shards(options.output, SMALL_GIGABYTES, 1)
    tasks = encoding_tasks(options.output, shards, empty_part, options.tasks)
    with threads(2) as pool:
        by_threads = measure(partial(compute, tasks, pool, 2))
    with local_cluster(options.output, 2) as cluster, executor_on(cluster) as executor:
        compute(tasks[:100], executor, N_AT_ONCE)  # opens connections, and loads modules
        by_scheduler = measure(partial(compute, tasks, executor, N_AT_ONCE), cluster)
    return {"threads": per_task(by_threads), "scheduler": per_task(by_scheduler)}


def per_task(numbers: Numbers) -> Numbers:
    """Divide seconds by the number of tasks."""
    return {name: value / numbers["n_tasks"] for name, value in numbers.items() if name.endswith("seconds")}


def driver(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the time and the peak memory of a driver with increasing numbers of empty parts."""
    shards = synthetic_shards(options.output, SMALL_GIGABYTES, 1)
    trained = trained_model(options.output, shards)
    spawn = multiprocessing.get_context("spawn")
    found = []
    with local_cluster(options.output, 2) as cluster:
        for n_parts in sorted({options.parts // 100, options.parts // 10, options.parts}):
            # In a process of its own, so that the memory belongs to one run.
            with ProcessPoolExecutor(1, spawn) as process:
                found.append(process.submit(drive, options.output, trained, shards, n_parts, cluster).result())
    return found


def drive(folder: Path, trained: Path, shards: Path, n_parts: int, cluster: LocalCluster) -> dict[str, Any]:
    """Commit, list and index empty parts; return the seconds and the memory of each step, and the sizes of files."""
    steps: dict[str, Numbers] = {}
    tasks = encoding_tasks(folder, shards, empty_part, n_parts)
    with executor_on(cluster, N_REMOTE_THREADS) as executor, step("tasks", steps):
        compute_and_commit(folder, tasks, executor, N_AT_ONCE)
    del tasks
    journal_bytes = (folder / "committed" / JOURNAL).stat().st_size
    with step("records", steps), locked(folder / "committed") as journal:
        parts = [record.part for record in journal.parts(FINGERPRINT)]
    with locked(folder / "committed") as journal:
        with step("index", steps):
            data = index_of(parts, Result.open(trained))
        with step("commit", steps):
            journal.commit(data)
    return {"n_parts": len(parts), **steps, "index_bytes": len(data), "journal_bytes": journal_bytes}


def index_of(parts: list[Part], trained: Result) -> bytes:
    """Return the content of an index of parts of one shard, with the model and the facts of a run."""
    n_rows = sum(part.n_rows for part in parts)
    request = trained.facts.rows.request
    first = request.shards[0]
    shard = structs.replace(first, shape=[n_rows, *first.shape[1:]])
    facts = structs.replace(trained.facts, request=structs.replace(request, shards=[shard]))
    stretches = stretches_of(in_order(parts))
    shapes = row_shapes(trained.n_features, ())
    use = np.zeros(n_rows, np.uint8)
    return result_bytes(lambda file: write_index(file, stretches, shapes, {}, use), trained.model, facts, parts, {}, {})


@contextmanager
def step(name: str, steps: dict[str, Numbers]) -> Iterator[None]:
    """Measure the time and the peak memory of a step."""
    begin = time.perf_counter()
    used = time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    yield
    peak_kib = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
    steps[name] = {
        "seconds": round(time.perf_counter() - begin, 2),
        "processor_seconds": round(time.process_time() - used, 2),
        "peak_mb": round(1024 * peak_kib / 1e6),
    }


def shards(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the same as `workers` with more shards of the same total size."""
    return {f"{n_shards} shards": compare_with_threads(options, n_shards) for n_shards in (100, 1000)}


def compare_with_threads(options: argparse.Namespace, n_shards: int = 8) -> dict[str, Any]:
    """Measure scan and encoding with two threads and with two workers, and the ratio of their speeds."""
    folder = synthetic_shards(options.output, options.gigabytes, n_shards)
    model = trained_model(options.output, folder)
    encode = partial(seconds_by_stage, options.output / "features", folder, model)
    programs = {"threads": partial(encode, "--threads", 2), "workers": partial(encode, "--workers", 2)}
    interleave(programs, 1)  # warms the caches
    rounds = interleave(programs, options.rounds)
    ratios = {}
    for stage in ("scan", "encoding", "total"):
        seconds = {name: [each[stage] for each in numbers] for name, numbers in rounds.items()}
        ratios[stage] = median_ratio(seconds["threads"], seconds["workers"])
    return {**rounds, "speed of workers / threads": ratios}


def seconds_by_stage(output: Path, shards: Path, model: Path, *flags: object) -> Numbers:
    """Scan and encode, and return the seconds of each stage and of the whole process."""
    inputs = ("--input", shards, "--model", model, "--on-bad-data", "skip")  # with --model, only "skip" causes a scan
    total = seconds_of(lambda: script("extract.py", "--quiet", *inputs, "--output", fresh(output), *flags))
    stages = Result.open(output).facts.details.stages
    return {**{name: stage.seconds for name, stage in stages.items()}, "total": total}


def crowds(options: argparse.Namespace) -> dict[str, Any]:
    """Measure scan and encoding by 1 to 4 workers of one thread, which share the cores of this machine."""
    shards = synthetic_shards(options.output, options.gigabytes, 64)
    programs = {str(n): partial(crowd, options.output, shards, n) for n in (1, 2, 3, 4)}
    medians: dict[str, dict[str, Numbers]] = {}
    for n, rounds in interleave(programs, options.rounds).items():
        medians[n] = {stage: medians_of([each[stage] for each in rounds]) for stage in ("scan", "encoding")}
    return {"cores": len(os.sched_getaffinity(0)), "by workers": medians}


def crowd(folder: Path, shards: Path, n_workers: int) -> dict[str, Numbers]:
    """Start some workers, scan and encode twice, and return the costs of the second time."""
    with local_cluster(folder, n_workers, **ONE_CORE) as cluster, executor_on(cluster) as executor:
        scan_and_encode(folder, shards, executor, cluster)
        return scan_and_encode(folder, shards, executor, cluster)


def scan_and_encode(folder: Path, shards: Path, executor: Executor, cluster: LocalCluster) -> dict[str, Numbers]:
    """Measure a scan and an encoding."""
    inputs = open_shards([str(shards)])
    n_rows = sum(shard.n_rows for shard in inputs)
    tasks = encoding_tasks(folder, shards, encode_parts)
    scanned = measure(partial(scan, inputs, ScanSettings(BLOCK_ROWS), executor, N_AT_ONCE), cluster)
    encoded = measure(partial(compute_and_commit, folder, tasks, executor, N_AT_ONCE), cluster)
    return {"scan": {**scanned, "n_rows": n_rows}, "encoding": {**encoded, "n_rows": n_rows}}


def medians_of(rounds: Sequence[Numbers]) -> Numbers:
    """Return the median of each number over some rounds."""
    return {name: median(each[name] for each in rounds) for name in rounds[0]}


def costs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the `Costs` of simulate.py from the other measurements and some more."""
    results = json.loads((options.output / "scaling.json").read_text())
    task = results["overhead"]["found"]["scheduler"]
    alone = results["crowds"]["found"]["by workers"]["1"]
    rounds = results["workers"]["found"]["workers"]
    model = load_model(trained_model(options.output, synthetic_shards(options.output, options.gigabytes, 8)))
    many_shards = synthetic_shards(options.output, options.gigabytes, 1000)
    return {
        "driver_task": task["driver_seconds"],
        "scheduler_task": task["scheduler_seconds"],
        "scan_task": task["processor_seconds"],
        "encode_part": task["processor_seconds"],
        "driver_part": seconds_per_part(results["driver"]["found"][-1], task["driver_seconds"]),
        **stage_costs("scan", alone["scan"], task["processor_seconds"]),
        **stage_costs("encode", alone["encoding"], task["processor_seconds"]),
        "train_row": seconds_per_training_row(options),
        "start": median(each["total"] - each["scan"] - each["encoding"] for each in rounds),
        "shard": seconds_of(lambda: open_shards([str(many_shards)])) / 1000,
        "row_bytes": 4 * model.n_inputs,
        "feature_bytes": 4 * model.n_features,
        "state_bytes": 3 * sum(array.nbytes for array in model.parameters.values()),
        "meet": seconds_per_replica(model),
    }


def stage_costs(name: str, stage: Numbers, task_seconds: float) -> Numbers:
    """Return the processor seconds per row, the waiting time per task, and the time after the last task."""
    n_tasks = stage["n_tasks"]
    busy = stage["processor_seconds"]
    return {
        f"{name}_row": max(0.0, busy - n_tasks * task_seconds) / stage["n_rows"],
        f"{name}_wait": max(0.0, stage["seconds"] - stage["end"] - busy) / n_tasks,
        f"{name}_end": stage["end"],
    }


def seconds_per_part(largest: dict[str, Any], task_seconds: float) -> float:
    """Return the driver's seconds per part, in addition to the seconds of its task, which is sent in a batch."""
    n_parts = largest["n_parts"]
    seconds = sum(largest[name]["processor_seconds"] for name in ("tasks", "index", "commit"))
    sending = task_seconds / batch_size(n_parts, N_REMOTE_THREADS)
    return max(0.0, seconds / n_parts - sending)


def seconds_per_training_row(options: argparse.Namespace) -> float:
    """Train on one core, and return the seconds per row and epoch."""
    inputs = synthetic_shards(options.output, options.gigabytes, 8)
    output = fresh(options.output / "trained")
    network = ("--preset", "reference", "--n-features", 64, "--hidden", 512, "--corruption", 0.0625)
    flags = (*network, "--optimizer", "adam", "--learning-rate", 0.001, "--epochs", 2, "--threads", 1, "--quiet")
    script("extract.py", "--input", inputs, "--output", output, *flags, **ONE_CORE)
    facts = Result.open(output).facts
    n_rows = 2 * (1 - facts.rows.config["validation_fraction"]) * facts.rows.inputs.n_rows
    return facts.details.stages["training"].processor_seconds / n_rows


def seconds_per_replica(model: Model) -> float:
    """Return the driver's seconds to average the weights of one replica."""
    moments = {f"{name}_{i}": array for i in (1, 2) for name, array in model.parameters.items()}
    weights = Weights(model.parameters, moments)
    velocity = {name: np.zeros_like(array) for name, array in model.parameters.items()}
    n_replicas = 8

    def average_replicas() -> None:
        average = Average()
        for _ in range(n_replicas):
            average.add(weights, 1)
        outer_step(weights, average.mean(), velocity, n_replicas)

    return seconds_of(average_replicas) / n_replicas


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "overhead": overhead,
    "driver": driver,
    "workers": compare_with_threads,
    "shards": shards,
    "crowds": crowds,
    "costs": costs,
}
