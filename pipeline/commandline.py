"""The argument parser of every command line of shardpress."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipeline.errors import UsageError

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser whose ``--help`` page begins with examples, and that raises `UsageError` instead of exiting.

    Parameters
    ----------
    prog : str
        Name of the program in messages; empty to omit it.
    description : str
        First part of the ``--help`` page, with examples.
    argument_default : object
        Argument of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str = "", description: str = "", argument_default: object = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage=argparse.SUPPRESS,  # examples come first, and every flag is listed below
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argument_default,
            allow_abbrev=False,  # a later version could make an abbreviation ambiguous
            add_help=False,  # its text would begin with a lower-case letter
        )
        self.add_argument("-h", "--help", action="help", default=argparse.SUPPRESS, help="Print this page and exit.")

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` for arguments that cannot be read."""
        page = f"{self.prog} --help".strip()
        raise UsageError(f"{message}. See {page}.")
