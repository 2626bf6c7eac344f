"""Runs as real processes: what tests of them share."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.killing import Program

__all__ = ["DEADLINE", "LAST_LINE", "Small", "arguments_of", "descendants", "ends_well", "patched"]

DEADLINE = 240.0  # for what takes seconds on a machine that is not busy

LAST_LINE = re.compile(
    r" ERROR (Nothing was started|Stopped after [\d.]+ s in .*\. Done: .*; (\d+) of \d+ rows encoded)\. "
    r"(Run|Fix the problem above, then run) the same command again"
)


@dataclass(frozen=True)
class Small:
    """A data set that is soon done with, and what an undisturbed run makes of it."""

    folder: Path
    features: str

    @property
    def output(self) -> Path:
        """The output of the undisturbed run."""
        return self.folder / "out"

    @property
    def with_model(self) -> list[str]:
        """Flags of a run that encodes with the model of the undisturbed run: half the code has to be compiled."""
        return ["--model", str(self.output)]

    def program(self, **variables: str | Path | None) -> Program:
        return Program(["--input", str(self.folder / "shards"), "--epochs", "1", "--n-features", "4"], **variables)


def ends_well(process: subprocess.Popen[bytes]) -> str:
    """What a process said that ended with 0."""
    said, _ = process.communicate(timeout=DEADLINE)
    text = (said or b"").decode()
    assert process.returncode == 0, text[-2000:]
    return text


def patched(small: Small, program: str) -> Program:
    """The program, started by another one that comes between."""
    found = small.program()
    found.command[found.command.index("scripts/extract.py")] = "-c"
    found.command.insert(found.command.index("-c") + 1, program)
    return found


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Every process below one, each with its parent."""
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # this thread has
                children += map(int, (path / "children").read_text().split())
    for child in children:
        yield child, pid
        yield from descendants(child)
