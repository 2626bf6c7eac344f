"""The argument parser of every command line of shardpress."""

from __future__ import annotations

import argparse
from typing import NoReturn

from shardpress.base.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Parser with examples at the top of its ``--help`` page. It raises `UsageError` instead of exiting."""

    def __init__(self, prog: str = "", description: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage=argparse.SUPPRESS,  # the page shows examples instead, followed by all flags
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a later version could make an abbreviation ambiguous
            add_help=False,  # the help text of argparse would begin with a lower-case letter
        )
        self.add_argument("-h", "--help", action="help", default=argparse.SUPPRESS, help="Print this page and exit.")

    def error(self, message: str) -> NoReturn:
        page = f"{self.prog} --help".strip()
        raise UsageError(f"{message}. See {page}.")
