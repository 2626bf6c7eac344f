"""Kill real runs at random moments: whatever the moment, the same command goes on and ends with the same bits.

    python -m tests.support.killing 200         so many rounds; a second number is the seed

A round starts the program in a new directory, kills it in one of its phases, looks at what is left, and types the same
command again until it has ended; every third round kills those runs too. The phases take turns, and so do the moments
within them. The first thing that is not as promised ends it all with exit code 1, and its directory is kept.

`tests/run/test_killing.py` runs a few rounds.
"""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.output.records import read_manifest
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, environment
from tests.support.soak_protocol import broken_promises, leftovers, records, seen_by_all

__all__ = ["PHASES", "Broken", "Ended", "Kill", "Program", "Victim", "committed", "features_of", "rounds", "table"]

# The line of the log with which each phase begins, in a first run and in one that goes on.
PHASES = {
    "start": r"^$",  # begins without a word
    "scan": r" INFO device: ",
    "training": r" INFO training: \d+ rows",
    "encoding": r" INFO training: ((\d+)/\2 rows|reusing the result of an earlier run)",
    "finishing": r" INFO encoding: (\d+)/\1 rows",
    "end": r"^(Done|Already complete): ",
}
_SETTINGS = (
    # Streamed, since the budget is small, in several windows an epoch; and each step is followed by a checkpoint.
    *("--memory-budget", "16MiB", "--batch-size", "512", "--epochs", "2", "--n-features", "32"),
    # Made-up rows are of a low rank, which components would give back whole: nothing is to be complained of.
    *(
        "--hidden",
        "none",
        "--code-activation",
        "sigmoid",
        "--decoder-gain",
        "no",
        "--start",
        "random",
        "--baseline",
        "no",
    ),
    *("--checkpoint-minutes", "0", "--threads", "2"),
)
_COMPLAINTS = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback|^Exception ignored")
# What Theano says when it was killed while it compiled; it goes on at once.
_HARMLESS = re.compile(r"Overriding existing lock by dead process")
_SECONDS = 300.0  # after which a run counts as stuck


class Broken(AssertionError):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes
    ----------
    code : int
        Its exit code, negative for a signal.
    lines : list of str
        What it said, on standard output and standard error.
    begun : dict of str to float
        When each phase began, in seconds from the start.
    seconds : float
        How long it took.
    sent : float
        When the signal was sent, if one was.
    """

    code: int
    lines: list[str]
    begun: dict[str, float]
    seconds: float
    sent: float = 0.0

    @property
    def phase(self) -> str:
        """The last one that began."""
        return list(self.begun)[-1]

    def says(self, pattern: str) -> bool:
        """Whether a line matches."""
        return any(re.search(pattern, line) for line in self.lines)


class Program:
    """``scripts/extract.py`` with its arguments, in processes of its own.

    Parameters
    ----------
    arguments : sequence of str
    variables : str, Path or None
        Of its environment; see `tests.support.interpreters.environment`.
    """

    def __init__(self, arguments: Sequence[str], **variables: str | Path | None) -> None:
        self.command = [sys.executable, "-W", "error", "scripts/extract.py", *arguments]
        self.environment = environment(**variables)

    def start(self, output: Path, *flags: str, **how: Any) -> subprocess.Popen[bytes]:
        """A process under way, with everything that it says in one pipe; `how` is for ``Popen``."""
        usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [*self.command, "--output", str(output), *flags]
        return subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, **{**usual, **how})

    def run(
        self, output: Path, *flags: str, at: str | None = None, delay: float = 0, by: int = signal.SIGKILL
    ) -> Ended:
        """Run to the end, or send it a signal.

        Parameters
        ----------
        output : Path
        flags : str
            More arguments.
        at : str, optional
            The phase in which, or a pattern of the line after which, it is sent.
        delay : float
            Seconds after that.
        by : int
            The signal.

        Raises
        ------
        Broken
            When it is stuck, or leaves a process behind that is.
        """
        start, sent, lines, begun = time.monotonic(), 0.0, [], {"start": 0.0}
        process = self.start(output, *flags)
        assert process.stdout is not None
        try:
            if at == "start":
                sent, at = _signal_after(process, delay, by) - start, None
            # The pipe ends with the last process that can write to it: the children have gone then, too.
            for line in _heard(process.stdout.fileno(), start + _SECONDS):
                lines.append(line)
                phase = next((name for name, pattern in PHASES.items() if re.search(pattern, line)), None)
                if phase is not None:
                    begun.setdefault(phase, time.monotonic() - start)
                if at is not None and re.search(PHASES.get(at, at), line):
                    sent, at = _signal_after(process, delay, by) - start, None
            code = process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        return Ended(code, lines, begun, time.monotonic() - start, sent)


def _signal_after(process: subprocess.Popen[bytes], seconds: float, number: int) -> float:
    """Wait, send a signal, and tell when."""
    time.sleep(seconds)
    process.send_signal(number)
    return time.monotonic()


def _heard(descriptor: int, deadline: float) -> Iterator[str]:
    """Lines as they come, until the last writer has gone."""
    rest = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Broken(f"is stuck, or has left a process behind, after {_SECONDS:.0f} s")
        data = os.read(descriptor, 2**16)
        if not data:
            if rest:
                yield rest.decode(errors="replace")
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


# -- the victim ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """A run that was killed, and what was there afterwards.

    Attributes
    ----------
    phase : str
        The one that was really hit.
    is_rerun : bool
        Whether the run went on from an earlier kill.
    n_checkpoints, n_parts : int
        Committed results.
    n_half : int
        Half-written files.
    is_complete : bool
        Whether there was a manifest.
    """

    phase: str
    is_rerun: bool
    n_checkpoints: int
    n_parts: int
    n_half: int
    is_complete: bool


class Victim:
    """A data set, and what an undisturbed run makes of it.

    Parameters
    ----------
    folder : Path
        Where the shards and all outputs go.
    flags : sequence of str
        Of its runs, besides the usual ones.
    variables : str, Path or None
        As for `Program`.

    Attributes
    ----------
    undisturbed : Path
        A finished output.
    features : str
        Its digest.
    n_rows : int
    seconds : dict of str to float
        How long each phase of a run lasts, of late.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = (), **variables: str | Path | None) -> None:
        self.folder, self.undisturbed = folder, folder / "undisturbed"
        _write_shards(folder / "shards")
        self.program = Program(["--input", str(folder / "shards"), *_SETTINGS, *flags], **variables)
        self._must_end(self.program.run(folder / "first"), folder / "first")  # may have to compile first
        ended = self.program.run(self.undisturbed)
        self._must_end(ended, self.undisturbed)
        self.features, self.n_rows = features_of(self.undisturbed), read_manifest(self.undisturbed)["n_rows"]
        if features_of(folder / "first") != self.features:
            raise Broken("two undisturbed runs differ")
        self.seconds = _lengths(ended)

    def round(self, output: Path, phases: Sequence[str], rng: random.Random) -> tuple[list[Kill], float]:
        """Kill one run after the other in these phases, and let the last one end.

        A moment may turn out to lie behind the run's end, and a run that goes on may skip a phase: fewer are killed
        then.

        Returns
        -------
        list of Kill
        float
            Seconds that the last run took.

        Raises
        ------
        Broken
        """
        kills = []
        for phase in phases:
            ended = self.program.run(output, at=phase, delay=rng.random() * self.seconds[phase])
            if ended.code == 0:
                self._must_end(ended, output)
                break
            if not kills:  # the others skip something
                lengths = _lengths(ended)
                self.seconds |= {name: (self.seconds[name] + seconds) / 2 for name, seconds in lengths.items()}
            kills.append(self.look(ended, output, is_rerun=bool(kills)))
        seconds = self.go_on(output).seconds
        shutil.rmtree(output)
        return kills, seconds

    def go_on(self, output: Path) -> Ended:
        """Type the same command again, let it end, and see that all is as promised.

        Raises
        ------
        Broken
        """
        before = committed(output)
        ended = self.program.run(output)
        self._must_end(ended, output)
        self.check(output)
        _must_use(before, ended, output)
        return ended

    def look(self, ended: Ended, output: Path, is_rerun: bool = False) -> Kill:
        """What a killed run has left: results that are whole, and a manifest that is there or not."""
        if ended.code != -signal.SIGKILL:
            raise Broken(f"exit code {ended.code}, expected to be killed: {ended.lines[-3:]}")
        _must_be_nothing("not as promised", _broken(output))
        if output.exists():
            seen_by_all(output)
        names = [path.name for path in output.rglob("*")]
        return Kill(
            phase=ended.phase,
            is_rerun=is_rerun,
            n_checkpoints=sum(key.startswith("checkpoint") for key in committed(output)),
            n_parts=sum(key.startswith("part") for key in committed(output)),
            n_half=sum(name.endswith(".writing") for name in names),
            is_complete=(output / "manifest.json").exists(),
        )

    def check(self, output: Path) -> None:
        """A finished output has the bits of the undisturbed one, and nothing more."""
        _must_be_nothing("not as promised", _broken(output))
        _must_be_nothing("left over", leftovers(output))
        if features_of(output) != self.features:
            raise Broken("the features are not those of an undisturbed run")

    def _must_end(self, ended: Ended, output: Path) -> None:
        if ended.code != 0:
            raise Broken(f"exit code {ended.code} in {output}: {ended.lines[-3:]}")
        _must_be_nothing(
            "complaints", [line for line in ended.lines if _COMPLAINTS.search(line) and not _HARMLESS.search(line)]
        )


def _lengths(ended: Ended) -> dict[str, float]:
    """Seconds of each phase that was over."""
    return {phase: stop - start for (phase, start), (_, stop) in pairwise(ended.begun.items())}


def _write_shards(folder: Path) -> None:
    """Many small shards, so that there are many parts; with labels, some compressed, one for the child to vet."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5, 64))
    for i in range(40):
        rows = rng.normal(size=(int(rng.integers(320, 520)), 5)) @ directions
        how = {"chunks": (64, 64), "compression": "gzip"} if i % 3 == 0 else {}
        beside = {"y": np.arange(len(rows)) % 7, **({"nothing": h5py.Empty("f4")} if i == 7 else {})}
        write_shard(folder / f"{i:02d}.h5", rows, extras=beside, **how)


def features_of(output: Path) -> str:
    """A digest of every bit that a finished run says about the rows, part by part and through the index."""
    manifest = read_manifest(output)
    digest = sha256(manifest["model"].encode())
    for name in ("index.h5", *(part["file"] for part in manifest["parts"])):
        with h5py.File(output / name) as file:
            for key in sorted(file):
                digest.update(f"{key} {file[key].dtype} {file[key].shape}".encode() + file[key][()].tobytes())
    return digest.hexdigest()


def committed(output: Path) -> dict[str, str]:
    """The file of each committed result."""
    return {record["key"]: record["entry"]["file"] for record in records(output)}


def _broken(output: Path) -> list[str]:
    try:
        return broken_promises(output)
    except ValueError as error:
        raise Broken(f"a record or the manifest is half: {error}") from error


def _must_use(before: dict[str, str], ended: Ended, output: Path) -> None:
    """What was finished is not made again."""
    if ended.says("^Already complete"):
        return
    parts = {part["file"] for part in read_manifest(output)["parts"]}
    _must_be_nothing(
        "parts made again", [file for key, file in before.items() if key.startswith("part") and file not in parts]
    )
    last = max((int(key.split("-")[1]) for key in before if key.startswith("checkpoint")), default=0)
    expected = {
        "scan": "scan: reusing the result of an earlier run",
        "model": "training: reusing the result of an earlier run",
    }
    words = [expected[key] for key in before if key in expected]
    if last and "model" not in before:
        words.append(f"training: resuming after step {last} ")
    _must_be_nothing("never said", [sentence for sentence in words if not ended.says(re.escape(sentence))])


def _must_be_nothing(what: str, found: list[str]) -> None:
    if found:
        raise Broken(f"{what}: {found[:5]}")


# -- many rounds -----------------------------------------------------------------------------------------------------


def rounds(victim: Victim, n_rounds: int, seed: int) -> Iterator[tuple[list[Kill], float]]:
    """As many rounds in which something was killed.

    Raises
    ------
    Broken
        With the directory that shows it.
    """
    phases = list(victim.seconds)
    for number in range(n_rounds):
        kills: list[Kill] = []
        for attempt in range(20):
            rng = random.Random(f"{seed} {number} {attempt}")
            chain = rng.choices(phases, k=rng.randint(1, 3)) if number % 3 == 2 else []
            output = victim.folder / f"round-{number}-{attempt}"
            try:
                kills, seconds = victim.round(output, [phases[number % len(phases)], *chain], rng)
            except Broken as broken:
                raise Broken(f"round {number}, attempt {attempt}, seed {seed}: {broken}. Kept: {output}") from broken
            if kills:
                yield kills, seconds
                break
        else:
            raise Broken(f"round {number}, seed {seed}: the run always ended before it was killed")


def table(found: Sequence[tuple[list[Kill], float]]) -> str:
    """What was hit, phase by phase: for the last column that of a round's first kill, else that of each kill."""
    columns = ("phase", "kills", "of reruns", "checkpoints", "parts", "half-written", "complete", "slowest end")
    lines = [columns]
    for phase in PHASES:
        hits = [kill for kills, _ in found for kill in kills if kill.phase == phase]
        ends = [seconds for kills, seconds in found if kills[0].phase == phase]
        lines.append(
            (
                *(phase, str(len(hits)), str(sum(kill.is_rerun for kill in hits))),
                *(_range([kill.n_checkpoints for kill in hits]), _range([kill.n_parts for kill in hits])),
                *(str(sum(kill.n_half > 0 for kill in hits)), str(sum(kill.is_complete for kill in hits))),
                f"{max(ends):.1f} s" if ends else "",
            )
        )
    return "\n".join(" ".join(f"{cell:>12}" for cell in line) for line in lines)


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else ""


def main() -> int:
    """Print what came of as many rounds as the command line asks for."""
    n_rounds, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="shardpress-killing-"))
    found: list[tuple[list[Kill], float]] = []
    try:
        # Compiled code of its own: a run that is killed while it compiles is in nobody's way.
        victim = Victim(folder, XDG_CACHE_HOME=folder / "cache")
        lengths = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in victim.seconds.items())
        print(f"an undisturbed run: {lengths}", flush=True)
        for each in rounds(victim, n_rounds, seed):
            found.append(each)
            if len(found) % 20 == 0:
                print(f"{len(found)} rounds in {time.monotonic() - start:.0f} s", flush=True)
    except Broken as broken:
        print(f"BROKEN: {broken} (everything is in {folder})")
        return 1
    finally:
        if found:
            print(table(found))
    shutil.rmtree(folder)
    n_kills = sum(len(kills) for kills, _ in found)
    print(
        f"{n_rounds} rounds of seed {seed}, {n_kills} kills in {time.monotonic() - start:.0f} s: each run that went on "
        "kept what was finished, and each round ended with the bits of an undisturbed run"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
