"""Measure the cost of an append: ten new files, with the results of 1,000 files, and on their own.

    run.py append                            1,010 files of 1,000 rows and 64 columns in appends/
    run.py append --files 100 --rows 10000

The first program runs `shardpress run --model` on the ten new files alone. The second one appends them to results that
an earlier append has extended already. Both are measured alternately, and the ratio of their times is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from scripts.benchmarks.harness import (
    ROOT,
    add_options,
    environment,
    fresh,
    interleave,
    print_times,
    script,
    seconds_of,
)

N_NEW = 10
N_COLUMNS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, "appends", 7)
    parser.add_argument("--files", type=int, default=1000, help="number of earlier files (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each file (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print the results, and return the exit code."""
    folder = options.output.resolve()
    files = write_files(folder, options.files + 2 * N_NEW, options.rows)
    arrived = fresh(folder / "input")
    alone = fresh(folder / "new")
    trained = fresh(folder / "trained")
    link(files[: options.files], arrived)
    shardpress("--input", arrived, "--output", trained, "--epochs", 1, "--n-features", 16)
    appended = fresh(folder / "appended")
    shutil.copytree(trained, appended, symlinks=True)
    link(files[options.files : -N_NEW], arrived)
    shardpress("--append", "--input", arrived, "--output", appended)
    link(files[-N_NEW:], arrived)
    link(files[-N_NEW:], alone)

    def encode() -> float:
        output = fresh(folder / "encoded")
        return seconds_of(partial(shardpress, "--model", trained, "--input", alone, "--output", output))

    def append() -> float:
        output = fresh(folder / "output")
        shutil.copytree(appended, output, symlinks=True)
        return seconds_of(partial(shardpress, "--append", "--input", arrived, "--output", output))

    calls = {"run --model": encode, "run --append": append}
    interleave(calls, 1)  # warms the caches
    seconds = interleave(calls, options.rounds)
    print(f"{N_NEW} new files of {options.rows} rows, and {options.files + N_NEW} earlier files")
    print_times(seconds)
    (folder / "append.json").write_text(json.dumps(seconds, indent=1))
    return 0


def write_files(folder: Path, n_files: int, n_rows: int) -> list[Path]:
    """Write files of random rows, and return their paths in order."""
    target = folder / "files"
    size = ("--rows", n_files * n_rows, "--columns", N_COLUMNS, "--shards", n_files)
    script("make_data.py", "synthetic", *size, "--output", target)
    return sorted(target.glob("*.h5"))


def link(files: list[Path], folder: Path) -> None:
    """Make files appear in a directory."""
    folder.mkdir(exist_ok=True)
    for path in files:
        (folder / path.name).hardlink_to(path)


def shardpress(*arguments: object) -> None:
    """Run shardpress as a user does, and discard its output."""
    command = [sys.executable, str(ROOT / "scripts" / "extract.py"), "--quiet", *map(str, arguments)]
    # Warnings about random rows are expected: features cannot represent them.
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
