"""What several benchmarks use."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the `type` of an argument that is one of some names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r}, expected some of {', '.join(names)}")
        return text

    return name


def fresh(folder: Path) -> Path:
    """Remove a directory, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def script(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
    """Run a program of scripts/ to its end."""
    command = [sys.executable, f"scripts/{name}", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
