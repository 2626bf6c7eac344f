"""Race shardpress against what a user would pick instead, on the same work, in the same run, on this machine.

    make bench                                       sets up the peers' environment and runs every case
    run.py races step encode    some of the cases
    run.py races --quick        smaller data, fewer rounds
    run.py races shapes --seed 1    on shapes drawn from another seed
    run.py races --isa avx2     as on a processor without more than that, for all contestants
    run.py races --one-core     one core, and the time that it works: where others use it too
    run.py races device         on a CUDA card (--device cuda1: another one)

Each contestant is a process of its own (contestants.py), the peers (peers.py) in their own virtual
environment. Before a case is timed, their results are compared. Then they take turns, round after round; a ratio is the
median over the rounds of the peer's seconds over ours, so above 1 means that we are faster. What is asked for stands
beside what was measured in a table at the end. Everything goes into bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from kernels.network import Network
from scripts.benchmarks.common import fresh, one_of
from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing
from scripts.benchmarks.race import OURS, PEERS, ROOT, Bench, contestants, environment, nothing

SHAPES = [(784, 64, 512), (784, 256, 512), (4096, 256, 256)]
DEEP = Network((784, 512, 64), activation="relu", code="linear")  # as of `--hidden 512`
DEEP_BATCHES = (128, 512)
ENCODE_ROWS = 8192
# How the rows lie in the files, how many there are, and by how much the best loop is to be beaten.
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
ONE_LAYER = ("--hidden", "none", "--code-activation", "sigmoid", "--decoder-gain", "no")
GROWTH_ROWS = 400_000
GROWTH_MEMORY = "512MiB"
# scripts/extract.py, which says at its end how much memory it had: the kernel's account for us begins with our own.
_PROGRAM = """
import sys
from scripts.extract import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("cases", nargs="*", type=one_of(CASES), metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    add("--output", type=Path, default=Path("bench"), help="working folder (default: %(default)s)")
    add("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    add("--size", type=float, default=1.0, help="of the data sets in files (default: %(default)s)")
    add("--quick", action="store_true", help="as --rounds 3 --size 0.1")
    add("--device", default="cuda", help="for the case of that name (default: %(default)s)")
    add("--isa", choices=INSTRUCTION_SETS, help="instruction set that all contestants keep to")
    add("--seed", type=int, default=0, help="of the case shapes (default: %(default)s)")
    add("--one-core", action="store_true", help="one core for all, and its time instead of the clock's")
    add("--without-peers", action="store_true", help="time only ourselves and BLAS")


def refusal(options: argparse.Namespace) -> str:
    """Return why these races cannot be run here; empty if they can."""
    if options.isa and missing(options.isa):
        return f"--isa {options.isa}: this machine's processor lacks {', '.join(missing(options.isa))}"
    if not PEERS.exists() and not options.without_peers:
        return "the peers' environment is missing. Run: make bench"
    return ""


def run(options: argparse.Namespace) -> int:
    """Run the cases, print tables, write bench.json, and return the exit code."""
    if why := refusal(options):
        print(why, file=sys.stderr)
        return 2
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # of all that is started from here, too
        os.environ["BENCH_CLOCK"] = "process"
    if options.quick:
        options.rounds = 3
        options.size = 0.1
    bench = Bench(
        options.output,
        options.rounds,
        options.size,
        options.device,
        not options.without_peers,
        options.isa,
        options.seed,
    )
    cores = len(os.sched_getaffinity(0))
    kept = f", kept to {options.isa}" if options.isa else ""
    counted = ", by the processor's time" if options.one_core else ""
    print(f"{processor()}{kept}, {cores} cores{counted}, {bench.rounds} rounds", flush=True)
    if options.isa and not bench.is_kept:
        print(
            "JAX asks the processor what it knows, which cannot be hidden here: its products may take more", flush=True
        )
    for name in options.cases or CASES:
        CASES[name](bench)
    bench.print_demands()
    found = {
        "processor": processor(),
        "isa": options.isa,
        "seed": options.seed,
        "cores": cores,
        "one core": options.one_core,
        "results": bench.results,
        "demands": bench.demands,
    }
    path = options.output / "bench.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def processor() -> str:
    """The maker's name of it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


# -- in memory ---------------------------------------------------------------------------------------------------

IN_MEMORY = ("ours", "blas", "jax", "torch", "torch-compile")
IN_FILES = ("ours", "jax", "torch", "sklearn")
SAME = (0.0, 1e-4)


@dataclass(frozen=True)
class Field:
    """The contestants of a race in memory, how much their results may differ, and where they work."""

    names: Sequence[str] = IN_MEMORY
    tolerance: tuple[float, float] = SAME
    where: str = ""

    def race(self, bench: Bench, case: str, what: str, network: Network) -> dict[str, float]:
        """Race with turns of about 0.3 s."""
        sizes = {"network": asdict(network)}
        return bench.race(case, what + self.where, self.names, sizes, self.tolerance, 0.3)


ON_PROCESSOR = Field()


def step(bench: Bench) -> None:
    """One training step, momentum, tied weights."""
    demands = {64: (1.25, 0.75), 256: (1.05, 0.85)}
    for n_inputs, n_features, batch_size in SHAPES:
        network = Network((n_inputs, n_features))
        ratios = race_steps(bench, network, batch_size)
        peers, blas = demands[n_features]
        bench.demand_of_peers(f"step {words(network)}", ratios, peers)
        bench.demand(f"step {words(network)} vs its five products through BLAS", ratios["blas"], blas)


def encode(bench: Bench) -> None:
    """Features of rows in memory, scaling included."""
    for n_inputs, n_features, _ in SHAPES:
        for dtype in (np.float32, np.uint8):
            network = Network((n_inputs, n_features))
            least = 1.1 if n_features == 64 else 1.05
            if dtype is np.uint8:
                least = 1.5
            ratios = race_encoders(bench, network, dtype)
            bench.demand_of_peers(f"encode {words(network)}, {np.dtype(dtype)}", ratios, least)


def networks(bench: Bench) -> None:
    """Both, with a layer between columns and features."""
    for batch_size in DEEP_BATCHES:
        ratios = race_steps(bench, DEEP, batch_size)
        bench.demand_of_peers(f"step {words(DEEP)}, minibatch {batch_size}", ratios, 1.15)
    for dtype in (np.float32, np.uint8):
        ratios = race_encoders(bench, DEEP, dtype)
        bench.demand_of_peers(f"encode {words(DEEP)}, {np.dtype(dtype)}", ratios, 1.15)
        compare_with_sgemm(bench, DEEP, dtype, 0.85)


def shapes(bench: Bench) -> None:
    """Both, on shapes that nobody had in mind."""
    for n_inputs, n_features, batch_size in drawn_shapes(bench.seed):
        network = Network((n_inputs, n_features))
        ratios = race_steps(bench, network, batch_size)
        bench.demand_of_peers(f"step {words(network)}, minibatch {batch_size}", ratios, 1.05)
        ratios = race_encoders(bench, network, np.float32)
        bench.demand_of_peers(f"encode {words(network)}, float32", ratios, 1.05)


def drawn_shapes(seed: int, n: int = 10) -> list[tuple[int, int, int]]:
    """Return columns, fewer features, and rows of a minibatch: small and large ones as often, none of them round."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, int, int]] = []
    while len(found) < n:
        n_inputs = round(float(np.exp(rng.uniform(*np.log((20, 5000))))))
        n_features = round(float(np.exp(rng.uniform(*np.log((3, 300))))))
        batch_size = round(float(np.exp(rng.uniform(*np.log((128, 512))))))
        shape = (n_inputs, n_features, batch_size)
        is_round = any(number % unit == 0 for number in shape for unit in (6, 8, 10))
        if n_features < n_inputs and not is_round:
            found.append(shape)
    return found


def words(network: Network) -> str:
    """Its widths."""
    return " -> ".join(map(str, network.widths))


def race_steps(bench: Bench, network: Network, batch_size: int, entry: Field = ON_PROCESSOR) -> dict[str, float]:
    """Race for a step of training: what `Bench.race` returns."""
    rng = np.random.default_rng(0)
    write_input(bench.folder, rng, network, x=rng.random((batch_size, network.n_inputs), dtype=np.float32))
    return entry.race(bench, "step", f"{words(network)}, minibatch {batch_size}", network)


def race_encoders(bench: Bench, network: Network, dtype: Any, entry: Field = ON_PROCESSOR) -> dict[str, float]:
    """Race for the features of rows: what `Bench.race` returns."""
    write_pixels(bench.folder, network, dtype)
    return entry.race(bench, "encode", f"{words(network)}, {np.dtype(dtype)}", network)


def write_pixels(folder: Path, network: Network, dtype: Any) -> None:
    """Write the input of the encoder in memory."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (ENCODE_ROWS, network.n_inputs)).astype(dtype)
    minimum = np.zeros(network.n_inputs, np.float32)
    scale = np.full(network.n_inputs, 1 / 255, dtype=np.float32)
    write_input(folder, rng, network, rows=rows, minimum=minimum, scale=scale)


def write_input(folder: Path, rng: np.random.Generator, network: Network, **more: np.ndarray) -> None:
    """Write the input of a case in memory: parameters by name, as a training starts with them, and more."""
    start = {}
    for name, shape in network.shapes.items():
        values = np.zeros(shape)
        if len(shape) > 1:
            values = rng.normal(size=shape) / np.sqrt(sum(shape))
        start[name] = values.astype(np.float32)
    np.savez(folder / "input.npz", **start, **more)


def roofline(bench: Bench) -> None:
    """The machine's SGEMM, compared with our encoder's rate."""
    for n_inputs, n_features, _ in SHAPES:
        for dtype in (np.float32, np.uint8):
            compare_with_sgemm(bench, Network((n_inputs, n_features)), dtype, 0.9)


def compare_with_sgemm(bench: Bench, network: Network, dtype: Any, least: float) -> None:
    """Compare the encoder of one network with SGEMM, and demand a share of its rate."""
    n = 2048
    flops = 2 * ENCODE_ROWS * sum(a * b for a, b in pairwise(network.widths))
    write_pixels(bench.folder, network, dtype)
    with contestants(["ours", "blas"], **bench.limits) as (ours, blas):
        ours.prepare("encode", bench.folder, network=asdict(network))
        blas.prepare("square", bench.folder, n=n)
        rates = [(flops / ours.seconds(40), 2 * n**3 / blas.seconds(10)) for _ in range(bench.rounds)]
    what = f"{words(network)}, {np.dtype(dtype)}"
    encoder = median(rate for rate, _ in rates) / 1e9
    sgemm = median(rate for _, rate in rates) / 1e9
    share = median(rate / most for rate, most in rates)
    print(
        f"roofline {what}: encode {encoder:.0f}, SGEMM {sgemm:.0f} GFLOP/s, ratio {share:.2f} ({blas.about})",
        flush=True,
    )
    bench.demand(f"encode {what} vs SGEMM at {n}^3", share, least)
    bench.results.append({"case": "roofline", "what": what, "rates": rates})


# -- on files ----------------------------------------------------------------------------------------------------


def files(bench: Bench) -> None:
    """A data set on disk to feature files, page cache warm and cold; ours also against our rate in memory."""
    model = fitted(bench)
    for name, (how, most_rows, least) in LAYOUTS.items():
        n_rows = int(most_rows * bench.size)
        shards = make_shards(bench.folder / f"shards-{name.replace(' ', '-')}", n_rows, 4, **how)
        sizes = {"shards": str(shards), "model": str(model)}
        for cache in ("warm", "cold"):
            what = f"{name}, {n_rows} rows, page cache {cache}"
            before = partial(evict, shards) if cache == "cold" else nothing
            ratios = bench.race("encode_files", what, IN_FILES, sizes, (0.0, 1e-3), before=before)
            rate = n_rows / ratios["ours"]
            print(f"  ours: {rate:,.0f} rows/s", flush=True)
            if cache == "warm":
                bench.demand_of_peers(f"files, {name},", ratios, least)
                if name.startswith("contiguous"):
                    compare_with_memory(bench, name, rate, n_rows, sizes, how["dtype"])
        shutil.rmtree(shards)


def compare_with_memory(
    bench: Bench, name: str, rate: float, n_rows: int, sizes: Mapping[str, Any], dtype: str
) -> None:
    """Compare rows a second of a run with our encoder's in memory, and with a bare loop that encodes the files."""
    network = Network((784, 64))
    write_pixels(bench.folder, network, dtype)
    in_memory = ENCODE_ROWS / seconds_of(bench, "ours", "encode", 40, network=asdict(network))
    bench.demand(f"files, {name}, vs our rate in memory", rate / in_memory, 0.7)
    most = n_rows / seconds_of(bench, "ours", "encode_files_barely", **sizes)
    share = f"{most / in_memory:.2f} of our rate in memory"
    print(f"  read, encoded, hashed, synced and nothing else: {most:,.0f} rows/s, {share}", flush=True)
    what = f"{name}, {n_rows} rows, page cache warm"
    found = {"case": "encode_files_barely", "what": what, "rows/s": most, "in memory": in_memory}
    bench.results.append(found)


def seconds_of(bench: Bench, name: str, case: str, times: int = 1, **sizes: Any) -> float:
    """Return the median of the seconds of one contestant's work, without a race."""
    with contestants([name], **bench.limits) as (one,):
        one.prepare(case, bench.folder, **sizes)
        return median(one.seconds(times) for _ in range(bench.rounds))


def evict(shards: Path) -> None:
    """Have the system forget what it keeps of these files, where it listens to that."""
    for path in shards.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fitted(bench: Bench) -> Path:
    """A model for 784 columns: one layer of sigmoids, as the peers' loops have it."""
    shards = make_shards(bench.folder / "shards-small", 20_000, 1, dtype="u1")
    output = fresh(bench.folder / "model")
    extract("--input", shards, "--output", output, "--epochs", 1, *ONE_LAYER, **bench.limits)
    return output


def extract(*flags: object, **variables: str) -> tuple[float, int]:
    """Our program, to its end; its seconds and its peak memory in bytes."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(OURS), "-c", _PROGRAM, "--quiet", *map(str, flags)],
        cwd=ROOT,
        env=environment(**variables),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - start, 1024 * int(done.stdout.split()[-1])


def make_shards(folder: Path, n_rows: int, n_shards: int, dtype: str, n_inputs: int = 784, **how: Any) -> Path:
    """Rows of pixels: smooth, half of them 0, so that they compress as images do."""
    fresh(folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(64, n_inputs)).cumsum(axis=1)
    for i in range(n_shards):
        n = (i + 1) * n_rows // n_shards - i * n_rows // n_shards
        with h5py.File(folder / f"{i:04d}.h5", "w") as file:
            X = file.create_dataset("X", (n, n_inputs), dtype, **how)
            for start in range(0, n, 8192):
                size = min(8192, n - start)
                mixed = rng.normal(size=(size, 8)).astype(np.float32) @ base[rng.integers(0, 64, 8)].astype(np.float32)
                X[start : start + size] = np.clip(4 * mixed + 0.5, 0, 255).astype(np.uint8).astype(dtype)
    return folder


def train(bench: Bench) -> None:
    """Scan and 5 epochs, in memory and streamed: the models must be as good as each other."""
    for name, n_rows, memory in (("in memory", 60_000, 2**31), ("streamed", int(500_000 * bench.size), 2**27)):
        if name == "in memory" and any((ROOT / "data").glob("fashion-mnist-train-*.h5")):
            shards = ROOT / "data"
            what = f"Fashion-MNIST, {name}"
        else:
            shards = make_shards(bench.folder / "shards-train", n_rows, 4, dtype="u1")
            what = f"{n_rows} rows, {name}"
        sizes = {"shards": str(shards), "epochs": 5, "batch_size": 512, "memory": memory}
        ratios = bench.race("train_files", what, ("ours", "jax", "torch", "torch-compile"), sizes, (0.1, 0.0))
        bench.demand_of_peers(f"training, {what},", ratios, 1.2)


# -- the program -------------------------------------------------------------------------------------------------


def startup(bench: Bench) -> None:
    """From the start of a process to the end of a whole tiny run, of one epoch of four steps."""
    shards = make_shards(bench.folder / "shards-tiny", 2000, 1, dtype="u1")
    flags = ("--input", shards, "--output", bench.folder / "tiny", "--epochs", 1, "--batch-size", 512, "--restart")
    cache = bench.folder / "cache"
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(min(3, bench.rounds)):
        shutil.rmtree(cache, ignore_errors=True)
        for name in found:
            found[name].append(extract(*flags, XDG_CACHE_HOME=str(cache), **bench.limits)[0])
    for name, most in (("warm", 4.0), ("cold", 40.0)):
        print(f"startup, {name} compile cache, a whole tiny run: {median(found[name]):.2f} s", flush=True)
        bench.demand(f"start-up, {name} compile cache, a whole tiny run, s", median(found[name]), most=most)
    bench.results.append({"case": "startup", "seconds": found})


def growth(bench: Bench) -> None:
    """Time per row and peak memory with more rows, and with more shards of the same bytes."""
    model = fitted(bench)
    folder = fresh(bench.folder / "growth")
    base = int(GROWTH_ROWS * bench.size)
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    cases = {f"rows x{n}": (n * base, 4) for n in (1, 4, 16)} | {f"{n} shards": (4 * base, n) for n in (1, 10, 1000)}
    for name, (n_rows, n_shards) in cases.items():
        found = encode_shards(bench, folder / name, model, n_rows, n_shards)
        seconds[name] = median(found["seconds per row"])
        peaks[name] = median(found["peak"])
        print(f"growth, {name}: {seconds[name] * 1e9:.0f} ns a row, peak {peaks[name] / 1e6:.0f} MB", flush=True)
        bench.results.append({"case": "growth", "what": name, **found})
    only_written(bench, folder, 4 * base)
    shutil.rmtree(folder)
    bench.demand("growth of time per row, x1 to x16", seconds["rows x16"] / seconds["rows x1"], most=1.1)
    bench.demand("growth of time per row, 1 to 1000 shards", seconds["1000 shards"] / seconds["1 shards"], most=1.1)
    bench.demand("peak memory at x16 beside x1", peaks["rows x16"] / peaks["rows x1"], most=1.05)


def only_written(bench: Bench, folder: Path, n_rows: int) -> None:
    """Print the time that it takes to write the features of some rows to 1000 files, and nothing else."""
    seconds = [writing(folder, 1000, n_rows // 1000 * 64 * 4) for _ in range(min(5, bench.rounds))]
    what = "1000 files of the same size written, synced, and nothing else"
    print(f"growth, {what}: {median(seconds) / n_rows * 1e9:.0f} ns a row", flush=True)
    bench.results.append({"case": "growth", "what": what, "seconds": seconds})


def encode_shards(bench: Bench, folder: Path, model: Path, n_rows: int, n_shards: int) -> dict[str, list[float]]:
    """Encode new shards several times; return seconds per row and peak memory of each run."""
    shards = make_shards(folder / "shards", n_rows, n_shards, dtype="u1")
    found: dict[str, list[float]] = {"seconds per row": [], "peak": []}
    for i in range(min(5, bench.rounds)):
        output = folder / str(i)
        flags = ("--input", shards, "--model", model, "--memory-budget", GROWTH_MEMORY, "--output", output)
        _, peak = extract(*flags, **bench.limits)
        stages = json.loads((output / "report.json").read_text())["summary"]["seconds"]
        found["peak"].append(peak)
        found["seconds per row"].append(sum(stages.values()) / n_rows)
        empty(output)
    empty(shards)
    return found


def empty(folder: Path) -> None:
    """Give a folder's space back. Removing its files would slow down the next: ext4 looks long at inodes just freed."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def writing(folder: Path, n_files: int, n_bytes: int) -> float:
    """Seconds that it takes three threads to bring so many new files to the disk."""
    target = folder / f"written-{time.time_ns()}"
    target.mkdir()
    data = bytes(n_bytes)

    def one(i: int) -> None:
        with (target / str(i)).open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    with ThreadPoolExecutor(3) as pool:
        start = time.perf_counter()
        list(pool.map(one, range(n_files)))
        taken = time.perf_counter() - start
    empty(target)
    return taken


def device(bench: Bench) -> None:
    """Steps and encoding on a card, against PyTorch on the same one: eager, compiled, and by CUDA graphs."""
    flags = [bench.limits.get("THEANO_FLAGS"), f"device={bench.device}"]
    peer_device = "cuda" if bench.device.startswith("cuda") else "cpu"
    bench = copy(bench)  # with the same lists of results
    bench.limits = {**bench.limits, "THEANO_FLAGS": ",".join(filter(None, flags)), "PEER_DEVICE": peer_device}
    is_used, name = device_here(bench)
    if not is_used:
        print(f"\ndevice: skipped, since {bench.device} cannot be used: {name}", flush=True)
        bench.results.append({"case": "device", "skipped": name})
        return
    peak = sgemm_of_the_card(bench)
    entry = Field(("ours", "torch", "torch-compile", "torch-graphs"), (0.0, 1e-3), f", on {name}")
    for n_inputs, n_features, batch_size in SHAPES:
        network = Network((n_inputs, n_features))
        race_steps(bench, network, batch_size, entry)
        for dtype in (np.float32, np.uint8):
            ratios = race_encoders(bench, network, dtype, entry)
            rate = ENCODE_ROWS / ratios["ours"]
            over_the_bus = rate * (n_inputs * np.dtype(dtype).itemsize + 4 * n_features) / 1e9
            share = f", {2 * rate * n_inputs * n_features / peak:.2f} of its SGEMM" if peak else ""
            print(f"  ours: {rate:,.0f} rows/s, {over_the_bus:.2f} GB/s over the bus{share}", flush=True)


def device_here(bench: Bench) -> tuple[bool, str]:
    """Return whether our process uses the device, and the device's name or the reason."""
    program = f"from kernels import backend; device = backend.start(); print(device.used == {bench.device!r}, device)"
    command = [str(OURS), "-c", program]
    env = environment(**bench.limits)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    is_used, _, name = lines[-1].partition(" ")
    return is_used == "True", name


def sgemm_of_the_card(bench: Bench) -> float | None:
    """Return FLOP/s of PyTorch's product of large square matrices, if PyTorch is there."""
    if not bench.with_peers:
        return None
    n = 8192 if bench.limits["PEER_DEVICE"] == "cuda" else 2048
    with contestants(["torch"], **bench.limits) as (torch,):
        if not torch.prepare("square", bench.folder, n=n):
            return None
        rate = 2 * n**3 / median(torch.seconds(10) for _ in range(bench.rounds))
    print(f"\ndevice: SGEMM at {n}^3 {rate / 1e9:.0f} GFLOP/s, {torch.about}", flush=True)
    return rate


CASES = {
    "step": step,
    "encode": encode,
    "networks": networks,
    "shapes": shapes,
    "roofline": roofline,
    "files": files,
    "train": train,
    "startup": startup,
    "growth": growth,
    "device": device,
}
