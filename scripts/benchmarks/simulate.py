"""Predict the time of a run on a large cluster, by a discrete-event model with measured costs.

    run.py simulate                              10^9 and 10^12 rows on 1 to 1,000 workers, as tables
    run.py simulate --plot docs/scaling.png      as tables and as a picture
    run.py simulate --costs scaling/scaling.json --check scaling/scaling.json
                                                 compare predictions with measurements of 1 to 4 workers

As in a run, a task waits for the driver, the scheduler, a thread of a worker, a core and the storage in turn. Each of
these resources serves one task at a time, except for the storage, which serves as many streams as its bandwidth allows.
If there are many tasks, only the first ones are simulated, and the others are assumed to follow at the same rate. The
costs are read from docs/scaling.json, unless `--costs` names another file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import simpy

from scripts.benchmarks.harness import ROOT, print_head, print_row
from shardpress.cluster.executor import batch_size

WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
MAX_SIMULATED_TASKS = 4000  # in addition to TURNS tasks per thread
TURNS = 12
SHARD_BYTES = 4 * 10**9
# The same values as in run/budget.py, scan/ranges.py and settings/replicas.py of the package.
MIN_PART_BYTES = 2**26
MAX_PARTS = 2**15
SCAN_TASK_ROWS = 128 * 2688
MAX_SCAN_TASKS = 4096
REPLICAS = 8
ROUND_ROWS = 512 * 128
# For larger data, this number of rows is enough for training: see docs/scaling.md.
TRAINED_ROWS = 10**8
EPOCHS = 20
MAX_ERROR = 0.15
STYLES = ("-", "--", "-.", ":")
COLOURS = {"driver": "tab:red", "scheduler": "tab:purple"}


@dataclass(frozen=True)
class Costs:
    """Measured costs, in seconds of one core unless a comment says otherwise."""

    driver_task: float  # for a task and its result
    scheduler_task: float
    driver_part: float  # for the commit of a part, and its lines in the journal and the index
    scan_row: float  # including the read from memory
    encode_row: float
    train_row: float
    scan_task: float  # in addition to the rows of the task
    encode_part: float
    scan_wait: float  # time that a task waits for the disk, while the core is free
    encode_wait: float
    scan_end: float  # after the last task
    encode_end: float
    start: float  # before the first task and after the last one
    shard: float  # to open a shard
    row_bytes: int
    feature_bytes: int  # bytes per row
    state_bytes: int  # bytes of the weights that are sent to a replica
    meet: float  # to average one replica


@dataclass(frozen=True)
class Cluster:
    """Resources of all workers."""

    n_workers: int
    cores: int = 2  # per worker
    threads: int = 3  # per worker; with more threads than cores, one reads or writes while others compute
    shared_cores: int | None = None  # total of workers, driver and scheduler, if they are on one machine
    storage: float = math.inf  # total bytes per second
    stream: float = 1e9  # bytes per second of one reader or writer, and of the driver's network

    @property
    def n_threads(self) -> int:
        return self.n_workers * self.threads

    @property
    def n_streams(self) -> int:
        """Readers and writers that the storage can serve at the same time."""
        if math.isinf(self.storage):
            return self.n_threads
        return max(1, round(self.storage / self.stream))


@dataclass(frozen=True)
class Task:
    """Resources that one task uses, in addition to the work of driver and scheduler that each task needs."""

    core_seconds: float
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    message_bytes: float = 0.0
    driver_seconds: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True)
class Stage:
    """The time of some tasks, and the fraction of it during which each resource was busy."""

    seconds: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The busiest resource."""
        return max(self.busy, key=lambda name: self.busy[name])


class World:
    """All resources that tasks wait for."""

    def __init__(self, cluster: Cluster, costs: Costs) -> None:
        self.env = simpy.Environment()
        self.cluster = cluster
        self.costs = costs
        self.storage_rate = min(cluster.stream, cluster.storage)
        n_cores = cluster.shared_cores or cluster.n_workers * cluster.cores
        self.capacities = {"driver": 1, "scheduler": 1, "storage": cluster.n_streams, "cores": n_cores}
        self.resources = {name: simpy.PriorityResource(self.env, n) for name, n in self.capacities.items()}
        self.used = dict.fromkeys(self.capacities, 0.0)
        self.threads = simpy.Resource(self.env, cluster.n_threads)
        # As in a run, enough tasks are submitted that no thread has to wait for a task.
        self.window = simpy.Resource(self.env, 2 * cluster.n_threads + 8)
        self.ends: list[float] = []

    def use(self, name: str, seconds: float) -> Iterator[Any]:
        """Wait for a resource and use it for some time."""
        if seconds <= 0:
            return
        with self.resources[name].request(priority=1) as request:
            yield request
            if name in ("driver", "scheduler") and self.cluster.shared_cores:
                # Driver and scheduler also need a core. The kernel prefers processes that have slept.
                with self.resources["cores"].request(priority=0) as core:
                    yield core
                    yield self.env.timeout(seconds)
            else:
                yield self.env.timeout(seconds)
        self.used[name] += seconds

    def process(self, task: Task) -> Iterator[Any]:
        """Send a task, run it, and handle its result. Sending and handling each take half of the driver's work."""
        message = task.message_bytes / self.cluster.stream
        driver = self.costs.driver_task / 2 + message
        scheduler = self.costs.scheduler_task / 2 + message
        with self.window.request() as place:
            yield place
            yield from self.use("driver", driver)
            yield from self.use("scheduler", scheduler)
            with self.threads.request() as thread:
                yield thread
                yield from self.use("storage", task.read_bytes / self.storage_rate)
                yield from self.use("cores", task.core_seconds)
                yield self.env.timeout(task.wait)
                yield from self.use("storage", task.write_bytes / self.storage_rate)
            yield from self.use("scheduler", scheduler)
            yield from self.use("driver", driver + task.driver_seconds)
        self.ends.append(self.env.now)


def simulate(task: Task, n_tasks: int, cluster: Cluster, costs: Costs) -> Stage:
    """Predict the time of a number of equal tasks."""
    world = World(cluster, costs)
    n_simulated = min(n_tasks, MAX_SIMULATED_TASKS + TURNS * cluster.n_threads)
    for _ in range(n_simulated):
        world.env.process(world.process(task))
    world.env.run()
    seconds = world.ends[-1]
    busy = {name: used / seconds / world.capacities[name] for name, used in world.used.items()}
    if n_simulated < n_tasks:
        # The rate excludes the first and the last tasks, during which some threads are idle.
        first = n_simulated // 4
        last = 3 * n_simulated // 4
        seconds += (n_tasks - n_simulated) * (world.ends[last] - world.ends[first]) / (last - first)
    return Stage(seconds, busy)


def simulate_batches(task: Task, n_tasks: int, n_small: int, cluster: Cluster, costs: Costs) -> Stage:
    """Predict the time of tasks that are sent in batches, as in a run."""
    n = batch_size(n_tasks, cluster.n_threads, n_small)
    batch = Task(**{name: n * value for name, value in asdict(task).items()})
    return simulate(batch, math.ceil(n_tasks / n), cluster, costs)


@dataclass(frozen=True)
class Job:
    """Rows in files of `shard_rows`, encoded in parts of `part_rows`."""

    n_rows: int
    part_rows: int
    shard_rows: int

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_rows / self.shard_rows)


def scan_stage(job: Job, cluster: Cluster, costs: Costs) -> Stage:
    """Predict the scan."""
    n_tasks = min(MAX_SCAN_TASKS, max(math.ceil(job.n_rows / job.part_rows), job.n_shards))
    n_rows = job.n_rows / n_tasks
    task = Task(n_rows * costs.scan_row + costs.scan_task, n_rows * costs.row_bytes, wait=costs.scan_wait)
    return simulate_batches(task, n_tasks, int(SCAN_TASK_ROWS // n_rows), cluster, costs)


def encoding_stage(job: Job, cluster: Cluster, costs: Costs) -> Stage:
    """Predict the encoding."""
    n_rows = min(job.part_rows, job.shard_rows)
    task = Task(
        core_seconds=n_rows * costs.encode_row + costs.encode_part,
        read_bytes=n_rows * costs.row_bytes,
        write_bytes=n_rows * costs.feature_bytes,
        driver_seconds=costs.driver_part,
        wait=costs.encode_wait,
    )
    return simulate_batches(task, math.ceil(job.n_rows / n_rows), job.part_rows // n_rows, cluster, costs)


def first_epoch_seconds(n_rows: int, cluster: Cluster, costs: Costs) -> float:
    """Predict the first epoch, which one replica trains with all cores of its worker."""
    reading = costs.row_bytes / min(cluster.stream, cluster.storage)
    return n_rows * max(costs.train_row / cluster.cores, reading)


def round_seconds(n_rows: int, cluster: Cluster, costs: Costs) -> float:
    """Predict the rounds of all other epochs, in which the replicas train on shares of the rows."""
    share_rows = min(ROUND_ROWS, max(1, n_rows // REPLICAS))
    share = Task(
        core_seconds=share_rows * costs.train_row / cluster.cores,
        read_bytes=share_rows * costs.row_bytes,
        message_bytes=costs.state_bytes,
    )
    shares = simulate(share, REPLICAS, replace(cluster, cores=1, threads=1), costs)
    n_rounds = (EPOCHS - 1) * math.ceil(n_rows / (share_rows * REPLICAS))
    return n_rounds * (shares.seconds + REPLICAS * costs.meet)


def predict(job: Job, cluster: Cluster, costs: Costs) -> dict[str, Any]:
    """Return the seconds of each stage and in total, the worker-hours, and what the encoding waits for."""
    encoding = encoding_stage(job, cluster, costs)
    n_trained = min(job.n_rows, TRAINED_ROWS)
    seconds = {
        "start": costs.start + costs.shard * job.n_shards,
        "scan": scan_stage(job, cluster, costs).seconds + costs.scan_end,
        "first epoch": first_epoch_seconds(n_trained, cluster, costs),
        "rounds": round_seconds(n_trained, cluster, costs),
        "encoding": encoding.seconds + costs.encode_end,
    }
    total = sum(seconds.values())
    return {
        "n_workers": cluster.n_workers,
        "seconds": seconds,
        "total": total,
        "worker_hours": cluster.n_workers * total / 3600,
        "busy": encoding.busy,
        "bottleneck": encoding.bottleneck,
    }


@dataclass(frozen=True)
class Scenario:
    """Rows, bandwidth of the storage in GB/s, and `--memory-budget` of a process in GiB."""

    n_rows: int
    storage: float = math.inf
    memory: float = 2.0

    def job(self, costs: Costs) -> Job:
        """Return the rows in files of 4 GB, and in parts of the size that a run chooses."""
        part_bytes = max(MIN_PART_BYTES, self.n_rows * costs.feature_bytes // MAX_PARTS)
        budget_bytes = int(self.memory * 2**30) // 96
        shard_rows = SHARD_BYTES // costs.row_bytes
        part_rows = min(part_bytes, budget_bytes) // costs.feature_bytes
        return Job(self.n_rows, min(part_rows, shard_rows), shard_rows)

    def predictions(self, costs: Costs) -> list[dict[str, Any]]:
        """Return a prediction for each number of workers."""
        job = self.job(costs)
        return [predict(job, Cluster(n, storage=1e9 * self.storage), costs) for n in WORKERS]

    def __str__(self) -> str:
        storage = "unlimited storage" if math.isinf(self.storage) else f"storage of {self.storage:g} GB/s"
        return f"10^{math.log10(self.n_rows):.3g} rows, {storage}, {self.memory:g} GiB"


SCENARIOS = (
    Scenario(10**9),
    Scenario(10**12),
    Scenario(10**12, memory=32),
    Scenario(10**12, memory=32, storage=100),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    costs = ROOT / "docs/scaling.json"
    add("--costs", type=Path, default=costs, help="file of costs, or scaling.json of `scaling` (default: %(default)s)")
    add("--rows", type=float, help="predict one scenario with this number of rows")
    add("--storage", type=float, default=math.inf, help="bandwidth of its storage in GB/s (default: unlimited)")
    add("--memory", type=float, default=2.0, help="memory budget of its processes in GiB (default: %(default)s)")
    add("--plot", type=Path, help="PNG file to draw")
    add("--check", type=Path, help="scaling.json of `scaling`: compare its measurements with predictions")


def run(options: argparse.Namespace) -> int:
    """Predict, print and draw, and return the exit code."""
    stored = json.loads(options.costs.read_text())["costs"]
    costs = Costs(**stored.get("found", stored))
    if options.check:
        return check(json.loads(options.check.read_text())["crowds"]["found"], costs)
    scenarios = SCENARIOS
    if options.rows:
        scenarios = (Scenario(int(options.rows), options.storage, options.memory),)
    predictions = {scenario: scenario.predictions(costs) for scenario in scenarios}
    for scenario, lines in predictions.items():
        print_table(scenario, scenario.job(costs), lines)
    if options.plot:
        draw(predictions, options.plot)
    return 0


def print_table(scenario: Scenario, job: Job, lines: list[dict[str, Any]]) -> None:
    """Print the predictions of a scenario as a table in Markdown."""
    stages = ("scan", "first epoch", "rounds", "encoding")
    print(f"\n{scenario}: {math.ceil(job.n_rows / job.part_rows):,} parts of {job.part_rows:,} rows\n")
    print_head("workers", *stages, "whole", "worker-hours", "encoding waits for", "busy while encoding")
    for line in lines:
        durations = [in_words(line["seconds"][stage]) for stage in stages]
        durations.append(in_words(line["total"]))
        busy = ", ".join(f"{name} {share:.2f}" for name, share in line["busy"].items())
        print_row(line["n_workers"], *durations, f"{line['worker_hours']:,.3g}", line["bottleneck"], busy)


def in_words(seconds: float) -> str:
    """Return a duration with a unit."""
    for n, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * n:
            return f"{seconds / n:.3g} {unit}"
    return f"{seconds:.3g} s"


def check(measured: dict[str, Any], costs: Costs) -> int:
    """Compare predictions with measured runs of 1 to 4 workers on one machine; return 1 if one is far off."""
    worst = 0.0
    print_head("workers", "stage", "measured", "predicted", "error")
    for n, stages in measured["by workers"].items():
        cluster = Cluster(int(n), 1, 1, measured["cores"])
        for stage, numbers in stages.items():
            predicted = predict_measured(stage, numbers, cluster, costs)
            error = predicted / numbers["seconds"] - 1
            worst = max(worst, abs(error))
            print_row(n, stage, f"{numbers['seconds']:.2f} s", f"{predicted:.2f} s", f"{100 * error:+.0f} %")
    print(f"\nlargest error: {100 * worst:.0f} %, expected at most {100 * MAX_ERROR:.0f} %")
    return int(worst > MAX_ERROR)


def predict_measured(stage: str, numbers: dict[str, Any], cluster: Cluster, costs: Costs) -> float:
    """Return the seconds that the model predicts for a measured stage.

    The processor seconds are taken from that measurement, because processes that share cores slow each other down. Only
    the waiting time is predicted.
    """
    n_tasks = numbers["n_tasks"]
    wait = costs.scan_wait if stage == "scan" else costs.encode_wait
    end = costs.scan_end if stage == "scan" else costs.encode_end
    task = Task(numbers["processor_seconds"] / n_tasks, wait=wait)
    driver_task = numbers["driver_seconds"] / n_tasks
    scheduler_task = numbers["scheduler_seconds"] / n_tasks
    costs = replace(costs, driver_task=driver_task, scheduler_task=scheduler_task)
    return simulate(task, n_tasks, cluster, costs).seconds + end


def draw(predictions: dict[Scenario, list[dict[str, Any]]], path: Path) -> None:
    """Plot the time of the encoding in each scenario, and the busy shares of driver and scheduler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for (scenario, lines), style in zip(predictions.items(), STYLES, strict=False):
        hours = [line["seconds"]["encoding"] / 3600 for line in lines]
        left.plot(WORKERS, hours, marker="o", linestyle=style, label=str(scenario))
        for name, colour in COLOURS.items():
            right.plot(WORKERS, [line["busy"][name] for line in lines], linestyle=style, color=colour)
    for name, colour in COLOURS.items():
        right.plot([], [], color=colour, label=name)
    left.set(title="Encoding", xscale="log", yscale="log", ylabel="hours (predicted)")
    right.set(title="Driver and scheduler while encoding", xscale="log", ylabel="fraction of time that they are busy")
    for axes in (left, right):
        axes.set_xlabel("workers of two cores")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
