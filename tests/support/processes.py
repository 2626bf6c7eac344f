"""Helpers of tests that run the program in real processes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.killing import Program

DEADLINE = 240.0  # time limit for operations that take seconds on an idle machine

LAST_LINE = re.compile(
    r" ERROR (Nothing was started|Stopped after [\d.]+ s in .*\. Done: .*; (\d+) of \d+ rows encoded)\. "
    r"(Run|Fix the problem above, then run) the (same )?command again"
)


@dataclass(frozen=True)
class Small:
    """A small data set and the results of an undisturbed run."""

    folder: Path
    features: str

    @property
    def output(self) -> Path:
        """Output of the undisturbed run."""
        return self.folder / "out"

    @property
    def with_model(self) -> list[str]:
        """Flags of a run that encodes with the model of the undisturbed run. This halves the time for compilation."""
        return ["--model", str(self.output)]

    def program(self, **variables: str | Path | None) -> Program:
        return Program(["--input", str(self.folder / "shards"), "--epochs", "1", "--n-features", "4"], **variables)


def ends_well(process: subprocess.Popen[bytes]) -> str:
    """Return the output of a process that must exit with code 0."""
    raw, _ = process.communicate(timeout=DEADLINE)
    text = (raw or b"").decode()
    assert process.returncode == 0, text[-2000:]
    return text


def patch_program(small: Small, program: str) -> Program:
    """Return a `Program` that a script patches before it starts."""
    found = small.program()
    found.command[found.command.index("scripts/extract.py")] = "-c"
    found.command.insert(found.command.index("-c") + 1, program)
    return found


def arguments_of(pid: int) -> list[str]:
    """Return the command line of a process, or an empty list if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Yield every descendant of a process with its parent."""
    children: list[int] = []
    with suppress(OSError):  # the process has exited
        for path in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # the thread has exited
                children += map(int, (path / "children").read_text().split())
    for child in children:
        yield child, pid
        yield from descendants(child)
