"""`shardpress compare`: compare the features of two runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pipeline.commands.parsing import add_json_flag, print_json, whole_number

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Do the features of two runs mean the same? Must what was trained on A be trained again for B?

    shardpress compare features features-new
    shardpress compare features features-new --rows 20000      more rows than the 4096 that take a second
    shardpress compare features features-new --json

Rows are those that both have: of files of the same names, by their numbers. Labels and other extras are
ignored; the numbers of features may differ. Nothing is written, and no Theano is needed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("a", metavar="A", help="directory of a finished run, on which something was trained")
    parser.add_argument("b", metavar="B", help="directory of another one")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="rows to compare, all over the data (default: 4096)"
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Compare two outputs; the exit code is 0 for any result."""
    from pipeline.report.compare import compare

    found = compare(options.a, options.b, options.rows)
    if options.json:
        print_json(asdict(found))
    else:
        print(found)
    return 0
