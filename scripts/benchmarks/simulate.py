"""Predict what a run takes on a cluster that is not there, by a discrete-event model fed with measured costs.

    run.py simulate                              10^9 and 10^12 rows on 1 to 1,000 workers, as a table
    run.py simulate --plot docs/scaling.png      the same as a picture, too
    run.py simulate --costs scaling/scaling.json --check scaling/scaling.json
                                                            what was measured with 1 to 4 workers beside the model

A task waits for the driver, the scheduler, a thread of a worker, a core and the storage in turn, as in a run; each of
them serves one at a time, and the storage as many as its bandwidth has streams. Of more tasks than `MOST_TASKS` so many
are simulated, and the rest goes on at their steady pace. The costs are those of docs/scaling.json, or of `--costs`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import simpy

from pipeline.cluster.executor import batch_size
from scripts.benchmarks.common import ROOT

WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
MOST_TASKS = 4000  # that are simulated of a pass, and as many more as fill all threads so many times:
TURNS = 12
REPLICAS = 8
BATCH = 128
SHARE_STEPS = 512  # of a replica in a round, as pipeline/settings/replicas.py has it for large data
TRAINED = 10**8  # rows that the model of larger data is trained on: docs/scaling.md says why, and how
EPOCHS = 20
SCANNED = 128 * 2688  # rows of a usual task, as pipeline/scan/ranges.py has it


@dataclass(frozen=True)
class Costs:
    """What was measured, in seconds of one core where nothing else is said.

    Attributes
    ----------
    driver_task, scheduler_task : float
        Of a task and its result.
    driver_part : float
        Of a part's commit, and of its lines in manifest and index.
    scan_row, encode_row, train_row : float
        Of a row; reading it from memory counts in.
    encode_part, scan_task : float
        Of a task beside its rows.
    encode_wait, scan_wait : float
        Of a task, for the disk, while its core is free.
    encode_end, scan_end : float
        Behind the last task: the last commit; ranges and quantiles, put together.
    start : float
        From the command to the first task, and from the last one to the end.
    shard : float
        That the driver looks at a shard before the first task.
    row_bytes, feature_bytes, state_bytes : int
        Of a row as stored, of its features, and of a model on its way to a replica.
    meet : float
        That the driver averages a replica for.
    """

    driver_task: float
    driver_part: float
    scheduler_task: float
    scan_row: float
    encode_row: float
    train_row: float
    encode_part: float
    scan_task: float
    encode_wait: float
    scan_wait: float
    encode_end: float
    scan_end: float
    start: float
    shard: float
    row_bytes: int
    feature_bytes: int
    state_bytes: int
    meet: float


@dataclass(frozen=True)
class Cluster:
    """What there is.

    Attributes
    ----------
    cores, threads : int
        Of each worker. With a thread more than cores, one reads or writes while the others compute.
    shared_cores : int or None
        That all workers have together, where they are on one machine.
    storage : float
        Bytes a second, of all together.
    stream : float
        Bytes a second, of one reader or writer, and of the driver's network.
    """

    n_workers: int
    cores: int = 2
    threads: int = 3
    shared_cores: int | None = None
    storage: float = math.inf
    stream: float = 1e9


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes
    ----------
    part_rows, shard_rows : int
        Of a part, and of a file: one holds whole parts.
    trained : int
        Rows that the model is trained on, at most.
    is_grouped : bool
        Whether tasks go to the workers several at a time, as the executor has it.
    """

    n_rows: int
    part_rows: int
    shard_rows: int
    trained: int = TRAINED
    is_grouped: bool = False


@dataclass(frozen=True)
class Task:
    """What one takes beside the driver's and the scheduler's usual work."""

    core_seconds: float
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    message_bytes: float = 0.0
    driver_seconds: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True)
class Pass:
    """What came of tasks that could begin in any order: seconds, and the share of them that each resource was busy."""

    seconds: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """What was busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


class World:
    """What tasks wait for."""

    def __init__(self, cluster: Cluster, costs: Costs) -> None:
        self.env = simpy.Environment()
        self.costs = costs
        self.cluster = cluster
        n_threads = cluster.n_workers * cluster.threads
        n_streams = n_threads
        if math.isfinite(cluster.storage):
            n_streams = max(1, round(cluster.storage / cluster.stream))
        n_cores = cluster.shared_cores or cluster.n_workers * cluster.cores
        capacities = {"driver": 1, "scheduler": 1, "storage": n_streams, "cores": n_cores}
        self.resources = {name: simpy.PriorityResource(self.env, n) for name, n in capacities.items()}
        self.rates = {"storage": min(cluster.stream, cluster.storage)}
        self.threads = simpy.Resource(self.env, n_threads)
        self.served = dict.fromkeys(capacities, 0.0)
        self.ended: list[float] = []

    def use(self, name: str, seconds: float) -> Iterator[Any]:
        """Wait for a turn, and have it for so long."""
        if seconds > 0:
            with self.resources[name].request(priority=1) as turn:
                yield turn
                if name in ("driver", "scheduler") and self.cluster.shared_cores:
                    # They take one of the workers' cores, before these: a system prefers what has slept.
                    with self.resources["cores"].request(priority=0) as core:
                        yield core
                        yield self.env.timeout(seconds)
                else:
                    yield self.env.timeout(seconds)
            self.served[name] += seconds

    def go(self, task: Task, window: simpy.Resource) -> Iterator[Any]:
        """A task's way: half of the driver's and the scheduler's work is before it, half behind."""
        costs = self.costs
        message = task.message_bytes / self.cluster.stream
        with window.request() as place:
            yield place
            yield from self.use("driver", costs.driver_task / 2 + message)
            yield from self.use("scheduler", costs.scheduler_task / 2 + message)
            with self.threads.request() as thread:
                yield thread
                yield from self.use("storage", task.read_bytes / self.rates["storage"])
                yield from self.use("cores", task.core_seconds)
                yield self.env.timeout(task.wait)
                yield from self.use("storage", task.write_bytes / self.rates["storage"])
            yield from self.use("scheduler", costs.scheduler_task / 2 + message)
            yield from self.use("driver", costs.driver_task / 2 + message + task.driver_seconds)
        self.ended.append(self.env.now)


def passed(tasks: Task, n_tasks: int, cluster: Cluster, costs: Costs) -> Pass:
    """So many tasks of a kind."""
    world = World(cluster, costs)
    n_threads = cluster.n_workers * cluster.threads
    window = simpy.Resource(world.env, 2 * n_threads + 8)  # as many are under way, so that no thread waits for one
    n = min(n_tasks, MOST_TASKS + TURNS * n_threads)
    for _ in range(n):
        world.env.process(world.go(tasks, window))
    world.env.run()
    seconds = world.ended[-1]
    capacities = {name: resource.capacity for name, resource in world.resources.items()}
    busy = {name: served / seconds / capacities[name] for name, served in world.served.items()}
    if n < n_tasks:
        first = n // 4  # neither the filling nor the emptying
        last = 3 * n // 4
        seconds += (n_tasks - n) * (world.ended[last] - world.ended[first]) / (last - first)
    return Pass(seconds, busy)


def scanning(job: Job, cluster: Cluster, costs: Costs) -> tuple[Task, int]:
    """The scan's tasks: 4096 at most, each of which ends with a merge."""
    n_tasks = min(4096, max(math.ceil(job.n_rows / job.part_rows), math.ceil(job.n_rows / job.shard_rows)))
    rows = job.n_rows / n_tasks
    one = Task(rows * costs.scan_row + costs.scan_task, rows * costs.row_bytes, wait=costs.scan_wait)
    return grouped(one, n_tasks, job, cluster, int(SCANNED // rows))


def encoding(job: Job, cluster: Cluster, costs: Costs) -> tuple[Task, int]:
    """The parts."""
    rows = min(job.part_rows, job.shard_rows)
    one = Task(
        core_seconds=rows * costs.encode_row + costs.encode_part,
        read_bytes=rows * costs.row_bytes,
        write_bytes=rows * costs.feature_bytes,
        driver_seconds=costs.driver_part,
        wait=costs.encode_wait,
    )
    return grouped(one, math.ceil(job.n_rows / rows), job, cluster, job.part_rows // rows)


def grouped(one: Task, n_tasks: int, job: Job, cluster: Cluster, n_small: int = 1) -> tuple[Task, int]:
    """Tasks as they go to the workers."""
    n = batch_size(n_tasks, cluster.n_workers * cluster.threads, n_small) if job.is_grouped else 1
    return Task(**{name: n * each for name, each in asdict(one).items()}), math.ceil(n_tasks / n)


def training(job: Job, cluster: Cluster, costs: Costs) -> tuple[float, Pass]:
    """Seconds of the first epoch, by one replica, and those of all others, round by round.

    A replica has all cores of its worker.
    """
    n_rows = min(job.n_rows, job.trained)
    device = replace(cluster, cores=1, threads=1)
    first = n_rows * max(costs.train_row / cluster.cores, costs.row_bytes / min(cluster.stream, cluster.storage))
    rows = min(SHARE_STEPS * BATCH, max(1, n_rows // REPLICAS))
    share = Task(rows * costs.train_row / cluster.cores, rows * costs.row_bytes, 0.0, costs.state_bytes)
    one = passed(share, REPLICAS, device, costs)
    n_rounds = (EPOCHS - 1) * math.ceil(n_rows / (rows * REPLICAS))
    return first, replace(one, seconds=n_rounds * (one.seconds + REPLICAS * costs.meet))


def predicted(job: Job, cluster: Cluster, costs: Costs) -> dict[str, Any]:
    """Seconds of each stage, worker-hours, what is busiest in each pass, and what most of the time goes to."""
    scan_task, n_scan_tasks = scanning(job, cluster, costs)
    scan = passed(scan_task, n_scan_tasks, cluster, costs)
    encode_task, n_encode_tasks = encoding(job, cluster, costs)
    encode = passed(encode_task, n_encode_tasks, cluster, costs)
    first, rounds = training(job, cluster, costs)
    seconds = {
        "start": costs.start + costs.shard * math.ceil(job.n_rows / job.shard_rows),
        "scan": scan.seconds + costs.scan_end,
        "first epoch": first,
        "rounds": rounds.seconds,
        "encoding": encode.seconds + costs.encode_end,
    }
    total = sum(seconds.values())
    longest = max(seconds, key=lambda name: seconds[name])
    of = {"scan": scan.bottleneck, "encoding": encode.bottleneck, "first epoch": "one replica", "rounds": "replicas"}
    return {
        "n_workers": cluster.n_workers,
        "seconds": seconds,
        "total": total,
        "worker_hours": cluster.n_workers * total / 3600,
        "busy": {"scan": scan.busy, "encoding": encode.busy},
        "longest": longest,
        "bottleneck": of.get(longest, "driver"),
    }


# -- what is asked for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What one line of the picture, and one table, is of.

    Attributes
    ----------
    storage, memory : float
        GB a second of all together; GiB that ``--memory-budget`` gives to each process, of two threads.
    is_plain : bool
        Parts of 64 MiB at most, and each a task of the scheduler, as it was before this model was asked.
    """

    n_rows: int
    storage: float = math.inf
    memory: float = 2.0
    is_plain: bool = False
    trained: int = TRAINED

    def job(self, costs: Costs) -> Job:
        """Rows in files of 4 GB, in parts as pipeline/run/budget.py makes them, handed out as the executor does it."""
        share = self.memory * 2**30 / 8 / 4 / 3
        usual = 2**26 if self.is_plain else max(2**26, self.n_rows * costs.feature_bytes // 2**15)
        shard_rows = int(4e9) // costs.row_bytes
        part_rows = min(int(min(usual, share)) // costs.feature_bytes, shard_rows)
        return Job(self.n_rows, part_rows, shard_rows, self.trained, is_grouped=not self.is_plain)

    def lines(self, costs: Costs) -> list[dict[str, Any]]:
        """For each number of workers."""
        job = self.job(costs)
        return [predicted(job, Cluster(n, storage=1e9 * self.storage), costs) for n in WORKERS]

    def __str__(self) -> str:
        storage = "storage without end" if math.isinf(self.storage) else f"storage of {self.storage:g} GB/s"
        parts = ", parts and tasks as before" if self.is_plain else ""
        return f"10^{math.log10(self.n_rows):.3g} rows, {storage}, {self.memory:g} GiB{parts}"


SCENARIOS = (
    Scenario(10**9),
    Scenario(10**12, is_plain=True),
    Scenario(10**12),
    Scenario(10**12, memory=32),
    Scenario(10**12, memory=32, storage=100),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    costs = ROOT / "docs/scaling.json"
    add("--costs", type=Path, default=costs, help="measured ones, or scaling.py's file (%(default)s)")
    add("--rows", type=float, help="other ones than the usual scenarios have")
    add("--storage", type=float, default=math.inf, help="of these, GB/s of all together (%(default)s)")
    add("--memory", type=float, default=2.0, help="GiB of each process (default: %(default)s)")
    add("--trained", type=float, default=TRAINED, help="rows that the model is trained on (1e8)")
    add("--plot", type=Path, help="a PNG to draw")
    add("--check", type=Path, help="what scaling.py has measured with 1 to 4 workers")


def run(options: argparse.Namespace) -> int:
    """Predict, print, draw, and return the exit code."""
    told = json.loads(options.costs.read_text())["costs"]
    costs = Costs(**told.get("found", told))
    if options.check:
        return check(json.loads(options.check.read_text())["crowds"]["found"], costs)
    scenarios = SCENARIOS
    if options.rows:
        scenarios = (Scenario(int(options.rows), options.storage, options.memory, trained=int(options.trained)),)
    found = {}
    for scenario in scenarios:
        found[scenario] = scenario.lines(costs)
        tell(scenario, scenario.job(costs), found[scenario])
    if options.plot:
        draw(found, options.plot)
    return 0


def tell(scenario: Scenario, job: Job, lines: Sequence[dict[str, Any]]) -> None:
    """One table in Markdown."""
    n_parts = math.ceil(job.n_rows / job.part_rows)
    print(f"\n{scenario}: {n_parts:,} parts of {job.part_rows:,} rows\n")
    print("| workers | scan | first epoch | rounds | encoding | whole | worker-hours | most of it goes to | ", end="")
    print("driver, scheduler, storage, cores busy while encoding |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        seconds = [line["seconds"][name] for name in ("scan", "first epoch", "rounds", "encoding")]
        of_each = line["busy"]["encoding"]
        busy = ", ".join(f"{of_each[name]:.2f}" for name in ("driver", "scheduler", "storage", "cores"))
        cells = [*map(duration, [*seconds, line["total"]]), f"{line['worker_hours']:,.3g}"]
        print(f"| {line['n_workers']} | {' | '.join(cells)} | {line['longest']}: {line['bottleneck']} | {busy} |")


def duration(seconds: float) -> str:
    """So much time in a glance."""
    for n, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * n:
            return f"{seconds / n:.3g} {unit}"
    return f"{seconds:.3g} s"


# -- beside what was measured --------------------------------------------------------------------------------------


def check(measured: dict[str, Any], costs: Costs) -> int:
    """Hold the model against runs of 1 to 4 workers on one machine; 1 where it is off by more than 15 %."""
    worst = 0.0
    print("| workers | stage | measured | the model | off by |")
    print("|---|---|---|---|---|")
    for n, stages in measured["by workers"].items():
        for stage, told in stages.items():
            found = again(stage, told, Cluster(int(n), 1, 1, measured["cores"]), costs)
            off = found / told["seconds"] - 1
            worst = max(worst, abs(off))
            print(f"| {n} | {stage} | {told['seconds']:.2f} s | {found:.2f} s | {100 * off:+.0f} % |")
    print(f"\nworst: {100 * worst:.0f} %, expected 15 % at most")
    return int(worst > MOST_OFF)


MOST_OFF = 0.15


def again(stage: str, told: dict[str, Any], cluster: Cluster, costs: Costs) -> float:
    """Seconds of a pass that was measured on a machine where all have the same few cores.

    What workers, driver and scheduler took of a processor is what they took in that pass: who shares cores and memory
    with others is slowed down by them, and messages that come one by one cost more than a hundred of them at a time.
    """
    n = told["n_tasks"]
    wait = costs.scan_wait if stage == "scan" else costs.encode_wait
    end = costs.scan_end if stage == "scan" else costs.encode_end
    task = Task(told["processor_seconds"] / n, wait=wait)
    taken = replace(costs, driver_task=told["driver_seconds"] / n, scheduler_task=told["scheduler_seconds"] / n)
    return passed(task, n, cluster, taken).seconds + end


# -- a picture -----------------------------------------------------------------------------------------------------

COLOURS = {"cores": "#2a78b8", "storage": "#b8602a", "scheduler": "#8a2ab8", "driver": "#c02050"}
STYLES = ("-", "--", "-.", ":", (0, (1, 4)))


def draw(found: dict[Scenario, list[dict[str, Any]]], path: Path) -> None:
    """The encoding's time in each scenario, and how busy driver and scheduler are then."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for (scenario, lines), style in zip(found.items(), STYLES, strict=False):
        workers = [line["n_workers"] for line in lines]
        busy = [line["busy"]["encoding"] for line in lines]
        hours = [line["seconds"]["encoding"] / 3600 for line in lines]
        left.plot(workers, hours, linestyle=style, color="0.55", zorder=1, label=str(scenario))
        left.scatter(workers, hours, c=[COLOURS[max(each, key=each.get)] for each in busy], s=26, zorder=2)
        for name in ("driver", "scheduler"):
            right.plot(workers, [each[name] for each in busy], color=COLOURS[name], linestyle=style)
    for name, colour in COLOURS.items():
        left.scatter([], [], c=colour, s=26, label=f"{name} busiest")
    left.set_title("Encoding (lines: see below)", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    left.set(xscale="log", yscale="log", xlabel="workers of two cores", ylabel="hours of encoding (predicted)")
    right.set_title("How busy driver and scheduler are meanwhile (their colours)", fontsize=10)
    right.set(xscale="log", ylim=(0, 1.05), xlabel="workers of two cores", ylabel="share of that time at work")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
