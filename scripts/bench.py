"""Race shardpress against what a user would pick instead, on the same work, in the same run, on this machine.

    make bench                                       sets up the peers' environment and runs every case
    .venv/bin/python scripts/bench.py step encode    some of the cases
    .venv/bin/python scripts/bench.py --quick        smaller data, fewer rounds

Each contestant is a process of its own (scripts/contestants.py), the peers in their own virtual environment. Before a
case is timed, their results are compared. Then they take turns, round after round; a ratio is the median over the
rounds of the peer's seconds over ours, so above 1 means that we are faster. Everything goes into bench.json.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
OURS, PEERS = ROOT / ".venv/bin/python", ROOT / ".venv-peers/bin/python"
SHAPES = [(784, 64, 512), (784, 256, 512), (4096, 256, 256)]
ENCODE_ROWS = 8192
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous float32": {"dtype": "f4"},
    "contiguous uint8": {"dtype": "u1"},
    "gzip uint8": {"dtype": "u1", "chunks": (256, 784), "compression": "gzip", "compression_opts": 4},
    "lzf float32": {"dtype": "f4", "chunks": (64, 784), "compression": "lzf"},
    "badly chunked": {"dtype": "u1", "chunks": (2048, 25), "compression": "gzip", "compression_opts": 4},
}
# Threads and kernels of BLAS as a user finds them.
# Threads of BLAS and OpenMP spin for a while before they sleep: so long, that the one before does not disturb the next.
_PAUSE = 0.2
_UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


class Contestant:
    """A process that works on request."""

    def __init__(self, name: str) -> None:
        self.name, self.about, self.peak = name, "", 0
        python = OURS if name in ("ours", "blas") else PEERS
        self._process = subprocess.Popen(
            [str(python), str(ROOT / "scripts/contestants.py"), name],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name != "ours" else None,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if request["do"] == "time":
            time.sleep(_PAUSE)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended while asked for {request}")
        answer: dict[str, Any] = json.loads(line)
        self.about = answer.get("about", self.about)
        self.peak = max(self.peak, answer.get("peak", 0))
        return answer

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def environment(**more: str) -> dict[str, str]:
    """For children: as it is, without what would choose BLAS's kernels or threads."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", **more}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print a table, write bench.json, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="working folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller data, fewer rounds")
    options = parser.parse_args(argv)
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}, expected {', '.join(CASES)}")
    if not PEERS.exists():
        parser.error("the peers' environment is missing. Run: make bench")
    bench = Bench(options.output, 3 if options.quick else options.rounds, 0.1 if options.quick else 1.0)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, {bench.rounds} rounds", flush=True)
    for name in options.cases or CASES:
        CASES[name](bench)
    path = options.output / "bench.json"
    path.write_text(json.dumps({"processor": processor(), "results": bench.results}, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def processor() -> str:
    """The maker's name of it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


class Bench:
    """Runs cases and keeps their results."""

    def __init__(self, folder: Path, rounds: int, size: float) -> None:
        self.folder, self.rounds, self.size = folder.resolve(), rounds, size
        self.results: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def race(
        self, case: str, what: str, names: Sequence[str], sizes: dict[str, Any], tolerance: float | None, seconds: float
    ) -> dict[str, list[float]]:
        """Prepare, compare, take turns, print; the seconds of one time of the work, round by round."""
        with contestants(names) as all_of_them:
            there = [one for one in all_of_them if self._prepare(one, case, sizes)]
            if tolerance is not None:
                self._compare(there, tolerance)
            times = {one.name: self._calibrate(one, seconds) for one in there}
            found: dict[str, list[float]] = {one.name: [] for one in there}
            for _ in range(self.rounds):
                for one in there:
                    taken = one.ask(do="time", times=times[one.name])["seconds"]
                    found[one.name].append(taken / times[one.name])
            self.keep(case, what, found, {one.name: {"about": one.about, "peak": one.peak} for one in there})
        return found

    def _prepare(self, one: Contestant, case: str, sizes: dict[str, Any]) -> bool:
        answer = one.ask(do="prepare", case=case, folder=str(self.folder), sizes=sizes)
        return "absent" not in answer

    def _calibrate(self, one: Contestant, seconds: float) -> int:
        """How often the work is done in a turn, so that it takes about so many seconds."""
        taken = one.ask(do="time", times=1)["seconds"]
        taken = min(taken, one.ask(do="time", times=1)["seconds"]) if taken < seconds else taken
        return max(1, round(seconds / max(taken, 1e-6)))

    def _compare(self, there: Sequence[Contestant], tolerance: float) -> None:
        """All contestants must compute the same numbers."""
        results = {one.name: dict(np.load(self.folder / f"{one.name}.npz")) for one in there if one.name != "sklearn"}
        expected = results.pop("ours")
        for name, found in results.items():
            for key in set(found) & set(expected):
                far = float(np.abs(found[key].astype(np.float64) - expected[key]).max())
                if not far <= tolerance:
                    raise RuntimeError(
                        f"{name}: {key} differs from ours by {far:.3g}, expected {tolerance:.3g} at most"
                    )

    def keep(self, case: str, what: str, found: dict[str, list[float]], about: dict[str, Any]) -> None:
        """Print one line for each contestant."""
        ratios = {
            name: median(a / b for a, b in zip(seconds, found["ours"], strict=True)) for name, seconds in found.items()
        }
        print(f"\n{case} {what}", flush=True)
        for name, seconds in found.items():
            spread = f"{min(seconds) * 1e3:.3f} to {max(seconds) * 1e3:.3f}"
            print(f"  {name:14} {median(seconds) * 1e3:10.3f} ms ({spread})  ratio {ratios[name]:.2f}", flush=True)
        self.results.append({"case": case, "what": what, "seconds": found, "ratios": ratios, "about": about})


@contextmanager
def contestants(names: Sequence[str]) -> Iterator[list[Contestant]]:
    """Processes for the time of a case."""
    started = [Contestant(name) for name in names]
    try:
        yield started
    finally:
        for one in started:
            one.end()


# -- cases -------------------------------------------------------------------------------------------------------


def step(bench: Bench) -> None:
    """One training step, momentum, tied weights."""
    for n_inputs, n_features, batch_size in SHAPES:
        rng = np.random.default_rng(0)
        weights(bench.folder, rng, n_inputs, n_features, x=rng.random((batch_size, n_inputs), dtype=np.float32))
        sizes = {"n_inputs": n_inputs, "n_features": n_features}
        names = ["ours", "blas", "jax", "torch", "torch-compile"]
        bench.race("step", f"{n_inputs} -> {n_features}, minibatch {batch_size}", names, sizes, 1e-4, 0.3)


def encode(bench: Bench) -> None:
    """Features of rows in memory, scaling included."""
    for n_inputs, n_features, _ in SHAPES:
        for dtype in (np.float32, np.uint8):
            rng = np.random.default_rng(0)
            rows = rng.integers(0, 256, (ENCODE_ROWS, n_inputs)).astype(dtype)
            scale = np.full(n_inputs, 1 / 255, dtype=np.float32)
            weights(
                bench.folder, rng, n_inputs, n_features, rows=rows, minimum=np.zeros(n_inputs, np.float32), scale=scale
            )
            sizes = {"n_inputs": n_inputs, "n_features": n_features}
            names = ["ours", "blas", "jax", "torch", "torch-compile"]
            bench.race("encode", f"{n_inputs} -> {n_features}, {np.dtype(dtype)}", names, sizes, 1e-4, 0.3)


def weights(folder: Path, rng: np.random.Generator, n_inputs: int, n_features: int, **more: np.ndarray) -> None:
    """The input of a case in memory."""
    W = (rng.normal(size=(n_inputs, n_features)) / np.sqrt(n_inputs + n_features)).astype(np.float32)
    zeros = {"b_hidden": np.zeros(n_features, np.float32), "b_output": np.zeros(n_inputs, np.float32)}
    np.savez(folder / "input.npz", W=W, **zeros, **more)


def roofline(bench: Bench) -> None:
    """The machine's SGEMM, beside our encoder's rate."""
    n = 2048
    rates = {}
    for n_inputs, n_features, _ in SHAPES:
        rng = np.random.default_rng(0)
        rows = rng.random((ENCODE_ROWS, n_inputs), dtype=np.float32)
        ones = np.ones(n_inputs, np.float32)
        weights(bench.folder, rng, n_inputs, n_features, rows=rows, minimum=0 * ones, scale=ones)
        with contestants(["ours", "blas"]) as (ours, blas):
            ours.ask(
                do="prepare",
                case="encode",
                folder=str(bench.folder),
                sizes={"n_inputs": n_inputs, "n_features": n_features},
            )
            blas.ask(do="prepare", case="square", folder=str(bench.folder), sizes={"n": n})
            ratios = []
            for _ in range(bench.rounds):
                a = 20 * 2 * ENCODE_ROWS * n_inputs * n_features / ours.ask(do="time", times=20)["seconds"]
                b = 10 * 2 * n**3 / blas.ask(do="time", times=10)["seconds"]
                ratios.append((a, b))
        rates[f"{n_inputs} -> {n_features}"] = ratios
        a, b = (median(rate) / 1e9 for rate in zip(*ratios, strict=True))
        share = median(x / y for x, y in ratios)
        print(
            f"roofline {n_inputs} -> {n_features}: encode {a:.0f}, SGEMM {b:.0f} GFLOP/s, ratio {share:.2f}", flush=True
        )
    bench.results.append({"case": "roofline", "rates": rates})


def files(bench: Bench) -> None:
    """A data set on disk to feature files, page cache warm; ours also against our rate in memory."""
    n_rows = int(400_000 * bench.size)
    model = fitted(bench)
    for name, how in LAYOUTS.items():
        shards = make_shards(bench.folder / f"shards-{name.replace(' ', '-')}", n_rows, 4, **how)
        sizes = {"shards": str(shards), "model": str(model)}
        names = ["ours", "jax", "torch", "sklearn"]
        found = bench.race("encode_files", f"{name}, {n_rows} rows", names, sizes, 1e-3, 0.0)
        rate = n_rows / median(found["ours"])
        print(f"  ours: {rate:,.0f} rows/s", flush=True)
        shutil.rmtree(shards)


def fitted(bench: Bench) -> Path:
    """A model for 784 columns."""
    shards = make_shards(bench.folder / "shards-small", 20_000, 1, dtype="u1")
    extract(["--input", str(shards), "--output", str(bench.folder / "model"), "--epochs", "1", "--overwrite"])
    return bench.folder / "model"


def extract(flags: Sequence[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Our program, to its end."""
    command = [str(OURS), str(ROOT / "scripts/extract.py"), "--quiet", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment(**variables), check=True, stdout=subprocess.DEVNULL)


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
    """Scan and 5 epochs, in memory and streamed."""
    fashion = ROOT / "data"
    sets = {"in memory": (60_000, 2**31), "streamed": (int(500_000 * bench.size), 2**27)}
    for name, (n_rows, memory) in sets.items():
        is_there = name == "in memory" and any(fashion.glob("fashion-mnist-train-*.h5"))
        shards = fashion if is_there else make_shards(bench.folder / "shards-train", n_rows, 4, dtype="u1")
        sizes = {"shards": str(shards), "epochs": 5, "batch_size": 512, "memory": memory}
        what = f"{'Fashion-MNIST' if is_there else f'{n_rows} rows'}, {name}"
        bench.race("train_files", what, ["ours", "jax", "torch", "torch-compile"], sizes, None, 0.0)


def startup(bench: Bench) -> None:
    """From the start of a process to its first training step."""
    shards = make_shards(bench.folder / "shards-tiny", 2000, 1, dtype="u1")
    flags = ["--input", str(shards), "--output", str(bench.folder / "tiny"), "--epochs", "1", "--restart"]
    cache = bench.folder / "cache"
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(min(3, bench.rounds)):
        shutil.rmtree(cache, ignore_errors=True)
        for name in found:
            start = time.perf_counter()
            extract(flags, XDG_CACHE_HOME=str(cache))
            found[name].append(time.perf_counter() - start)
    for name, seconds in found.items():
        print(f"startup, {name} compile cache, a whole tiny run: {median(seconds):.2f} s", flush=True)
    bench.results.append({"case": "startup", "seconds": found})


def growth(bench: Bench) -> None:
    """Time per row and peak memory with more rows, and with more shards of the same bytes."""
    model = fitted(bench)
    base = int(100_000 * bench.size)
    cases = [(f"rows x{n}", n * base, 4) for n in (1, 4, 16)] + [(f"{n} shards", 4 * base, n) for n in (1, 10, 1000)]
    for name, n_rows, n_shards in cases:
        shards = make_shards(bench.folder / "shards-growth", n_rows, n_shards, dtype="u1")
        sizes = {"shards": str(shards), "model": str(model)}
        with contestants(["ours"]) as (ours,):
            ours.ask(do="prepare", case="encode_files", folder=str(bench.folder), sizes=sizes)
            seconds = [ours.ask(do="time", times=1)["seconds"] for _ in range(min(5, bench.rounds))]
        per_row = [taken / n_rows for taken in seconds]
        print(f"growth, {name}: {median(per_row) * 1e9:.0f} ns a row, peak {ours.peak / 1e6:.0f} MB", flush=True)
        bench.results.append({"case": "growth", "what": name, "seconds per row": per_row, "peak": ours.peak})
        shutil.rmtree(shards)


CASES = {
    "step": step,
    "encode": encode,
    "roofline": roofline,
    "files": files,
    "train": train,
    "startup": startup,
    "growth": growth,
}


if __name__ == "__main__":
    sys.exit(main())
