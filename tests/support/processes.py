"""Helpers of tests that run the program in real processes."""

from __future__ import annotations

import re
import subprocess
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
