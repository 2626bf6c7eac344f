"""Compare shardpress with JAX, PyTorch and scikit-learn, on the same work and in the same run.

    make bench                       sets up the peers' environment and runs every case
    run.py compare step encode       some of the cases
    run.py compare --quick           smaller data, fewer rounds
    run.py compare shapes --seed 1   shapes drawn from another seed
    run.py compare --isa avx2        as on a processor without more than that, for all programs
    run.py compare --one-core        one core and its processor time, on a machine that others use
    run.py compare --against COMMIT  this tree and another commit in turns; by default step, encode and files
    run.py compare device            on a CUDA card (--device cuda1: another one)

Each program under comparison is a separate process (peers.py), and the peers have their own virtual environment. The
results of the programs are compared first. Then the programs are measured alternately. A ratio is the median, over the
rounds, of the peer's seconds divided by ours, so above 1 shardpress is faster. A table at the end compares some ratios
with the required ones, and all numbers are written to bench.json.

With --against, the other program is this project at that commit, in a tree with its own environment (othertree.py),
which executes its own version of the benchmark. A second table has the median, the minimum and the maximum of the
ratios of the rounds. More than 3 % slower than the commit is reported as not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from scripts.benchmarks.harness import (
    PEERS,
    ROOT,
    Bench,
    add_options,
    environment,
    fresh,
    interleave,
    median_ratio,
    python_of,
    seconds_of,
)
from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing
from scripts.benchmarks.othertree import THIS_TREE, Tree, other_tree
from shardpress.result.finished import Result
from shardpress_kernels.network import Head, Network

IN_MEMORY = ("ours", "blas", "jax", "torch", "torch-compile")
ON_CARD = ("ours", "torch", "torch-compile", "torch-graphs")
ON_FILES = ("ours", "jax", "torch", "sklearn")
TRAINED = ("ours", "jax", "torch", "torch-compile")
SGEMM_SIZE = 2048
ENCODE_ROWS = 8192
GROWTH_ROWS = 500_000
SMALL_ROWS = (10_000, 100_000)
DTYPES = ("float32", "uint8")


@dataclass(frozen=True)
class Shape:
    """A network, and the rows of a minibatch."""

    network: Network
    batch_size: int

    def __str__(self) -> str:
        return " -> ".join(map(str, self.network.widths))


SHAPES = (
    Shape(Network((784, 64)), 512),
    Shape(Network((784, 256)), 512),
    Shape(Network((4096, 256)), 256),
)
# The network of `--hidden 512`, with two sizes of minibatches.
DEEP = [Shape(Network((784, 512, 64), "relu", "linear"), n) for n in (128, 512)]
# Networks whose features are trained for ten classes, and nested.
PURPOSEFUL = [
    Shape(replace(shape.network, code="linear", head=Head("classes", 10), nested=True), shape.batch_size)
    for shape in (*SHAPES, *DEEP)
]
GZIP = {"dtype": "u1", "compression": "gzip", "compression_opts": 4}
# Dtype and layout of the files, number of rows, and the required ratio to a plain loop with JAX. It is lower for chunks
# that hold only a few columns, because several blocks of rows need the same chunk.
LAYOUTS: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "contiguous float32": ({"dtype": "f4"}, 1_600_000, 1.5),
    "contiguous uint8": ({"dtype": "u1"}, 1_600_000, 1.5),
    "gzip uint8": ({**GZIP, "chunks": (256, 784)}, 400_000, 1.5),
    "lzf float32": ({"dtype": "f4", "chunks": (64, 784), "compression": "lzf"}, 400_000, None),
    "badly chunked": ({**GZIP, "chunks": (2048, 25)}, 400_000, 1.2),
}
# Required ratio of the time with 1,000 shards of 2,000 rows to the time with one shard.
MOST_OF_ONE_SHARD = 1.2
# The program prints its own peak memory, because the peak that the kernel reports for a child includes the memory of
# this process at the start.
_PROGRAM = """
import atexit, sys
from scripts.extract import main

def print_peak():
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

atexit.register(print_peak)
sys.exit(main(sys.argv[1:]))
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, "bench", 9, CASES)
    add = parser.add_argument
    add("--size", type=float, default=1.0, help="factor of the number of rows in files (default: %(default)s)")
    add("--quick", action="store_true", help="same as --rounds 3 --size 0.1")
    add("--device", default="cuda", help="device of the case of that name (default: %(default)s)")
    add("--isa", choices=INSTRUCTION_SETS, help="restrict all programs to this instruction set")
    add("--seed", type=int, default=0, help="seed of the case shapes (default: %(default)s)")
    add("--one-core", action="store_true", help="use one core, and measure its processor time")
    add("--without-peers", action="store_true", help="run only shardpress and BLAS")
    add("--against", metavar="COMMIT", help="run only shardpress, in this tree and in the tree of a commit")


def run(options: argparse.Namespace) -> int:
    """Run the cases, print tables, write bench.json, and return the exit code."""
    cases = options.cases or (AGAINST_COMMIT if options.against else list(CASES))
    problem = find_problem(options, cases)
    commit = None
    if options.against and not problem:
        try:
            commit = other_tree(options.against)
        except ValueError as error:
            problem = f"--against: {error}"
    if problem:
        print(problem, file=sys.stderr)
        return 2
    if options.quick:
        options.rounds = 3
        options.size = 0.1
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited by all processes
        os.environ["BENCH_CLOCK"] = "process"
    machine = {
        "processor": processor_name(),
        "isa": options.isa,
        "seed": options.seed,
        "cores": len(os.sched_getaffinity(0)),
        "one core": options.one_core,
        "against": commit.name if commit else None,
    }
    print(", ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    bench = Bench(
        folder=options.output,
        rounds=options.rounds,
        size=options.size,
        device=options.device,
        seed=options.seed,
        with_peers=not options.without_peers,
        commit=commit,
        isa=options.isa,
    )
    for name in cases:
        CASES[name](bench)
    bench.print_commit()
    bench.print_requirements()
    results = {**machine, "results": bench.results, "requirements": bench.requirements}
    (options.output / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


def find_problem(options: argparse.Namespace, cases: Sequence[str]) -> str:
    """Return why the cases cannot be measured; empty if they can."""
    if options.isa and missing(options.isa):
        return f"--isa {options.isa}: this machine's processor lacks {', '.join(missing(options.isa))}"
    alone = [name for name in cases if name in ALONE]
    if options.against and alone:
        return f"--against: the case {alone[0]} measures this tree only"
    if not options.against and not options.without_peers and not PEERS.exists():
        return "the peers' environment is missing. Run: make bench"
    return ""


def processor_name() -> str:
    """Return the name of the processor."""
    found = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def step(bench: Bench) -> None:
    """Take a training step."""
    for shape in SHAPES:
        compare_steps(bench, shape)


def encode(bench: Bench) -> None:
    """Encode rows in memory."""
    for shape in SHAPES:
        for dtype in DTYPES:
            compare_encoders(bench, shape, dtype)


def networks(bench: Bench) -> None:
    """Take a step and encode with a hidden layer between columns and features."""
    for shape in DEEP:
        compare_steps(bench, shape)
    for dtype in DTYPES:
        compare_encoders(bench, DEEP[0], dtype)


def targets(bench: Bench) -> None:
    """Take a step with a head and nested features, compared with the same step without them."""
    for shape in PURPOSEFUL:
        rng = np.random.default_rng(0)
        n_rows = shape.batch_size
        n_features = shape.network.n_features
        x = rng.random((n_rows, shape.network.n_inputs), dtype=np.float32)
        kept = np.where(rng.random(n_rows) < 0.75, n_features, rng.integers(1, n_features + 1, n_rows))
        classes = rng.integers(0, 10, n_rows)
        write_input(bench.folder, rng, shape.network, x=x, kept=kept, targets=classes)
        what = f"{shape}, 10 classes, nested, minibatch {n_rows}"
        names = ("ours", "plain", *TRAINED[1:])
        ratios = bench.compare("step", what, names, {"network": asdict(shape.network)}, (0.0, 1e-4), 0.3)
        bench.require_of_commit(f"step {what}", ratios)


def shapes(bench: Bench) -> None:
    """Take a step and encode with shapes that the kernels were not tuned for."""
    for shape in draw_shapes(bench.seed):
        compare_steps(bench, shape)
        compare_encoders(bench, shape, "float32")


def roofline(bench: Bench) -> None:
    """Compare the encoder with the machine's SGEMM."""
    for shape in (*SHAPES, DEEP[0]):
        for dtype in DTYPES:
            compare_with_sgemm(bench, shape, dtype)


def device(bench: Bench) -> None:
    """Take a step and encode on a card; PyTorch runs eagerly, compiled, and with CUDA graphs."""
    bench = copy(bench)
    flags = [bench.variables.get("THEANO_FLAGS"), f"device={bench.device}"]
    bench.variables = {
        **bench.variables,
        "THEANO_FLAGS": ",".join(filter(None, flags)),
        "PEER_DEVICE": "cuda" if bench.device.startswith("cuda") else "cpu",
    }
    program = "from shardpress_kernels import backend; device = backend.start(); print(device.used, device, sep='\\n')"
    env = environment(**bench.variables)
    *_, used, name = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=env, text=True).splitlines()
    if used != bench.device:
        print(f"\ndevice: skipped, since {bench.device} cannot be used: {name}", flush=True)
        bench.results.append({"case": "device", "skipped": name})
        return
    if bench.with_peers and bench.commit is None:
        n = 8192
        rate = 2 * n**3 / measure_alone(bench, "torch", "square", 10, n=n)
        print(f"\ndevice: SGEMM of PyTorch at {n}^3 {rate / 1e9:.0f} GFLOP/s", flush=True)
    for shape in SHAPES:
        compare_steps(bench, shape, name)
        for dtype in DTYPES:
            rate = ENCODE_ROWS / compare_encoders(bench, shape, dtype, name)["ours"]
            row_bytes = shape.network.n_inputs * np.dtype(dtype).itemsize + 4 * shape.network.n_features
            gflops = rate * row_flops(shape) / 1e9
            print(f"  ours: {rate:,.0f} rows/s, {rate * row_bytes / 1e9:.2f} GB/s over the bus, {gflops:.0f} GFLOP/s")


def compare_steps(bench: Bench, shape: Shape, card: str = "") -> dict[str, float]:
    """Compare a training step with momentum and tied weights, and return the ratios."""
    rng = np.random.default_rng(0)
    x = rng.random((shape.batch_size, shape.network.n_inputs), dtype=np.float32)
    write_input(bench.folder, rng, shape.network, x=x)
    return compare_in_memory(bench, "step", shape, f"minibatch {shape.batch_size}", card)


def compare_encoders(bench: Bench, shape: Shape, dtype: str, card: str = "") -> dict[str, float]:
    """Compare the encoding of rows in memory, including the scaling, and return the ratios."""
    write_pixels(bench.folder, shape.network, dtype)
    return compare_in_memory(bench, "encode", shape, dtype, card)


def compare_in_memory(bench: Bench, case: str, shape: Shape, what: str, card: str = "") -> dict[str, float]:
    """Compare programs on the processor, or on a card."""
    what = f"{shape}, {what}"
    sizes = {"network": asdict(shape.network)}
    programs = IN_MEMORY
    tolerance = 1e-4
    if card:
        what += f", on {card}"
        programs = ON_CARD
        tolerance = 1e-3
    ratios = bench.compare(case, what, programs, sizes, (0.0, tolerance), 0.3)
    bench.require_of_commit(f"{case} {what}", ratios)
    return ratios


def write_pixels(folder: Path, network: Network, dtype: str) -> None:
    """Write the input of an encoder."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (ENCODE_ROWS, network.n_inputs)).astype(dtype)
    minimum = np.zeros(network.n_inputs, np.float32)
    scale = np.full(network.n_inputs, 1 / 255, dtype=np.float32)
    write_input(folder, rng, network, rows=rows, minimum=minimum, scale=scale)


def write_input(folder: Path, rng: np.random.Generator, network: Network, **arrays: np.ndarray) -> None:
    """Write the input of a case in memory: random weights, zero biases, and other arrays."""
    parameters = {}
    for name, shape in network.shapes.items():
        values = np.zeros(shape)
        if len(shape) > 1:
            values = rng.normal(size=shape) / np.sqrt(sum(shape))
        parameters[name] = values.astype(np.float32)
    np.savez(folder / "input.npz", **parameters, **arrays)


def compare_with_sgemm(bench: Bench, shape: Shape, dtype: str) -> None:
    """Compare the FLOP/s of the encoder with those of SGEMM; both are measured alternately."""
    write_pixels(bench.folder, shape.network, dtype)
    encoder = bench.start("ours", "encode", network=asdict(shape.network))
    sgemm = bench.start("blas", "square", n=SGEMM_SIZE)
    with encoder, sgemm:
        seconds = interleave({"ours": partial(encoder.seconds, 40), "blas": partial(sgemm.seconds, 10)}, bench.rounds)
    rates = {
        "encoder": [ENCODE_ROWS * row_flops(shape) / each for each in seconds["ours"]],
        "SGEMM": [2 * SGEMM_SIZE**3 / each for each in seconds["blas"]],
    }
    share = median_ratio(rates["encoder"], rates["SGEMM"])
    gflops = ", ".join(f"{name} {median(each) / 1e9:.0f} GFLOP/s" for name, each in rates.items())
    print(f"roofline {shape}, {dtype}: {gflops}, ratio {share:.2f}", flush=True)
    bench.results.append({"case": "roofline", "what": f"{shape}, {dtype}", "rates": rates})


def row_flops(shape: Shape) -> int:
    """Return the operations that encode a row."""
    return 2 * sum(a * b for a, b in pairwise(shape.network.widths))


def measure_alone(bench: Bench, name: str, case: str, times: int, **sizes: Any) -> float:
    """Return the median seconds of one program's work, without a comparison."""
    with bench.start(name, case, **sizes) as program:
        return median(program.seconds(times) for _ in range(bench.rounds))


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
            found.append(Shape(Network((n_inputs, n_features)), batch_size))
    return found


def extract(*flags: object, tree: Tree = THIS_TREE, **variables: str) -> int:
    """Run scripts/extract.py of a tree, and return its peak memory in bytes."""
    command = [python_of(tree), "-c", _PROGRAM, "--quiet", *map(str, flags)]
    printed = subprocess.check_output(command, cwd=tree.root, env=environment(tree, **variables), text=True)
    return 1024 * int(printed.split()[-1])


def make_shards(folder: Path, n_rows: int, n_shards: int, dtype: str, n_inputs: int = 784, **layout: Any) -> Path:
    """Write rows that compress like images: half of the pixels are 0, and the others are smooth."""
    fresh(folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(64, n_inputs)).cumsum(axis=1).astype(np.float32)
    for i in range(n_shards):
        n = (i + 1) * n_rows // n_shards - i * n_rows // n_shards
        with h5py.File(folder / f"{i:04d}.h5", "w") as file:
            X = file.create_dataset("X", (n, n_inputs), dtype, **layout)
            for start in range(0, n, 8192):
                stop = min(start + 8192, n)
                weights = rng.normal(size=(stop - start, 8)).astype(np.float32)
                mixed = weights @ base[rng.integers(0, len(base), 8)]
                X[start:stop] = np.clip(4 * mixed + 0.5, 0, 255).astype(np.uint8)
    return folder


def fitted_model(bench: Bench) -> Path:
    """Train a model with one layer of sigmoids, like the peers' model."""
    shards = make_shards(bench.folder / "shards-small", 20_000, 1, dtype="u1")
    output = fresh(bench.folder / "model")
    one_layer = ("--preset", "reference", "--n-features", 64)
    extract("--input", shards, "--output", output, "--epochs", 1, *one_layer, **bench.variables)
    if bench.commit is not None:
        fit_model_of_commit(bench, bench.commit)
    return output


def fit_model_of_commit(bench: Bench, tree: Tree) -> None:
    """Train the same model with the flags of another commit, whose format of models can be different."""
    program = (
        "import sys; from pathlib import Path; from scripts.benchmarks.compare import fitted_model; "
        "from scripts.benchmarks.harness import Bench; fitted_model(Bench(Path(sys.argv[1]), 1))"
    )
    command = [python_of(tree), "-c", program, str(bench.commit_folder)]
    env = environment(tree, **bench.variables)
    subprocess.run(command, cwd=tree.root, env=env, check=True, stdout=subprocess.DEVNULL)


def files(bench: Bench) -> None:
    """Encode files, with a warm and a cold page cache."""
    model = fitted_model(bench)
    for name, (layout, most_rows, least) in LAYOUTS.items():
        n_rows = int(most_rows * bench.size)
        shards = make_shards(bench.folder / "shards", n_rows, 4, **layout)
        sizes = {"shards": str(shards), "model": str(model)}
        what = f"{name}, {n_rows} rows, page cache"
        ratios = bench.compare("encode_files", f"{what} warm", ON_FILES, sizes, (0.0, 1e-3))
        drop = partial(drop_from_page_cache, shards)
        bench.compare("encode_files", f"{what} cold", ON_FILES, sizes, (0.0, 1e-3), before=drop)
        shutil.rmtree(shards)
        bench.require_of_commit(f"files, {name},", ratios)
        if least is not None and "jax" in ratios:
            bench.require(f"files, {name}, vs jax", ratios["jax"], least)


def drop_from_page_cache(shards: Path) -> None:
    """Ask the kernel to drop files from the page cache."""
    for path in shards.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(bench: Bench) -> None:
    """Scan and train 5 epochs with two memory budgets; the costs of the models must be similar."""
    data = ROOT / "data"
    if any(data.glob("fashion-mnist-train-*.h5")):
        compare_trainings(bench, data, "Fashion-MNIST, in memory", 2**31)
    else:
        shards = make_shards(bench.folder / "shards-train", 60_000, 4, dtype="u1")
        compare_trainings(bench, shards, "60000 rows, in memory", 2**31)
    n_rows = int(500_000 * bench.size)
    shards = make_shards(bench.folder / "shards-train", n_rows, 4, dtype="u1")
    # 500,000 rows are more than half of this budget, so they are streamed.
    compare_trainings(bench, shards, f"{n_rows} rows, with a budget of 700 MiB", 700 * 2**20)


def compare_trainings(bench: Bench, shards: Path, what: str, memory: int) -> None:
    """Compare training runs on some shards with a memory budget."""
    sizes = {"shards": str(shards), "epochs": 5, "batch_size": 512, "memory": memory}
    bench.compare("train_files", what, TRAINED, sizes, (0.1, 0.0))


def startup(bench: Bench) -> None:
    """Measure whole processes: a tiny training, files encoded with a model, and the time until something is printed."""
    train_tiny(bench)
    if bench.commit is None:
        encode_in_processes(bench)
    first_lines(bench)


def train_tiny(bench: Bench) -> None:
    """Measure a whole process that trains four steps, with a cold and a warm compile cache."""
    shards = make_shards(bench.folder / "shards-tiny", 2000, 1, dtype="u1")
    trees = bench.trees()
    about = {name: tree.name for name, tree in trees.items()}
    for state, n_rounds in (("cold", min(3, bench.rounds)), ("warm", bench.rounds)):
        calls = {
            name: partial(measure_startup, bench, tree, shards, bench.folder / f"cache-{name}", state == "cold")
            for name, tree in trees.items()
        }
        print(f"\nstart-up, {state} compile cache, a whole tiny run", flush=True)
        ratios = bench.record("startup", f"{state} compile cache", interleave(calls, n_rounds), about)
        bench.require_of_commit(f"start-up, {state} compile cache", ratios)


def encode_in_processes(bench: Bench) -> None:
    """Encode files with a model in whole processes, which NumPy and JAX do with little else."""
    sizes = {"model": str(fitted_model(bench))}
    peers = ["numpy", "jax"] if bench.with_peers else ["numpy"]
    for n_rows in SMALL_ROWS:
        shards = make_shards(bench.folder / "shards-small", n_rows, 4, dtype="u1")
        calls = {"ours": partial(encode_whole, bench, shards, sizes["model"])}
        for name in peers:
            once = partial(bench.once, name, "encode_files", shards=str(shards), **sizes)
            calls[name] = partial(seconds_of, once)
        interleave(calls, 1)  # warms the caches
        print(f"\na whole process that encodes {n_rows} rows", flush=True)
        seconds = interleave(calls, bench.rounds)
        ratios = bench.record("startup", f"{n_rows} rows", seconds, {})
        more = median(ours - bare for ours, bare in zip(seconds["ours"], seconds["numpy"], strict=True))
        what = f"a process that encodes {n_rows} rows"
        if n_rows == SMALL_ROWS[0]:
            bench.require(f"{what}, seconds above NumPy", more, most=0.5)
        elif "jax" in ratios:
            bench.require(f"{what}, vs jax", ratios["jax"], least=1.0)


def encode_whole(bench: Bench, shards: Path, model: str) -> float:
    """Return the seconds of a run that encodes shards with a model."""
    output = fresh(bench.folder / "small")
    flags = ("--input", shards, "--model", model, "--output", output)
    return seconds_of(lambda: extract(*flags, **bench.variables))


def first_lines(bench: Bench) -> None:
    """Measure the time until a run and a command print their first line."""
    missing_input = ("run", "--input", str(bench.folder / "nothing.h5"), "--output", str(bench.folder / "none"))
    for what, arguments, most in (("a run", missing_input, 0.3), ("inspect --help", ("inspect", "--help"), 0.2)):
        calls = {
            name: partial(seconds_to_first_line, tree, arguments, bench.variables)
            for name, tree in bench.trees().items()
        }
        interleave(calls, 1)  # warms the caches
        print(f"\nfirst line of {what}", flush=True)
        ratios = bench.record("startup", f"first line of {what}", interleave(calls, bench.rounds), {})
        bench.require(f"first line of {what}, seconds", ratios["ours"], most=most)


def seconds_to_first_line(tree: Tree, arguments: Sequence[str], variables: dict[str, str]) -> float:
    """Return the seconds until a command prints its first line."""
    start = time.perf_counter()
    command = [python_of(tree), "-m", "shardpress", *arguments]
    options = {"cwd": tree.root, "env": environment(tree, **variables), "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def measure_startup(bench: Bench, tree: Tree, shards: Path, cache: Path, is_cold: bool) -> float:
    """Return the seconds of a process that trains four steps with the code of a tree and a compile cache."""
    if is_cold:
        fresh(cache)
    flags = ("--input", shards, "--output", bench.folder / f"tiny-{cache.name}", "--epochs", 1, "--batch-size", 512)
    variables = {"XDG_CACHE_HOME": str(cache), **bench.variables}
    return seconds_of(lambda: extract(*flags, "--restart", tree=tree, **variables))


def growth(bench: Bench) -> None:
    """Measure time per row and peak memory with more rows, and with more shards of the same rows."""
    model = fitted_model(bench)
    folder = fresh(bench.folder / "growth")
    n_rows = int(GROWTH_ROWS * bench.size)
    cases = {
        "rows x1": (n_rows, 4),
        "rows x4": (4 * n_rows, 4),
        "rows x16": (16 * n_rows, 4),
        "1 shard": (4 * n_rows, 1),
        "10 shards": (4 * n_rows, 10),
        "1000 shards": (4 * n_rows, 1000),
    }
    seconds = {}
    peaks = {}
    for name, sizes in cases.items():
        seconds[name], peaks[name] = encode_shards(bench, folder / name, model, *sizes)
        print(f"growth, {name}: {seconds[name]:.3g} s per row, peak {peaks[name]:.3g} bytes", flush=True)
    shutil.rmtree(folder)
    bench.results.append({"case": "growth", "seconds per row": seconds, "peak": peaks})
    growth_with_shards = seconds["1000 shards"] / seconds["1 shard"]
    bench.require("growth of time per row, 1 to 1000 shards", growth_with_shards, most=MOST_OF_ONE_SHARD)


def encode_shards(bench: Bench, folder: Path, model: Path, n_rows: int, n_shards: int) -> tuple[float, float]:
    """Encode new shards several times; return the medians of the seconds per row and of the peak memory."""
    shards = make_shards(folder / "shards", n_rows, n_shards, dtype="u1")
    seconds = []
    peaks = []
    for i in range(min(5, bench.rounds)):
        output = folder / str(i)
        flags = ("--input", shards, "--model", model, "--memory-budget", "512MiB", "--output", output)
        peaks.append(extract(*flags, **bench.variables))
        seconds.append(sum(Result.open(output).facts.last.seconds.values()) / n_rows)
        empty_files(output)
    empty_files(shards)
    return median(seconds), median(peaks)


def empty_files(folder: Path) -> None:
    """Truncate all files. Removing them would slow down the next run, because ext4 searches recently freed inodes."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


CASES: dict[str, Callable[[Bench], None]] = {
    "step": step,
    "encode": encode,
    "networks": networks,
    "targets": targets,
    "shapes": shapes,
    "roofline": roofline,
    "files": files,
    "train": train,
    "startup": startup,
    "growth": growth,
    "device": device,
}
ALONE = ("roofline", "growth")  # cases that cannot be compared with another commit
AGAINST_COMMIT = ("step", "encode", "files")  # the default cases with --against
