"""Helpers that several benchmarks use: data, programs, clocks, taking turns."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
N_COLUMNS = 784

Result = TypeVar("Result")


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the `type` of an argument that is one of some names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r}, expected one of {', '.join(names)}")
        return text

    return name


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


def report_of(output: Path) -> dict[str, Any]:
    """Return the report of a run."""
    return dict(json.loads((output / "report.json").read_text()))


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(contestants: Mapping[str, Callable[[], Result]], n_rounds: int) -> dict[str, list[Result]]:
    """Call all contestants in each round, and return the results of each.

    Disturbances by other processes then affect all of them equally.
    """
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(n_rounds):
        for name, contestant in contestants.items():
            results[name].append(contestant())
    return results


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median, over the rounds, of the ratio of two contestants."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def print_head(*titles: str) -> None:
    """Print the head of a table in Markdown."""
    print_row(*titles)
    print(f"{'|---' * len(titles)}|", flush=True)


def print_row(*cells: object) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
