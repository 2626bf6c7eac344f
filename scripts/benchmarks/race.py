"""A race of contestants: processes of their own, compared before they are timed, that take turns.

A ratio is the median over the rounds of the peer's seconds over ours, so above 1 means that we are faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from scripts.benchmarks.common import ROOT
from scripts.benchmarks.instruction_sets import hide, limits

OURS = Path(sys.executable)
PEERS = ROOT / ".venv-peers/bin/python"
# Threads of BLAS and OpenMP spin for a while before they sleep: so long, that the one before does not disturb the next.
_PAUSE = 0.2
# Threads and kernels of BLAS as a user finds them.
_UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# What JAX is given to preload: its library of products has no switch. The others have, and keep to it.
_HIDDEN = "BENCH_HIDDEN"


class Contestant:
    """A process that works on request.

    Parameters
    ----------
    name : str
        A key of ``CONTESTANTS`` in scripts/benchmarks/contestants.py.
    said : file
        Takes what it says, warnings as a rule; ours speaks to the user.
    variables : str
        More of its environment.
    """

    def __init__(self, name: str, said: IO[str], **variables: str) -> None:
        self.name = name
        self.about = ""
        self._said = said
        python = OURS if name in ("ours", "blas") else PEERS
        hidden = variables.pop(_HIDDEN, None)
        if hidden and name == "jax":
            variables["LD_PRELOAD"] = hidden
        self._process = subprocess.Popen(
            [str(python), str(ROOT / "scripts/benchmarks/contestants.py"), name],
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said if name != "ours" else None,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if request["do"] == "time":
            time.sleep(_PAUSE)
        with suppress(BrokenPipeError):  # it has ended: that no answer comes is told next
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            why = self._said.read().strip().rpartition("\n")[2]
            raise RuntimeError(f"{self.name} ended while asked for {request}{why and ': '}{why}")
        answer: dict[str, Any] = json.loads(line)
        self.about = answer.get("about", self.about)
        return answer

    def prepare(self, case: str, folder: Path, **sizes: Any) -> bool:
        """Have it make ready; whether it knows the case, and lives through it."""
        try:
            return "absent" not in self.ask(do="prepare", case=case, folder=str(folder), sizes=sizes)
        except RuntimeError as error:
            if self.name in ("ours", "blas"):
                raise
            print(f"  {self.name} takes no part: {error}", flush=True)
            return False

    def seconds(self, times: int = 1) -> float:
        """What the work takes, done so many times, each time."""
        taken: float = self.ask(do="time", times=times)["seconds"]
        return taken / times

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


@contextmanager
def contestants(names: Sequence[str], **variables: str) -> Iterator[list[Contestant]]:
    """Processes for the time of a case."""
    with ExitStack() as files:
        started = [Contestant(name, files.enter_context(TemporaryFile("w+")), **variables) for name in names]
        try:
            yield started
        finally:
            for one in started:
                one.end()


def nothing() -> None:
    """What is done before a turn, as a rule."""


def environment(**more: str) -> dict[str, str]:
    """For children: as it is, without what would choose BLAS's kernels or threads."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", **more}


class Bench:
    """Runs races and keeps their results."""

    def __init__(
        self,
        folder: Path,
        rounds: int,
        size: float,
        device: str,
        with_peers: bool,
        isa: str | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = folder.resolve()
        self.rounds = rounds
        self.size = size
        self.device = device
        self.seed = seed  # of the shapes that are drawn
        self.limits = limits(isa) if isa else {}  # of every contestant's environment
        # What PyTorch has compiled for one instruction set it takes for another, and crashes or computes nonsense.
        self.limits["TORCHINDUCTOR_CACHE_DIR"] = str(folder.resolve() / f"inductor-{isa or 'native'}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if isa and (library := hide(isa, self.folder)):
            self.limits[_HIDDEN] = str(library)
        self.with_peers = with_peers
        self.results: list[dict[str, Any]] = []
        self.demands: list[dict[str, Any]] = []

    @property
    def is_kept(self) -> bool:
        """Whether all contestants are kept to the instruction set, whatever they ask."""
        return _HIDDEN in self.limits

    def race(
        self,
        case: str,
        what: str,
        names: Sequence[str],
        sizes: dict[str, Any],
        tolerance: tuple[float, float],
        seconds: float = 0.0,
        before: Callable[[], object] = nothing,
        **variables: str,
    ) -> dict[str, float]:
        """Prepare, compare, take turns, print.

        Parameters
        ----------
        case : str
            The method of the contestants.
        what : str
            For people.
        names : sequence of str
            Who takes part, ``ours`` first.
        sizes : dict
            What the method is given.
        tolerance : (float, float)
            By how much the results may differ, relatively and absolutely.
        seconds : float
            How long a turn lasts, about: short work is done several times.
        before : callable
            What is done before each turn.
        variables : str
            More of the contestants' environment.

        Returns
        -------
        dict of str to float
            Of each contestant the ratio, median over the rounds; that of ``ours`` is its median of seconds.
        """
        names = [name for name in names if self.with_peers or name in ("ours", "blas")]
        print(f"\n{case} {what}", flush=True)
        with contestants(names, **{**self.limits, **variables}) as all_of_them:
            there = [one for one in all_of_them if one.prepare(case, self.folder, **sizes)]
            there = self._alike(there, *tolerance)
            times = {one.name: self._calibrate(one, seconds) for one in there}
            found: dict[str, list[float]] = {one.name: [] for one in there}
            for _ in range(self.rounds):
                for one in there:
                    before()
                    found[one.name].append(one.seconds(times[one.name]))
            about = {one.name: one.about for one in there}
        return self._keep(case, what, found, about)

    def _calibrate(self, one: Contestant, seconds: float) -> int:
        taken = one.seconds()
        taken = min(taken, one.seconds()) if taken < seconds else taken
        return max(1, round(seconds / max(taken, 1e-6)))

    def _alike(self, there: Sequence[Contestant], relative: float, absolute: float) -> list[Contestant]:
        """Those who compute the same numbers as we do; scikit-learn has another model, with as much work to do.

        A peer that is alone with its numbers takes no part; when none has ours, they are wrong.
        """
        results = {one.name: dict(np.load(self.folder / f"{one.name}.npz")) for one in there if one.name != "sklearn"}
        expected = results.pop("ours")
        wrong = {}
        for name, found in results.items():
            for key in set(found) & set(expected):
                if not np.allclose(found[key], expected[key], rtol=relative, atol=absolute):
                    far = float(np.abs(found[key].astype(np.float64) - expected[key]).max())
                    wrong[name] = f"{name}: {key} differs from ours by {far:.3g}, expected {relative}, {absolute}"
        if "blas" in wrong or (wrong and wrong.keys() == results.keys() - {"blas"}):
            raise RuntimeError("; ".join(wrong.values()))
        for words in wrong.values():
            print(f"  takes no part: {words}", flush=True)
        return [one for one in there if one.name not in wrong]

    def _keep(self, case: str, what: str, found: dict[str, list[float]], about: dict[str, str]) -> dict[str, float]:
        ratios = {
            name: median(a / b for a, b in zip(seconds, found["ours"], strict=True)) for name, seconds in found.items()
        }
        for name, seconds in found.items():
            spread = f"{min(seconds) * 1e3:.3f} to {max(seconds) * 1e3:.3f}"
            print(
                f"  {name:14} {median(seconds) * 1e3:10.3f} ms ({spread})  ratio {ratios[name]:.2f}  {about[name]}",
                flush=True,
            )
        self.results.append({"case": case, "what": what, "seconds": found, "ratios": ratios, "about": about})
        return {**ratios, "ours": median(found["ours"])}

    def demand(self, what: str, found: float, least: float | None = None, most: float | None = None) -> None:
        """Set what was measured beside what is asked for."""
        good = (least is None or found >= least) and (most is None or found <= most)
        self.demands.append({"what": what, "found": found, "least": least, "most": most, "reached": good})

    def demand_of_peers(self, what: str, ratios: dict[str, float], least: float) -> None:
        """The same of the best peer's ratio, if any took part."""
        peers = {name: ratio for name, ratio in ratios.items() if name not in ("ours", "blas")}
        if peers:
            best = min(peers, key=lambda name: peers[name])
            self.demand(f"{what} vs {best}", peers[best], least)

    def print_demands(self) -> None:
        """What was asked for and what was measured."""
        print("\nasked for, measured")
        for line in self.demands:
            asked = f">= {line['least']}" if line["least"] is not None else f"<= {line['most']}"
            print(f"  {line['what']:62} {asked:>8} {line['found']:8.2f} {'' if line['reached'] else '  NOT REACHED'}")
