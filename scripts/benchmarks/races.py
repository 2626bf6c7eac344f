"""Race shardpress against JAX, PyTorch and scikit-learn, on the same work and in the same run.

    make bench                      sets up the peers' environment and runs every case
    run.py races step encode        some of the cases
    run.py races --quick            smaller data, fewer rounds
    run.py races shapes --seed 1    shapes drawn from another seed
    run.py races --isa avx2         as on a processor without more than that, for all contestants
    run.py races --one-core         one core and its processor time, on a machine that others use
    run.py races device             on a CUDA card (--device cuda1: another one)

Each contestant is a separate process (contestants.py), and the peers (peers.py) have their own virtual environment.
Their results are compared first. Then they take turns; a ratio is the median, over the rounds, of the peer's seconds
divided by ours, so above 1 shardpress is faster. A table at the end compares the ratios with the required ones, and all
numbers are written to bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kernels.network import Network
from scripts.benchmarks.common import ROOT, one_of
from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing
from scripts.benchmarks.memory import ENCODE_ROWS, Field, in_words, race_encoders, race_steps, write_pixels
from scripts.benchmarks.programs import files, growth, startup, train
from scripts.benchmarks.race import PEERS, Bench, contestants, environment

SGEMM_SIZE = 2048
DTYPES = (np.float32, np.uint8)
DEEP = Network((784, 512, 64), activation="relu", code="linear")  # the network of `--hidden 512`
DEEP_BATCHES = (128, 512)


@dataclass(frozen=True)
class Shape:
    """A network of one layer, the rows of a minibatch, and the required ratios."""

    n_inputs: int
    n_features: int
    batch_size: int
    step: float = 1.05
    step_products: float = 0.85  # required ratio to the products through BLAS
    encode: float = 1.05
    encode_bytes: float = 1.5

    @property
    def network(self) -> Network:
        return Network((self.n_inputs, self.n_features))


SHAPES = (
    Shape(784, 64, 512, step=1.25, step_products=0.75, encode=1.1),
    Shape(784, 256, 512),
    Shape(4096, 256, 256),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("cases", nargs="*", type=one_of(CASES), metavar="CASE", help=f"some of {', '.join(CASES)} (default: all)")
    add("--output", type=Path, default=Path("bench"), help="working directory (default: %(default)s)")
    add("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    add("--size", type=float, default=1.0, help="factor of the number of rows in files (default: %(default)s)")
    add("--quick", action="store_true", help="same as --rounds 3 --size 0.1")
    add("--device", default="cuda", help="device of the case of that name (default: %(default)s)")
    add("--isa", choices=INSTRUCTION_SETS, help="restrict all contestants to this instruction set")
    add("--seed", type=int, default=0, help="seed of the case shapes (default: %(default)s)")
    add("--one-core", action="store_true", help="use one core, and measure its processor time")
    add("--without-peers", action="store_true", help="run only shardpress and BLAS")


def run(options: argparse.Namespace) -> int:
    """Run the cases, print tables, write bench.json, and return the exit code."""
    if obstacle := find_obstacle(options):
        print(obstacle, file=sys.stderr)
        return 2
    apply_shortcuts(options)
    bench = Bench(
        options.output,
        options.rounds,
        options.size,
        options.device,
        not options.without_peers,
        options.isa,
        options.seed,
    )
    machine = describe(options)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    if options.isa and not bench.limits_jax:
        print("JAX may use more instructions, because this processor cannot hide them", flush=True)
    for name in options.cases or CASES:
        CASES[name](bench)
    bench.print_demands()
    results = {**machine, "results": bench.results, "demands": bench.demands}
    (options.output / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


def apply_shortcuts(options: argparse.Namespace) -> None:
    """Apply the options that stand for several settings."""
    if options.quick:
        options.rounds = 3
        options.size = 0.1
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited by all processes
        os.environ["BENCH_CLOCK"] = "process"


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Return the processor, and how much of it is used."""
    return {
        "processor": processor_name(),
        "isa": options.isa,
        "seed": options.seed,
        "cores": len(os.sched_getaffinity(0)),
        "one core": options.one_core,
    }


def find_obstacle(options: argparse.Namespace) -> str:
    """Return why the races cannot run here; empty if they can."""
    if options.isa and missing(options.isa):
        return f"--isa {options.isa}: this machine's processor lacks {', '.join(missing(options.isa))}"
    if not PEERS.exists() and not options.without_peers:
        return "the peers' environment is missing. Run: make bench"
    return ""


def processor_name() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def step(bench: Bench) -> None:
    """Take a training step."""
    for shape in SHAPES:
        what = f"step {in_words(shape.network)}"
        ratios = race_steps(bench, shape.network, shape.batch_size)
        bench.demand_of_peers(what, ratios, shape.step)
        bench.demand(f"{what} vs its five products through BLAS", ratios["blas"], shape.step_products)


def encode(bench: Bench) -> None:
    """Encode rows in memory."""
    for shape in SHAPES:
        for dtype, least in zip(DTYPES, (shape.encode, shape.encode_bytes), strict=True):
            ratios = race_encoders(bench, shape.network, dtype)
            bench.demand_of_peers(f"encode {in_words(shape.network)}, {np.dtype(dtype)}", ratios, least)


def networks(bench: Bench) -> None:
    """Take a step and encode with a hidden layer between columns and features."""
    for batch_size in DEEP_BATCHES:
        ratios = race_steps(bench, DEEP, batch_size)
        bench.demand_of_peers(f"step {in_words(DEEP)}, minibatch {batch_size}", ratios, 1.15)
    for dtype in DTYPES:
        ratios = race_encoders(bench, DEEP, dtype)
        bench.demand_of_peers(f"encode {in_words(DEEP)}, {np.dtype(dtype)}", ratios, 1.15)
        compare_with_sgemm(bench, DEEP, dtype, 0.85)


def shapes(bench: Bench) -> None:
    """Take a step and encode with shapes that the kernels were not tuned for."""
    for shape in draw_shapes(bench.seed):
        ratios = race_steps(bench, shape.network, shape.batch_size)
        bench.demand_of_peers(f"step {in_words(shape.network)}, minibatch {shape.batch_size}", ratios, shape.step)
        ratios = race_encoders(bench, shape.network, np.float32)
        bench.demand_of_peers(f"encode {in_words(shape.network)}, float32", ratios, shape.encode)


def draw_shapes(seed: int, n: int = 10) -> list[Shape]:
    """Return random shapes without round numbers, small and large ones equally often."""
    rng = np.random.default_rng(seed)
    ranges = np.log([(20, 5000), (3, 300), (128, 512)])
    found: list[Shape] = []
    while len(found) < n:
        numbers = [round(float(np.exp(rng.uniform(*limits)))) for limits in ranges]
        is_round = any(number % unit == 0 for number in numbers for unit in (6, 8, 10))
        n_inputs, n_features, batch_size = numbers
        if n_features < n_inputs and not is_round:
            found.append(Shape(n_inputs, n_features, batch_size))
    return found


def roofline(bench: Bench) -> None:
    """Compare the encoder with the machine's SGEMM."""
    for shape in SHAPES:
        for dtype in DTYPES:
            compare_with_sgemm(bench, shape.network, dtype, 0.9)


def compare_with_sgemm(bench: Bench, network: Network, dtype: Any, least: float) -> None:
    """Require a fraction of SGEMM's FLOP/s from the encoder; both are measured in turns."""
    what = f"{in_words(network)}, {np.dtype(dtype)}"
    flops = 2 * ENCODE_ROWS * sum(a * b for a, b in pairwise(network.widths))
    write_pixels(bench.folder, network, dtype)
    rates = []
    with contestants(["ours", "blas"], **bench.variables) as (ours, blas):
        ours.prepare("encode", bench.folder, network=asdict(network))
        blas.prepare("square", bench.folder, n=SGEMM_SIZE)
        for _ in range(bench.rounds):
            encoder = flops / ours.seconds(40)
            sgemm = 2 * SGEMM_SIZE**3 / blas.seconds(10)
            rates.append((encoder, sgemm))
    share = median(encoder / sgemm for encoder, sgemm in rates)
    last_encoder, last_sgemm = rates[-1]
    print(f"roofline {what}: encoder {last_encoder / 1e9:.0f}, SGEMM {last_sgemm / 1e9:.0f} GFLOP/s, ratio {share:.2f}")
    bench.demand(f"encode {what} vs SGEMM at {SGEMM_SIZE}^3", share, least)
    bench.results.append({"case": "roofline", "what": what, "rates": rates})


def device(bench: Bench) -> None:
    """Take a step and encode on a card; PyTorch runs eagerly, compiled, and with CUDA graphs."""
    bench = on_device(bench)
    is_used, name = find_device(bench)
    if not is_used:
        print(f"\ndevice: skipped, since {bench.device} cannot be used: {name}", flush=True)
        bench.results.append({"case": "device", "skipped": name})
        return
    if bench.with_peers:
        n = 8192
        rate = 2 * n**3 / bench.measure("torch", "square", 10, n=n)
        print(f"\ndevice: SGEMM of PyTorch at {n}^3 {rate / 1e9:.0f} GFLOP/s", flush=True)
    entry = Field(("ours", "torch", "torch-compile", "torch-graphs"), 1e-3, f", on {name}")
    for shape in SHAPES:
        race_steps(bench, shape.network, shape.batch_size, entry)
        for dtype in DTYPES:
            ratios = race_encoders(bench, shape.network, dtype, entry)
            print_rates(shape, dtype, ENCODE_ROWS / ratios["ours"])


def on_device(bench: Bench) -> Bench:
    """Return a copy whose contestants use the device, and whose results go to the same lists."""
    flags = [bench.variables.get("THEANO_FLAGS"), f"device={bench.device}"]
    bench = copy(bench)
    bench.variables = {
        **bench.variables,
        "THEANO_FLAGS": ",".join(filter(None, flags)),
        "PEER_DEVICE": "cuda" if bench.device.startswith("cuda") else "cpu",
    }
    return bench


def print_rates(shape: Shape, dtype: Any, rate: float) -> None:
    """Print the rows, bytes and operations per second of our encoder."""
    row_bytes = shape.n_inputs * np.dtype(dtype).itemsize + 4 * shape.n_features
    gflops = 2 * rate * shape.n_inputs * shape.n_features / 1e9
    bus = rate * row_bytes / 1e9
    print(f"  ours: {rate:,.0f} rows/s, {bus:.2f} GB/s over the bus, {gflops:.0f} GFLOP/s", flush=True)


def find_device(bench: Bench) -> tuple[bool, str]:
    """Return whether our process uses the device, and the device's name or the reason."""
    program = f"from kernels import backend; device = backend.start(); print(device.used == {bench.device!r}, device)"
    command = [sys.executable, "-c", program]
    env = environment(**bench.variables)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    is_used, _, name = lines[-1].partition(" ")
    return is_used == "True", name


CASES: dict[str, Callable[[Bench], None]] = {
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
