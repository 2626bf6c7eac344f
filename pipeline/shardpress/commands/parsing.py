"""Argument types, JSON output and progress lines, which several commands share."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardpress.settings.kinds import parse_bytes


def whole_number(text: str) -> int:
    """Parse a whole number of at least 1. This function is the `type` of an argument."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 19 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)


def byte_count(text: str) -> int:
    """Parse a number of bytes such as ``4GiB``. This function is the `type` of an argument."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def existing_directory(text: str) -> Path:
    """Return the absolute path of an existing directory. This function is the `type` of an argument."""
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
    """Add ``--json``, which prints the result as JSON."""
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")


def print_json(result: Any) -> None:
    """Write a result as JSON to standard output."""
    print(json.dumps(result, indent=1, ensure_ascii=False))


@contextmanager
def log_progress() -> Iterator[None]:
    """Log the progress of all passes within the context."""
    logger = logging.getLogger("shardpress.progress")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
