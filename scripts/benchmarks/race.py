"""Races of contestants: processes whose results are compared before they take turns.

A ratio is the median, over the rounds, of the peer's seconds divided by ours. Above 1, shardpress is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from scripts.benchmarks.common import ROOT, median_ratio, take_turns
from scripts.benchmarks.instruction_sets import hide, limits

PEERS = ROOT / ".venv-peers/bin/python"
_OWN = ("ours", "blas")  # contestants that need no peers
# Threads of BLAS and OpenMP keep spinning for a while after their work, which would disturb the next contestant.
_PAUSE_SECONDS = 0.2
# Variables that must not influence the choice of kernels and threads, so that each contestant works as for a user.
_UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# Variable with a library that restricts JAX to an instruction set. The other contestants have variables for that.
_JAX_PRELOAD = "BENCH_HIDDEN"


Arrays = dict[str, np.ndarray]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a child process, with additional variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**inherited, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", **variables}


class Contestant:
    """A process that does work on request; see contestants.py.

    Parameters
    ----------
    name : str
        A key of ``CLASSES`` in contestants.py.
    errors : file
        Standard error of the peers.
    variables : str
        Additional environment variables.
    """

    def __init__(self, name: str, errors: IO[str], **variables: str) -> None:
        self.name = name
        self.about = ""
        self._errors = errors
        preload = variables.pop(_JAX_PRELOAD, None)
        if preload and name == "jax":
            variables["LD_PRELOAD"] = preload
        python = sys.executable if name in _OWN else str(PEERS)
        self._process = subprocess.Popen(
            [python, str(ROOT / "scripts/benchmarks/contestants.py"), name],
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if name == "ours" else errors,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # the missing answer is reported below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last_line = self._errors.read().strip().rpartition("\n")[2]
            raise RuntimeError(f"{self.name} exited before it answered {request}: {last_line}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def prepare(self, case: str, folder: Path, **sizes: Any) -> bool:
        """Prepare a case; return whether the contestant can take part."""
        try:
            answer = self.ask(do="prepare", case=case, folder=str(folder), sizes=sizes)
        except RuntimeError as error:
            if self.name in _OWN:
                raise
            print(f"  {self.name} does not take part: {error}", flush=True)
            return False
        self.about = answer.get("about", "")
        return "absent" not in answer

    def seconds(self, times: int = 1) -> float:
        """Do the work a number of times, and return the mean seconds."""
        time.sleep(_PAUSE_SECONDS)
        seconds: float = self.ask(do="time", times=times)["seconds"]
        return seconds / times

    def end(self) -> None:
        """Wait until the process has ended."""
        self._process.communicate()


@contextmanager
def contestants(names: Sequence[str], **variables: str) -> Iterator[list[Contestant]]:
    """Start contestants, and end them at the end of the context."""
    with ExitStack() as stack:
        started = []
        for name in names:
            errors = stack.enter_context(TemporaryFile("w+"))
            contestant = Contestant(name, errors, **variables)
            stack.callback(contestant.end)
            started.append(contestant)
        yield started


@dataclass
class Bench:
    """Runs races and keeps their results."""

    folder: Path  # working directory
    rounds: int  # turns of each contestant
    size: float  # factor of the number of rows in files
    device: str  # device of the case `device`
    with_peers: bool  # whether JAX, PyTorch and scikit-learn take part
    isa: str | None = None  # instruction set that all contestants are restricted to
    seed: int = 0  # seed of the case `shapes`
    results: list[dict[str, Any]] = field(default_factory=list)
    demands: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        # PyTorch would reuse code compiled for another instruction set, and crash or return wrong results.
        cache = self.folder / f"inductor-{self.isa or 'native'}"
        self.variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}  # environment variables of all processes
        self.limits_jax = False
        if self.isa:
            self.variables.update(limits(self.isa))
            if library := hide(self.isa, self.folder):
                self.variables[_JAX_PRELOAD] = str(library)
                self.limits_jax = True

    def race(
        self,
        case: str,
        what: str,
        names: Sequence[str],
        sizes: dict[str, Any],
        tolerance: tuple[float, float],
        seconds: float = 0.0,
        before: Callable[[], object] = lambda: None,
    ) -> dict[str, float]:
        """Compare the results of contestants, let them take turns, and print their times.

        Parameters
        ----------
        case, sizes : str, dict
            The method of the contestants, and its arguments.
        what : str
            Description of the case.
        names : sequence of str
            Contestants, ``ours`` first.
        tolerance : (float, float)
            Relative and absolute tolerance of the results.
        seconds : float
            Approximate length of a turn; short work is repeated.
        before : callable
            Called before each turn.

        Returns
        -------
        dict of str to float
            Ratio of each peer, and our seconds.
        """
        print(f"\n{case} {what}", flush=True)
        names = [name for name in names if self.with_peers or name in _OWN]
        with contestants(names, **self.variables) as started:
            prepared = [each for each in started if each.prepare(case, self.folder, **sizes)]
            racing = self._with_equal_results(prepared, *tolerance)
            turns = {each.name: partial(turn, each, repetitions(each, seconds), before) for each in racing}
            found = take_turns(turns, self.rounds)
        return self._keep(case, what, found, {each.name: each.about for each in racing})

    def _with_equal_results(self, prepared: list[Contestant], relative: float, absolute: float) -> list[Contestant]:
        """Return the contestants whose results equal ours; raise `RuntimeError` if no peer agrees with ours."""
        comparable = [each.name for each in prepared if each.name != "sklearn"]  # scikit-learn has another model
        results = {name: dict(np.load(self.folder / f"{name}.npz")) for name in comparable}
        expected = results.pop("ours")
        wrong = {}
        for name, arrays in results.items():
            if difference := find_difference(arrays, expected, relative, absolute):
                wrong[name] = f"{name}: {difference}"
        peers = results.keys() - {"blas"}
        if "blas" in wrong or (peers and peers == wrong.keys()):
            raise RuntimeError("; ".join(wrong.values()))
        for sentence in wrong.values():
            print(f"  does not take part: {sentence}", flush=True)
        return [each for each in prepared if each.name not in wrong]

    def _keep(self, case: str, what: str, found: dict[str, list[float]], about: dict[str, str]) -> dict[str, float]:
        """Print and store the times of a race; return the ratios, and our seconds."""
        ratios = {name: median_ratio(each, found["ours"]) for name, each in found.items()}
        for name, each in found.items():
            times = f"{median(each) * 1e3:10.3f} ms ({min(each) * 1e3:.3f} to {max(each) * 1e3:.3f})"
            print(f"  {name:14} {times}  ratio {ratios[name]:.2f}  {about[name]}", flush=True)
        self.results.append({"case": case, "what": what, "seconds": found, "ratios": ratios, "about": about})
        return {**ratios, "ours": median(found["ours"])}

    def measure(self, name: str, case: str, times: int, **sizes: Any) -> float:
        """Return the median seconds of one contestant's work, without a race."""
        with contestants([name], **self.variables) as (contestant,):
            contestant.prepare(case, self.folder, **sizes)
            return median(contestant.seconds(times) for _ in range(self.rounds))

    def demand(self, what: str, found: float, least: float | None = None, most: float | None = None) -> None:
        """Store a measured number with the required minimum or maximum."""
        reached = found <= most if least is None else found >= least
        self.demands.append({"what": what, "found": found, "least": least, "most": most, "reached": bool(reached)})

    def demand_of_peers(self, what: str, ratios: dict[str, float], least: float) -> None:
        """Require a minimum ratio to the best peer, if any took part."""
        peers = {name: ratio for name, ratio in ratios.items() if name not in _OWN}
        if peers:
            best = min(peers, key=lambda name: peers[name])
            self.demand(f"{what} vs {best}", peers[best], least)

    def print_demands(self) -> None:
        """Print required and measured numbers."""
        print("\nrequired, measured")
        for line in self.demands:
            bound = f"<= {line['most']}" if line["least"] is None else f">= {line['least']}"
            verdict = "" if line["reached"] else "  NOT REACHED"
            print(f"  {line['what']:62} {bound:>8} {line['found']:8.2f} {verdict}")


def find_difference(arrays: Arrays, expected: Arrays, relative: float, absolute: float) -> str:
    """Return a description of an array that differs from the expected one; empty if none does."""
    for key in arrays.keys() & expected.keys():
        if not np.allclose(arrays[key], expected[key], rtol=relative, atol=absolute):
            difference = np.abs(arrays[key].astype(np.float64) - expected[key]).max()
            return f"{key} differs from ours by {difference:.3g}"
    return ""


def turn(contestant: Contestant, times: int, before: Callable[[], object]) -> float:
    """Call `before`, and return the seconds of a contestant."""
    before()
    return contestant.seconds(times)


def repetitions(contestant: Contestant, seconds: float) -> int:
    """Return how often a contestant can do its work in about `seconds`."""
    once = contestant.seconds()
    if once < seconds:
        once = min(once, contestant.seconds())
    return max(1, round(seconds / max(once, 1e-6)))
