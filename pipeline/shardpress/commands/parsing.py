"""Argument types, JSON output and progress lines, which several commands share."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def whole_number(text: str) -> int:
    """Parse a number of at least 1."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 19 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)


def existing_directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a directory")
    return Path(text).absolute()


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument ``directory``: the output directory of a finished run."""
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        default="features",
        help="Output directory of a finished run. Default: %(default)s.",
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")


def print_json(result: object) -> None:
    print(json.dumps(result, indent=1, ensure_ascii=False))


@contextmanager
def log_progress() -> Iterator[None]:
    """Log the progress of all passes within the context."""
    logger = logging.getLogger("shardpress.base.progress")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
