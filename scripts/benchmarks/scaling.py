"""Measure what more than one process costs and brings, and what `simulate` reckons with.

    run.py scaling                             all of it, with 1.25 GB of synthetic rows in scaling/
    run.py scaling overhead driver             some of it: overhead, driver, workers, shards
    run.py scaling workers --gigabytes 0.2 --rounds 1

What is measured goes to scaling/scaling.json, each part in the place of an earlier one. Everything listens on the
loopback alone, and is gone at the end.
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
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from distributed import Client

from kernels.backend import start
from pipeline.cluster.executor import batch_size, compute
from pipeline.cluster.stats import WorkerStats
from pipeline.cluster.threads import threads
from pipeline.cluster.workers import ClusterExecutor
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.index import index_files
from pipeline.encoding.partfile import part_shapes
from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.model import Model, load_model
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.lock import locked
from pipeline.run.context import versions
from pipeline.run.encoding_stage import EncodingStage
from pipeline.run.prepare import prepare
from pipeline.scan.blocks import ScanSettings
from pipeline.scan.ranges import scan
from pipeline.settings.config import Config
from pipeline.shards.open import open_shards
from pipeline.training.averaging import Average, Weights, outer_step
from scripts.benchmarks.cluster import ByHand, by_hand, empty, processor_seconds, timed_part
from scripts.benchmarks.common import fresh, one_of, script

N_COLUMNS = 784
FINGERPRINT = "0" * 64
BLOCK_ROWS = 2688  # about 8 MiB of them, as a run reads them
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
N_AT_ONCE = 16  # tasks under way at a cluster of two workers
N_FAR = 2  # threads that they have


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    names = ", ".join(MEASURED)
    add("what", nargs="*", type=one_of(MEASURED), metavar="WHAT", help=f"of {names} (default: all, in this order)")
    add("--gigabytes", type=float, default=1.25, help="of rows (default: %(default)s)")
    add("--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)")
    add("--tasks", type=int, default=3000, help="empty ones, whose overhead is measured (%(default)s)")
    add("--parts", type=int, default=100_000, help="empty ones of the driver's largest run (%(default)s)")
    add("--output", type=Path, default=Path("scaling"), help="working folder (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print what comes of it, and return the exit code."""
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{start()}, load {os.getloadavg()[0]:.1f}", flush=True)
    for name in options.what or MEASURED:
        keep(options.output, name, MEASURED[name](options))
    return 0


def keep(folder: Path, name: str, found: Any) -> None:
    """Put it beside what was measured before."""
    file = folder / "scaling.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, name: {"load": os.getloadavg()[0], "found": found}}, indent=1))
    print(f"{name}: {json.dumps(found, indent=1)}", flush=True)


# -- what is measured on --------------------------------------------------------------------------------------------


def shards_of(folder: Path, gigabytes: float, n_shards: int) -> Path:
    """Synthetic shards of so much in all."""
    target = folder / f"shards-{n_shards}-{gigabytes:g}"
    n_rows = int(gigabytes * 1e9 / (4 * N_COLUMNS))
    size = ("--rows", n_rows, "--columns", N_COLUMNS, "--shards", n_shards)
    script("make_data.py", "synthetic", *size, "--output", target)
    return target


def model_of(folder: Path, shards: Path) -> Path:
    """A run with a model of the usual network, for these rows: they are the same ones in however many shards."""
    target = folder / f"model{shards.name[shards.name.rindex('-') :]}"
    if not (target / "manifest.json").exists():
        flags = ("--epochs", 1, "--overwrite", "--quiet")
        script("extract.py", "--input", shards, "--output", target, *flags)
    return target


def tasks_of(
    folder: Path, shards: Path, function: Callable[[EncodeTask], Any], n_parts: int | None = None
) -> list[Any]:
    """Encoding tasks as a run makes them; of one shard that is thought to be so long, if `n_parts` is given."""
    path = model_of(folder, shards)
    output = fresh(folder / "parts-of-tasks")
    prepared = prepare(Config.of(input=(str(shards),), output=str(output), model=str(path)))
    model = load_model(path)
    part_rows = prepared.budget.part_rows
    with locked(output) as ledger:
        entry = ledger.write("stages/model", ".h5", model.to_hdf5())
    attributes = {"command": "x" * 60, "config": prepared.config.flat(), "versions": versions(), "device": "cpu"}
    settings = EncodingStage(prepared, model, {}).settings(part_rows, output)
    settings = replace(settings, model=entry, attributes=attributes)
    inputs = prepared.shards
    if n_parts is not None:
        inputs = (replace(inputs[0], shape=(n_parts * part_rows, *inputs[0].shape[1:])),)
    parts, _ = plan_parts(inputs, part_rows, [])
    return [(function, EncodeTask(part, settings)) for part in parts]


@contextmanager
def executor_of(cluster: ByHand, n_far: int = 0) -> Iterator[Executor]:
    """What hands tasks to it, one by one unless it is told how many threads there are."""
    with Client(scheduler_file=str(cluster.file)) as client:
        client.wait_for_workers(len(cluster.workers), timeout=60)
        yield ClusterExecutor(client, WorkerStats(), n_far)


# -- the overhead of a task -----------------------------------------------------------------------------------------


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds that an empty task takes: of the clock, and of the driver's and the scheduler's processor."""
    tasks = tasks_of(options.output, shards_of(options.output, 0.03, 1), empty, options.tasks)
    found = {}
    with threads(2) as pool:
        found["threads"] = task_milliseconds(tasks, pool, 2)
    with by_hand(options.output, 2) as cluster, executor_of(cluster) as executor:
        compute(tasks[:100], executor, N_AT_ONCE)  # connections, and what each side imports
        found["scheduler"] = task_milliseconds(tasks, executor, N_AT_ONCE, cluster)
    return found


def task_milliseconds(
    tasks: list[Any], executor: Executor, n_at_once: int, cluster: ByHand | None = None
) -> dict[str, float]:
    """Of each of these tasks."""
    before = used_by(cluster)
    begun = time.perf_counter()
    compute(tasks, executor, n_at_once)
    seconds = {"wall": time.perf_counter() - begun}
    seconds |= {name: used - before[name] for name, used in used_by(cluster).items()}
    return {name: round(1e3 * each / len(tasks), 4) for name, each in seconds.items()}


def used_by(cluster: ByHand | None) -> dict[str, float]:
    """Return the processor seconds of this process, and of a cluster's processes, so far."""
    used = {"driver": time.process_time()}
    if cluster is not None:
        used["scheduler"] = cluster.scheduler_seconds
        used["workers"] = sum(map(processor_seconds, cluster.workers))
    return used


# -- the driver of many parts ---------------------------------------------------------------------------------------


def driver(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and peak memory of a driver of ever more empty parts: planned, handed out, committed, listed, indexed."""
    shards = shards_of(options.output, 0.03, 1)
    found = []
    model_of(options.output, shards)
    with by_hand(options.output, 2) as cluster:
        for n_parts in sorted({options.parts // 100, options.parts // 10, options.parts}):
            # A process of its own, whose peak is that of nothing else.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
                found.append(one.submit(drive, options.output, shards, n_parts, cluster.file).result())
    return found


def drive(folder: Path, shards: Path, n_parts: int, file: Path) -> dict[str, Any]:
    """One such run: for each of its steps the seconds, and the peak memory in MB by then."""
    tasks = tasks_of(folder, shards, empty, n_parts)
    told: dict[str, Any] = {}
    output = fresh(folder / "driven")
    with locked(output) as ledger, Client(scheduler_file=str(file)) as client, GroupCommit(ledger) as group:
        client.wait_for_workers(N_FAR, timeout=60)
        executor = ClusterExecutor(client, WorkerStats(), N_FAR)
        with step(told, "tasks"):
            compute(tasks, executor, N_AT_ONCE, lambda facts: group.add(facts.record(FINGERPRINT)))
    del tasks
    with step(told, "opened again"), locked(output) as ledger:
        parts = [PartFacts.from_record(record) for record in ledger.records("part", FINGERPRINT)]
    with step(told, "index"):
        n_bytes = sum(len(data) for _, data in index_files(parts, viewed, {}, {}))
    with step(told, "manifest"), locked(output) as ledger:
        ledger.finish({}, {"parts": [part.line() for part in parts]})
    sizes = {"index_bytes": n_bytes, "manifest_bytes": (output / "manifest.json").stat().st_size}
    return {"n_parts": len(parts), **told, **sizes, "records_bytes": size_of(output / "commits")}


def viewed(part: PartFacts) -> tuple[str, dict[str, Any]]:
    """As the index has to know it."""
    return part.entry.file, part_shapes(part.n_rows, 64, (), np.dtype(np.float32))


@contextmanager
def step(told: dict[str, Any], name: str) -> Iterator[None]:
    """Note what it takes."""
    begun = time.perf_counter()
    own = time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is this step's
    before = psutil.Process().memory_info().rss
    yield
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
    told[name] = {
        "seconds": round(time.perf_counter() - begun, 2),
        "processor_seconds": round(time.process_time() - own, 2),
        "peak_mb": round(peak / 1e3),
        "more_mb": round((1024 * peak - before) / 1e6),
    }


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.iterdir())


# -- workers beside threads -----------------------------------------------------------------------------------------


def workers(options: argparse.Namespace) -> dict[str, Any]:
    """Scan and encoding by two threads and by two workers, in turns: seconds, and the workers' share of the pace."""
    shards = shards_of(options.output, options.gigabytes, 8)
    model = model_of(options.output, shards)
    hows = {"threads": ("--threads", 2), "workers": ("--workers", 2)}
    turns: dict[str, list[dict[str, float]]] = {how: [] for how in hows}
    for _ in range(options.rounds + 1):
        for how, flags in hows.items():
            turns[how].append(stages_of(options.output / "features", shards, model, *flags))
    found: dict[str, Any] = {how: each[1:] for how, each in turns.items()}  # the first warms caches
    for stage in ("scan", "encoding", "total"):
        pairs = zip(found["threads"], found["workers"], strict=True)
        found[f"{stage}: workers' pace beside the threads'"] = round(median(a[stage] / b[stage] for a, b in pairs), 3)
    return found


def stages_of(output: Path, shards: Path, model: Path, *flags: Any) -> dict[str, float]:
    """Seconds of each stage of a run that scans and encodes."""
    given = ("--model", model, "--on-bad-data", "skip")  # which has it scan, too
    begun = time.perf_counter()
    script("extract.py", "--quiet", "--input", shards, "--output", fresh(output), *given, *flags)
    total = time.perf_counter() - begun
    stages = json.loads((output / "report.json").read_text())["stages"]
    return {**{name: round(stage["seconds"], 3) for name, stage in stages.items()}, "total": round(total, 3)}


# -- what simulate.py reckons with ----------------------------------------------------------------------------------


def crowds(options: argparse.Namespace) -> dict[str, Any]:
    """Scan and encoding by 1 to 4 workers of one thread each, in turns, which share the cores of this machine."""
    folder = shards_of(options.output, options.gigabytes, 64)
    turns: dict[int, list[dict[str, dict[str, float]]]] = {n_workers: [] for n_workers in (1, 2, 3, 4)}
    for _ in range(options.rounds):
        for n_workers, found in turns.items():
            with by_hand(options.output, n_workers, **ONE_CORE) as cluster, executor_of(cluster) as executor:
                crowd(options.output, folder, executor, cluster)  # the first turn of a cluster warms it
                found.append(crowd(options.output, folder, executor, cluster))
    medians = {str(n_workers): median_of(found) for n_workers, found in turns.items()}
    return {"cores": len(os.sched_getaffinity(0)), "by workers": medians}


def median_of(turns: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median over some turns of each number of each stage."""
    found = {}
    for stage, numbers in turns[0].items():
        found[stage] = {name: round(median(turn[stage][name] for turn in turns), 3) for name in numbers}
    return found


def crowd(folder: Path, shards: Path, executor: Executor, cluster: ByHand) -> dict[str, dict[str, float]]:
    """One turn of each stage: seconds, of the clock and of the workers' processors; tasks, rows."""
    tasks = tasks_of(folder, shards, encode_part)
    inputs = open_shards([str(shards)])
    n_rows = sum(shard.n_rows for shard in inputs)

    def look(done: Callable[[object], None]) -> None:
        scan(inputs, ScanSettings(BLOCK_ROWS), executor, N_AT_ONCE, done)

    def make(done: Callable[[object], None]) -> None:
        def commit(facts: PartFacts) -> None:
            group.add(facts.record(FINGERPRINT))
            done(facts)

        with locked(fresh(folder / "driven")) as ledger, GroupCommit(ledger) as group:
            compute(tasks, executor, N_AT_ONCE, commit)

    stages = {"scan": look, "encoding": make}
    return {stage: {**taken(work, cluster), "n_rows": n_rows} for stage, work in stages.items()}


def taken(work: Callable[[Callable[[object], None]], None], cluster: ByHand) -> dict[str, float]:
    """Return the seconds of some work, and those after its last task; `work` gets a function to call for each task."""
    ends: list[float] = []
    before = used_by(cluster)
    begun = time.perf_counter()
    work(lambda _: ends.append(time.perf_counter()))
    stop = time.perf_counter()
    used = {name: seconds - before[name] for name, seconds in used_by(cluster).items()}
    return {
        "seconds": stop - begun,
        "end": stop - ends[-1],
        "n_tasks": len(ends),
        "processor_seconds": used["workers"],
        "driver_seconds": used["driver"],
        "scheduler_seconds": used["scheduler"],
    }


# -- many shards ----------------------------------------------------------------------------------------------


def shards(options: argparse.Namespace) -> dict[str, Any]:
    """Where the time of encoding many shards goes: the share of it outside read, compute and write."""
    found = {}
    for n_shards in (1000, 100):
        folder = shards_of(options.output, options.gigabytes, n_shards)
        with threads(2) as pool:
            found[f"{n_shards} shards, 2 threads"] = shares(options.output, folder, pool, 3)
        with by_hand(options.output, 2, **ONE_CORE) as cluster, executor_of(cluster, N_FAR) as executor:
            found[f"{n_shards} shards, 2 workers"] = shares(options.output, folder, executor, 8)
    return found


def shares(folder: Path, shards: Path, executor: Executor, n_at_once: int) -> dict[str, float]:
    """Of the seconds that two have had for it: what each kind of work took, and what is left outside."""
    tasks = tasks_of(folder, shards, timed_part)
    n_small = tasks[0][1].settings.part_rows * len(tasks) // sum(len(task.part.source) for _, task in tasks)
    compute(tasks[:20], executor, n_at_once)  # it compiles
    output = fresh(folder / "driven")
    with locked(output) as ledger, GroupCommit(ledger) as group:
        begun = time.perf_counter()
        found = compute(tasks, executor, n_at_once, lambda done: group.add(done.facts.record(FINGERPRINT)), n_small)
        seconds = time.perf_counter() - begun
    spent = {kind: sum(done.spent.get(kind, 0.0) for done in found) for kind in ("read", "compute", "write")}
    told = {kind: round(each / (2 * seconds), 4) for kind, each in spent.items()}
    inside = sum(done.seconds for done in found) / (2 * seconds)
    return {
        "seconds": round(seconds, 3),
        **told,
        "outside, in tasks": round(inside - sum(told.values()), 4),
        "outside, between tasks": round(1 - inside, 4),
    }


# -- all of it in few numbers ---------------------------------------------------------------------------------------


def costs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the `Costs` of simulate.py, from what was measured before."""
    measured = {name: each["found"] for name, each in json.loads((options.output / "scaling.json").read_text()).items()}
    empty_task = {name: milliseconds / 1e3 for name, milliseconds in measured["overhead"]["scheduler"].items()}
    largest = measured["driver"][-1]
    alone = measured["crowds"]["by workers"]["1"]
    parts_seconds = sum(largest[name]["processor_seconds"] for name in ("tasks", "index", "manifest"))
    sent = empty_task["driver"] / batch_size(largest["n_parts"], N_FAR)
    beside = empty_task["workers"]
    turns = measured["workers"]["workers"]
    model = load_model(model_of(options.output, shards_of(options.output, options.gigabytes, 8)))
    return {
        "driver_task": empty_task["driver"],
        "driver_part": max(0.0, parts_seconds / largest["n_parts"] - sent),
        "scheduler_task": empty_task["scheduler"],
        "scan_row": row_seconds(alone["scan"], beside),
        "encode_row": row_seconds(alone["encoding"], beside),
        "train_row": trained(options),
        "scan_task": beside,
        "encode_part": beside,
        "encode_wait": waited(alone["encoding"]),
        "scan_wait": waited(alone["scan"]),
        "encode_end": alone["encoding"]["end"],
        "scan_end": alone["scan"]["end"],
        "start": median(turn["total"] - turn["scan"] - turn["encoding"] for turn in turns),
        "shard": looked_at(options),
        "row_bytes": 4 * model.n_inputs,
        "feature_bytes": 4 * model.n_features,
        "state_bytes": 3 * sum(array.nbytes for array in model.parameters.values()),
        "meet": met(model),
    }


def row_seconds(told: dict[str, float], beside: float) -> float:
    """What one worker's processor has taken for each row, tasks' own costs aside."""
    return max(0.0, told["processor_seconds"] - told["n_tasks"] * beside) / told["n_rows"]


def waited(told: dict[str, float]) -> float:
    """What one worker has waited at each task."""
    return max(0.0, told["seconds"] - told["end"] - told["processor_seconds"]) / told["n_tasks"]


def trained(options: argparse.Namespace) -> float:
    """Seconds of one core for a row of an epoch."""
    shards = shards_of(options.output, options.gigabytes, 8)
    output = fresh(options.output / "trained")
    flags = ("--epochs", 2, "--baseline", "no", "--start", "random", "--threads", 1, "--quiet")
    environment = {**os.environ, **ONE_CORE}
    script("extract.py", "--input", shards, "--output", output, *flags, environment=environment)
    report = json.loads((output / "report.json").read_text())
    n_rows = 2 * (1 - report["config"]["validation_fraction"]) * report["inputs"]["n_rows"]
    return float(report["stages"]["training"]["processor_seconds"] / n_rows)


def looked_at(options: argparse.Namespace) -> float:
    """Seconds for each of 1,000 shards before the first task."""
    folder = shards_of(options.output, options.gigabytes, 1000)
    begun = time.perf_counter()
    n_shards = len(open_shards([str(folder)]))
    return (time.perf_counter() - begun) / n_shards


def met(model: Model) -> float:
    """Seconds that a replica adds to the driver's work when all meet."""
    state = Weights(model.parameters, {f"{name}_{i}": each for i in (1, 2) for name, each in model.parameters.items()})
    velocity = {name: np.zeros_like(array) for name, array in model.parameters.items()}
    begun = time.perf_counter()
    average = Average()
    for _ in range(8):
        average.add(state, 1)
    outer_step(state, average.mean(), velocity, 8)
    return (time.perf_counter() - begun) / 8


MEASURED: dict[str, Callable[[argparse.Namespace], Any]] = {
    "overhead": overhead,
    "driver": driver,
    "workers": workers,
    "shards": shards,
    "crowds": crowds,
    "costs": costs,
}
