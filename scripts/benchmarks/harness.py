"""Harness of the benchmarks: sample data, programs under comparison, interleaved measurements, ratios and tables."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from scripts.benchmarks.instruction_sets import hide, limits
from scripts.benchmarks.othertree import THIS_TREE, Tree

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers/bin/python"
BEFORE = "before"  # this project at another commit
OWN = ("ours", "plain", "blas", "numpy", BEFORE)  # programs that run without the peers' environment
LEAST_OF_COMMIT = 0.97  # required ratio to another commit: no change makes a benchmark more than 3 % slower
N_COLUMNS = 784
# Threads of BLAS and OpenMP keep spinning for a while after their work, which would disturb the next program.
_PAUSE_SECONDS = 0.2
# Variables that must not influence the choice of kernels and threads, so that each program works as for a user.
_UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

T = TypeVar("T")
Arrays = dict[str, np.ndarray]


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the `type` of an argument that is one of some names; `choices` would refuse an empty list."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r}, expected one of {', '.join(names)}")
        return text

    return name


def add_options(parser: argparse.ArgumentParser, folder: str, rounds: int, cases: Iterable[str] = ()) -> None:
    """Add the options that several benchmarks have."""
    if cases:
        text = f"some of {', '.join(cases)} (default: all, in this order)"
        parser.add_argument("cases", nargs="*", type=one_of(cases), metavar="CASE", help=text)
    text = "number of measurements of each program (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=rounds, help=text)
    text = "working directory (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path(folder), help=text)


def interleave(calls: Mapping[str, Callable[[], T]], n_rounds: int) -> dict[str, list[T]]:
    """Make all calls in each round, and return the results of each.

    Disturbances by other processes then affect all of them equally.
    """
    results: dict[str, list[T]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            results[name].append(call())
    return results


def ratios_of_rounds(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of two measurements in each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median, over the rounds, of the ratio of two measurements."""
    return median(ratios_of_rounds(numerators, denominators))


def print_times(seconds: Mapping[str, Sequence[float]], about: Mapping[str, str] | None = None) -> dict[str, float]:
    """Print the times of several programs, and return the ratio of each to the first one."""
    first, *_ = seconds.values()
    ratios = {name: median_ratio(each, first) for name, each in seconds.items()}
    for name, each in seconds.items():
        times = f"{median(each) * 1e3:10.3f} ms ({min(each) * 1e3:.3f} to {max(each) * 1e3:.3f})"
        print(f"  {name:26} {times}  ratio {ratios[name]:.3f}  {about.get(name, '') if about else ''}", flush=True)
    return ratios


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def print_head(*titles: str) -> None:
    """Print the head of a table in Markdown."""
    print_row(*titles)
    print(f"{'|---' * len(titles)}|", flush=True)


def print_row(*cells: object) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def fresh(folder: Path) -> Path:
    """Remove a directory if it exists, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def script(name: str, *arguments: object, **variables: str) -> None:
    """Run a program of scripts/ with additional environment variables, and discard its output."""
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)


def synthetic_shards(folder: Path, gigabytes: float, n_shards: int) -> Path:
    """Write shards of random float32 rows, and return their directory."""
    target = folder / f"shards-{n_shards}-{gigabytes:g}"
    n_rows = int(gigabytes * 1e9 / (4 * N_COLUMNS))
    size = ("--rows", n_rows, "--columns", N_COLUMNS, "--shards", n_shards)
    script("make_data.py", "synthetic", *size, "--output", target)
    return target


def environment(tree: Tree = THIS_TREE, **variables: str) -> dict[str, str]:
    """Return the environment of a child process with the code of a tree, and additional variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**inherited, "PYTHONPATH": str(tree.root), "TQDM_DISABLE": "1", **variables}


def python_of(tree: Tree) -> str:
    """Return the interpreter for the code of a tree. For this tree, it is the one of this process."""
    return sys.executable if tree is THIS_TREE else str(tree.python)


class Program:
    """A process that does the work of one case on request; see peers.py.

    Attributes
    ----------
    about : str
        Version of the program, and the hardware that it uses.
    """

    def __init__(self, name: str, command: Sequence[str], root: Path, log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                cwd=root,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.about = self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()  # waits, and closes the pipes
            last_line = self._log.read_text().strip().rpartition("\n")[2]
            raise RuntimeError(f"{self.name} exited before it answered: {last_line}. See {self._log}")
        return line.strip()

    def seconds(self, times: int = 1) -> float:
        """Do the work a number of times, and return the mean seconds."""
        assert self._process.stdin is not None
        time.sleep(_PAUSE_SECONDS)
        with suppress(BrokenPipeError):  # the missing answer is reported below
            self._process.stdin.write(f"{times}\n")
            self._process.stdin.flush()
        return float(self._read_line()) / times

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        """Close standard input, and wait until the process has ended."""
        self._process.communicate()


@dataclass
class Bench:
    """Compares programs, and keeps the measurements and the requirements."""

    folder: Path  # working directory
    rounds: int  # number of measurements of each program
    size: float = 1.0  # factor of the number of rows in files
    device: str = "cuda"  # device of the case `device`
    seed: int = 0  # seed of the case `shapes`
    with_peers: bool = True  # whether JAX, PyTorch and scikit-learn are measured
    commit: Tree | None = None  # another commit; then only this tree and that one are measured
    isa: str | None = None  # instruction set that all programs are restricted to
    variables: dict[str, str] = field(default_factory=dict)  # environment variables of all programs
    results: list[dict[str, Any]] = field(default_factory=list)
    requirements: list[dict[str, Any]] = field(default_factory=list)
    jax_preload: Path | None = None  # library that restricts JAX; the other programs have variables for that

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        # PyTorch would reuse code compiled for another instruction set, and crash or return wrong results.
        self.variables["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / f"inductor-{self.isa or 'native'}")
        if self.isa:
            self.variables.update(limits(self.isa))
            self.jax_preload = hide(self.isa, self.folder)
            if self.jax_preload is None:
                print("JAX may use more instructions, because this processor cannot hide them", flush=True)

    @property
    def commit_folder(self) -> Path:
        """Working directory of the other commit."""
        return self.folder / BEFORE

    def trees(self) -> dict[str, Tree]:
        """Return this tree, and the other one if there is one."""
        trees = {"ours": THIS_TREE}
        if self.commit is not None:
            trees[BEFORE] = self.commit
        return trees

    def once(self, name: str, case: str, **sizes: Any) -> None:
        """Do the work of a case once in a process of its own. Raise `CalledProcessError` if it fails."""
        command, _, env = self._command(name, case, sizes)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=ROOT, env={**env, "BENCH_ONCE": "1"})

    def start(self, name: str, case: str, **sizes: Any) -> Program:
        """Start a program, which prepares a case and writes its result."""
        command, root, env = self._command(name, case, sizes)
        return Program(name, command, root, self.folder / f"{name}.log", env)

    def _command(self, name: str, case: str, sizes: dict[str, Any]) -> tuple[list[str], Path, dict[str, str]]:
        """Return the command of a program, its directory and its environment."""
        tree = self.trees().get(name, THIS_TREE)
        folder = self.folder
        program = name
        if name == BEFORE:
            # The commit runs its own version of peers.py, which uses the API of the commit.
            program = "ours"
            folder = self._prepare_commit_folder()
            if "model" in sizes:
                sizes["model"] = str(folder / "model")
        env = environment(tree, **self.variables)
        python = python_of(tree)
        if name not in OWN:
            python = str(PEERS)
            env["PYTHONPATH"] += f":{ROOT / 'kernels'}"  # for the descriptions of networks
        if name == "jax" and self.jax_preload is not None:
            env["LD_PRELOAD"] = str(self.jax_preload)
        command = [python, "-m", "scripts.benchmarks.peers", program, case, str(folder), json.dumps(sizes)]
        return command, tree.root, env

    def _prepare_commit_folder(self) -> Path:
        """Return the working directory of the other commit, with the same input as this one."""
        self.commit_folder.mkdir(exist_ok=True)
        if (self.folder / "input.npz").exists():  # of a case in memory
            shutil.copy(self.folder / "input.npz", self.commit_folder)
        return self.commit_folder

    def _result_of(self, name: str) -> Arrays:
        """Return the result that a program has written."""
        path = self.folder / f"{name}.npz"
        if name == BEFORE:
            path = self.commit_folder / "ours.npz"
        with np.load(path) as file:
            return dict(file)

    def compare(
        self,
        case: str,
        what: str,
        names: Sequence[str],
        sizes: dict[str, Any],
        tolerance: tuple[float, float],
        seconds: float = 0.0,
        before: Callable[[], object] = lambda: None,
    ) -> dict[str, float]:
        """Compare the results of programs, measure them interleaved, and print their times.

        Parameters
        ----------
        case, sizes : str, dict
            The method of the programs, and its arguments.
        what : str
            Description of the case.
        names : sequence of str
            Programs, ``ours`` first. If there is another commit, it is measured instead of all others.
        tolerance : (float, float)
            Relative and absolute tolerance of the results.
        seconds : float
            Approximate length of a measurement; short work is repeated.
        before : callable
            Called before each measurement.

        Returns
        -------
        dict of str to float
            Ratio of each program's seconds to ours, and our seconds.
        """
        print(f"\n{case} {what}", flush=True)
        if self.commit is not None:
            names = list(self.trees())
        with ExitStack() as stack:
            programs = self.start_all(stack, case, names, sizes)
            self._remove_deviating(programs, *tolerance)
            calls = {each.name: partial(measure, each, repetitions(each, seconds), before) for each in programs}
            found = interleave(calls, self.rounds)
        return self.record(case, what, found, {each.name: each.about for each in programs})

    def record(
        self, case: str, what: str, seconds: dict[str, list[float]], about: Mapping[str, str]
    ) -> dict[str, float]:
        """Print and store measurements; return the ratio of each program's seconds to ours, and our seconds."""
        ratios = print_times(seconds, about)
        self.results.append({"case": case, "what": what, "seconds": seconds, "ratios": ratios, "about": about})
        return {**ratios, "ours": median(seconds["ours"])}

    def start_all(self, stack: ExitStack, case: str, names: Sequence[str], sizes: dict[str, Any]) -> list[Program]:
        """Start programs; a peer that cannot do the work is left out."""
        started = []
        for name in names:
            if name not in OWN and not self.with_peers:
                continue
            try:
                started.append(stack.enter_context(self.start(name, case, **sizes)))
            except RuntimeError as error:
                if name in OWN:
                    raise
                print(f"  not measured: {error}", flush=True)
        return started

    def _remove_deviating(self, programs: list[Program], relative: float, absolute: float) -> None:
        """Remove the peers whose results differ from ours; raise `RuntimeError` if all differ, or if BLAS does.

        The other commit is measured with different results, too: it encodes files with a model that it has trained.
        """
        expected = self._result_of("ours")
        others = [each for each in programs if each.name not in ("ours", "sklearn")]  # scikit-learn has another model
        wrong = {}
        for program in others:
            difference = find_difference(self._result_of(program.name), expected, relative, absolute)
            if difference and program.name == BEFORE:
                print(f"  {BEFORE}: {difference}", flush=True)
            elif difference:
                wrong[program.name] = f"{program.name}: {difference}"
                programs.remove(program)
        has_equal_peer = any(each.name not in wrong and each.name not in OWN for each in others)
        if "blas" in wrong or (wrong and not has_equal_peer):
            raise RuntimeError("; ".join(wrong.values()))
        for sentence in wrong.values():
            print(f"  not measured: {sentence}", flush=True)

    def require(self, what: str, found: float, least: float | None = None, most: float | None = None) -> None:
        """Store a measured number with the required minimum or maximum."""
        reached = found <= most if least is None else found >= least
        self.requirements.append({"what": what, "found": found, "least": least, "most": most, "reached": bool(reached)})

    def require_of_commit(self, what: str, ratios: dict[str, float]) -> None:
        """Require that this tree is as fast as the other commit, if there is one."""
        if self.commit is not None:
            self.require(f"{what} vs {self.commit.name}", ratios[BEFORE], LEAST_OF_COMMIT)

    def print_commit(self) -> None:
        """Print a table of the ratios of another commit's seconds to ours in each round, if there is one."""
        if self.commit is None:
            return
        print(f"\nseconds of {self.commit.name} divided by ours, round by round")
        print_head("benchmark", "median", "min", "max")
        for result in self.results:
            if "skipped" in result:
                continue
            ratios = ratios_of_rounds(result["seconds"][BEFORE], result["seconds"]["ours"])
            numbers = [f"{each(ratios):.3f}" for each in (median, min, max)]
            print_row(f"{result['case']} {result['what']}", *numbers)

    def print_requirements(self) -> None:
        """Print required and measured numbers, if there are any."""
        if not self.requirements:
            return
        print("\nrequired, measured")
        for line in self.requirements:
            bound = f"<= {line['most']}" if line["least"] is None else f">= {line['least']}"
            verdict = "" if line["reached"] else "  NOT REACHED"
            print(f"  {line['what']:62} {bound:>8} {line['found']:8.3f} {verdict}")


def find_difference(arrays: Arrays, expected: Arrays, relative: float, absolute: float) -> str:
    """Return a description of an array that differs from the expected one; empty if none does."""
    for key in arrays.keys() & expected.keys():
        if not np.allclose(arrays[key], expected[key], rtol=relative, atol=absolute):
            difference = np.abs(arrays[key].astype(np.float64) - expected[key]).max()
            return f"{key} differs from ours by {difference:.3g}"
    return ""


def measure(program: Program, times: int, before: Callable[[], object]) -> float:
    """Call `before`, and return the seconds of a program."""
    before()
    return program.seconds(times)


def repetitions(program: Program, seconds: float) -> int:
    """Return how often a program can do its work in about `seconds`."""
    once = program.seconds()
    if once < seconds:
        once = min(once, program.seconds())
    return max(1, round(seconds / max(once, 1e-6)))
