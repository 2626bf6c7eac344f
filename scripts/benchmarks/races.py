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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from kernels.network import Network
from scripts.benchmarks.common import one_of
from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing
from scripts.benchmarks.race import OURS, PEERS, ROOT, Bench, contestants, environment, nothing

SHAPES = [(784, 64, 512), (784, 256, 512), (4096, 256, 256)]
# What `--hidden 512` makes of pictures.
DEEP, DEEP_BATCHES = Network((784, 512, 64), activation="relu", code="linear"), (128, 512)
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
GROWTH_ROWS, GROWTH_MEMORY = 400_000, "512MiB"
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
    rounds, size = (3, 0.1) if options.quick else (options.rounds, options.size)
    bench = Bench(options.output, rounds, size, options.device, not options.without_peers, options.isa, options.seed)
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
    path = options.output / "bench.json"
    found = {
        "processor": processor(),
        "isa": options.isa,
        "seed": options.seed,
        "cores": cores,
        "one core": options.one_core,
        "results": bench.results,
        "demands": bench.demands,
    }
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
SAME = (0.0, 1e-4)


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
            least = 1.5 if dtype is np.uint8 else 1.1 if n_features == 64 else 1.05
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
        beside_sgemm(bench, DEEP, dtype, 0.85)


def shapes(bench: Bench) -> None:
    """Both, on shapes that nobody had in mind."""
    for n_inputs, n_features, batch_size in drawn_shapes(bench.seed):
        network = Network((n_inputs, n_features))
        ratios = race_steps(bench, network, batch_size)
        bench.demand_of_peers(f"step {words(network)}, minibatch {batch_size}", ratios, 1.05)
        ratios = race_encoders(bench, network, np.float32)
        bench.demand_of_peers(f"encode {words(network)}, float32", ratios, 1.05)


def drawn_shapes(seed: int, n: int = 10) -> list[tuple[int, int, int]]:
    """Columns, fewer features, and rows of a minibatch: small ones as likely as large ones, and none of them round."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        drawn = [round(float(np.exp(rng.uniform(*np.log(ends))))) for ends in ((20, 5000), (3, 300), (128, 512))]
        if drawn[1] < drawn[0] and not any(number % unit == 0 for number in drawn for unit in (6, 8, 10)):
            found.append((drawn[0], drawn[1], drawn[2]))
    return found


def words(network: Network) -> str:
    """Its widths."""
    return " -> ".join(map(str, network.widths))


def race_steps(
    bench: Bench,
    network: Network,
    batch_size: int,
    names: Sequence[str] = IN_MEMORY,
    tolerance: tuple[float, float] = SAME,
    where: str = "",
    **variables: str,
) -> dict[str, float]:
    """A step of training: what `Bench.race` returns."""
    rng = np.random.default_rng(0)
    given(bench.folder, rng, network, x=rng.random((batch_size, network.n_inputs), dtype=np.float32))
    what = f"{words(network)}, minibatch {batch_size}{where}"
    return bench.race("step", what, names, {"network": asdict(network)}, tolerance, 0.3, **variables)


def race_encoders(
    bench: Bench,
    network: Network,
    dtype: Any,
    names: Sequence[str] = IN_MEMORY,
    tolerance: tuple[float, float] = SAME,
    where: str = "",
    **variables: str,
) -> dict[str, float]:
    """Features of rows: what `Bench.race` returns."""
    pixels(bench.folder, network, dtype)
    what = f"{words(network)}, {np.dtype(dtype)}{where}"
    return bench.race("encode", what, names, {"network": asdict(network)}, tolerance, 0.3, **variables)


def pixels(folder: Path, network: Network, dtype: Any) -> None:
    """The input of the encoder in memory."""
    rng, n_inputs = np.random.default_rng(0), network.n_inputs
    rows = rng.integers(0, 256, (ENCODE_ROWS, n_inputs)).astype(dtype)
    scale = np.full(n_inputs, 1 / 255, dtype=np.float32)
    given(folder, rng, network, rows=rows, minimum=np.zeros(n_inputs, np.float32), scale=scale)


def given(folder: Path, rng: np.random.Generator, network: Network, **more: np.ndarray) -> None:
    """The input of a case in memory: parameters by name, as a training starts with them, and more."""
    start = {
        name: (rng.normal(size=shape) / np.sqrt(sum(shape)) if len(shape) > 1 else np.zeros(shape)).astype(np.float32)
        for name, shape in network.shapes.items()
    }
    np.savez(folder / "input.npz", **start, **more)


def roofline(bench: Bench) -> None:
    """The machine's SGEMM, beside our encoder's rate."""
    for n_inputs, n_features, _ in SHAPES:
        for dtype in (np.float32, np.uint8):
            beside_sgemm(bench, Network((n_inputs, n_features)), dtype, 0.9)


def beside_sgemm(bench: Bench, network: Network, dtype: Any, least: float) -> None:
    """The same of one network, and what share of SGEMM's rate is asked for."""
    n, flops = 2048, 2 * ENCODE_ROWS * sum(a * b for a, b in pairwise(network.widths))
    pixels(bench.folder, network, dtype)
    with contestants(["ours", "blas"], **bench.limits) as (ours, blas):
        ours.prepare("encode", bench.folder, network=asdict(network))
        blas.prepare("square", bench.folder, n=n)
        pairs = [(flops / ours.seconds(40), 2 * n**3 / blas.seconds(10)) for _ in range(bench.rounds)]
    what = f"{words(network)}, {np.dtype(dtype)}"
    a, b = (median(rate) / 1e9 for rate in zip(*pairs, strict=True))
    share = median(x / y for x, y in pairs)
    print(f"roofline {what}: encode {a:.0f}, SGEMM {b:.0f} GFLOP/s, ratio {share:.2f} ({blas.about})", flush=True)
    bench.demand(f"encode {what} vs SGEMM at {n}^3", share, least)
    bench.results.append({"case": "roofline", "what": what, "rates": pairs})


# -- on files ----------------------------------------------------------------------------------------------------


def files(bench: Bench) -> None:
    """A data set on disk to feature files, page cache warm and cold; ours also against our rate in memory."""
    model = fitted(bench)
    for name, (how, n_rows, least) in LAYOUTS.items():
        n_rows = int(n_rows * bench.size)
        shards = make_shards(bench.folder / f"shards-{name.replace(' ', '-')}", n_rows, 4, **how)
        sizes = {"shards": str(shards), "model": str(model)}
        for cache, before in {"warm": nothing, "cold": partial(evict, shards)}.items():
            what = f"{name}, {n_rows} rows, page cache {cache}"
            names = ("ours", "jax", "torch", "sklearn")
            ratios = bench.race("encode_files", what, names, sizes, (0.0, 1e-3), before=before)
            rate = n_rows / ratios["ours"]
            print(f"  ours: {rate:,.0f} rows/s", flush=True)
            if cache == "warm":
                bench.demand_of_peers(f"files, {name},", ratios, least)
            if cache == "warm" and name.startswith("contiguous"):
                in_memory = rate_in_memory(bench, how["dtype"])
                bench.demand(f"files, {name}, vs our rate in memory", rate / in_memory, 0.7)
                most = n_rows / seconds_barely(bench, sizes)
                print(
                    f"  read, encoded, hashed, synced and nothing else: {most:,.0f} rows/s, {most / in_memory:.2f} of "
                    "our rate in memory",
                    flush=True,
                )
                barely = {"rows/s": most, "in memory": in_memory}
                bench.results.append({"case": "encode_files_barely", "what": what, **barely})
        shutil.rmtree(shards)


def seconds_barely(bench: Bench, sizes: dict[str, Any]) -> float:
    """What the files take without everything that a run does beside reading, encoding and writing."""
    with contestants(["ours"], **bench.limits) as (ours,):
        ours.prepare("encode_files_barely", bench.folder, **sizes)
        return median(ours.seconds() for _ in range(bench.rounds))


def rate_in_memory(bench: Bench, dtype: str) -> float:
    """Rows a second of our encoder, 784 -> 64."""
    network = Network((784, 64))
    pixels(bench.folder, network, dtype)
    with contestants(["ours"], **bench.limits) as (ours,):
        ours.prepare("encode", bench.folder, network=asdict(network))
        return ENCODE_ROWS / median(ours.seconds(40) for _ in range(bench.rounds))


def evict(shards: Path) -> None:
    """Have the system forget what it keeps of these files, where it listens to that."""
    for path in shards.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fitted(bench: Bench) -> Path:
    """A model for 784 columns: one layer of sigmoids, as the peers' loops have it."""
    shards, output = make_shards(bench.folder / "shards-small", 20_000, 1, dtype="u1"), bench.folder / "model"
    shutil.rmtree(output, ignore_errors=True)
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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
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
    fashion = ROOT / "data"
    sets = {"in memory": (60_000, 2**31), "streamed": (int(500_000 * bench.size), 2**27)}
    for name, (n_rows, memory) in sets.items():
        is_there = name == "in memory" and any(fashion.glob("fashion-mnist-train-*.h5"))
        shards = fashion if is_there else make_shards(bench.folder / "shards-train", n_rows, 4, dtype="u1")
        sizes = {"shards": str(shards), "epochs": 5, "batch_size": 512, "memory": memory}
        what = f"{'Fashion-MNIST' if is_there else f'{n_rows} rows'}, {name}"
        names = ("ours", "jax", "torch", "torch-compile")
        ratios = bench.race("train_files", what, names, sizes, (0.1, 0.0))
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
    model, base, folder = fitted(bench), int(GROWTH_ROWS * bench.size), bench.folder / "growth"
    shutil.rmtree(folder, ignore_errors=True)
    cases = {f"rows x{n}": (n * base, 4) for n in (1, 4, 16)} | {f"{n} shards": (4 * base, n) for n in (1, 10, 1000)}
    seconds, peaks = {}, {}
    for name, (n_rows, n_shards) in cases.items():
        shards = make_shards(folder / name / "shards", n_rows, n_shards, dtype="u1")
        taken, most = [], []
        for i in range(min(5, bench.rounds)):
            output = folder / name / str(i)
            flags = ("--input", shards, "--model", model, "--memory-budget", GROWTH_MEMORY, "--output", output)
            most.append(extract(*flags, **bench.limits)[1])
            stages = json.loads((output / "report.json").read_text())["summary"]["seconds"]
            taken.append(sum(stages.values()) / n_rows)
            empty(output)
        empty(shards)
        seconds[name], peaks[name] = median(taken), median(most)
        print(f"growth, {name}: {seconds[name] * 1e9:.0f} ns a row, peak {peaks[name] / 1e6:.0f} MB", flush=True)
        bench.results.append({"case": "growth", "what": name, "seconds per row": taken, "peak": most})
    least = [writing(folder, 1000, 4 * base // 1000 * 64 * 4) for _ in range(min(5, bench.rounds))]
    what = "1000 files of the same size written, synced, and nothing else"
    print(f"growth, {what}: {median(least) / 4 / base * 1e9:.0f} ns a row", flush=True)
    bench.results.append({"case": "growth", "what": what, "seconds": least})
    shutil.rmtree(folder)
    bench.demand("growth of time per row, x1 to x16", seconds["rows x16"] / seconds["rows x1"], most=1.1)
    bench.demand("growth of time per row, 1 to 1000 shards", seconds["1000 shards"] / seconds["1 shards"], most=1.1)
    bench.demand("peak memory at x16 beside x1", peaks["rows x16"] / peaks["rows x1"], most=1.05)


def empty(folder: Path) -> None:
    """Give a folder's space back. Removing its files would slow down the next: ext4 looks long at inodes just freed."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def writing(folder: Path, n_files: int, n_bytes: int) -> float:
    """Seconds that it takes three threads to bring so many new files to the disk."""
    target, data = folder / f"written-{time.time_ns()}", bytes(n_bytes)
    target.mkdir()

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
    program = f"from kernels import backend; device = backend.start(); print(device.used == {bench.device!r}, device)"
    ours = ",".join(filter(None, [bench.limits.get("THEANO_FLAGS"), f"device={bench.device}"]))
    flags = {**bench.limits, "THEANO_FLAGS": ours}
    done = subprocess.run(
        [str(OURS), "-c", program], cwd=ROOT, env=environment(**flags), capture_output=True, text=True, check=False
    )
    can, _, named = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].partition(" ")
    if can != "True":
        print(f"\ndevice: skipped, since {bench.device} cannot be used: {named}", flush=True)
        bench.results.append({"case": "device", "skipped": named})
        return
    flags["PEER_DEVICE"] = "cuda" if bench.device.startswith("cuda") else "cpu"
    peak = sgemm_of_the_card(bench, flags)
    names, tolerance, where = ("ours", "torch", "torch-compile", "torch-graphs"), (0.0, 1e-3), f", on {named}"
    for n_inputs, n_features, batch_size in SHAPES:
        network = Network((n_inputs, n_features))
        race_steps(bench, network, batch_size, names, tolerance, where, **flags)
        for dtype in (np.float32, np.uint8):
            ratios = race_encoders(bench, network, dtype, names, tolerance, where, **flags)
            rate = ENCODE_ROWS / ratios["ours"]
            over_the_bus = rate * (n_inputs * np.dtype(dtype).itemsize + 4 * n_features) / 1e9
            share = f", {2 * rate * n_inputs * n_features / peak:.2f} of its SGEMM" if peak else ""
            print(f"  ours: {rate:,.0f} rows/s, {over_the_bus:.2f} GB/s over the bus{share}", flush=True)


def sgemm_of_the_card(bench: Bench, variables: dict[str, str]) -> float | None:
    """FLOP/s of PyTorch's product of large square matrices, if PyTorch is there."""
    if not bench.with_peers:
        return None
    n = 8192 if variables["PEER_DEVICE"] == "cuda" else 2048
    with contestants(["torch"], **variables) as (torch,):
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
