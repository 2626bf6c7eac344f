"""How commands read their flags, and write an answer that a program may want."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pipeline.errors import UsageError

__all__ = ["Parser", "printed_json", "progress_told", "whole_number"]


class Parser(argparse.ArgumentParser):
    """Flags of a command, whose ``--help`` shows examples first; what it cannot read is a `UsageError`."""

    def __init__(self, name: str, examples: str) -> None:
        super().__init__(
            prog=f"shardpress {name}",
            description=examples,
            usage=argparse.SUPPRESS,  # examples come first, and every flag is listed below
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # which a later version could make ambiguous
        )

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        raise UsageError(f"{message}. See {self.prog} --help.")


def whole_number(text: str) -> int:
    """A number of things, 1 at least: a `type` of an argument."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 19 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)


def printed_json(answer: Any) -> None:
    """Write an answer as JSON, alone on standard output."""
    print(json.dumps(answer, indent=1, ensure_ascii=False))


@contextmanager
def progress_told() -> Iterator[None]:
    """Within the context, passes tell how far they have come."""
    of_progress = logging.getLogger("pipeline.progress")
    level = of_progress.level
    of_progress.setLevel(logging.INFO)
    try:
        yield
    finally:
        of_progress.setLevel(level)
