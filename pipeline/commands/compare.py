"""`shardpress compare`: compare the features of two runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pipeline.commands.parsing import add_json_flag, print_json, whole_number

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Compare the features of two runs: how similar they are, and whether classifiers must be retrained.

    shardpress compare features features-new
    shardpress compare features features-new --rows 20000      compare 20,000 rows instead of 4,096
    shardpress compare features features-new --json

Rows with the same file name and row number are compared. Labels and other extras are ignored. The runs can have
different numbers of features. Nothing is written, and Theano is not needed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("a", metavar="A", help="Output directory of the finished run that classifiers were trained on.")
    parser.add_argument("b", metavar="B", help="Output directory of another finished run.")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="Number of rows to compare, spread over the data. Default: 4096."
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Compare two outputs, and print the result. The exit code is 0 for any result."""
    from pipeline.report.compare import compare

    comparison = compare(options.a, options.b, options.rows)
    if options.json:
        print_json(asdict(comparison))
    else:
        print(comparison)
    return 0
