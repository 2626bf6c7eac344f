"""`shardpress compare`: compare the features of two runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardpress.commands.parsing import add_json_flag, print_json, whole_number

DESCRIPTION = """Compare the features of two runs: how similar they are, and whether classifiers must be retrained.

    shardpress compare features features-new
    shardpress compare features features-new --rows 20000      compare 20,000 rows instead of 4,096
    shardpress compare features features-new --map map.npz     also write a linear map from features-new to features
    shardpress compare features features-new --json

Rows with the same number are compared, in input files whose rows are the same in both runs. Labels and other extras are
ignored. The runs can have different numbers of features. Only --map writes a file, and Theano is not needed.

A classifier that was trained on the features of A can be used for rows of B after the map:
open_features("features-new", as_of="map.npz").
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="Output directory of the finished run that classifiers were trained on.")
    parser.add_argument("b", metavar="B", help="Output directory of another finished run.")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="Number of rows to compare, spread over the data. Default: 4096."
    )
    parser.add_argument(
        "--map", metavar="FILE", help="File to write: a linear map from the features of B to the features of A."
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Compare two outputs, and print the result. The exit code is 0 for any result."""
    from shardpress.output.disk import Disk, publish
    from shardpress.report.compare import compare

    comparison = compare(options.a, options.b, options.rows, options.map is not None)
    if comparison.alignment is not None:
        publish(Disk(), Path(options.map), comparison.alignment.map.to_npz())
    if options.json:
        print_json(comparison.facts())
    else:
        print(comparison)
    return 0
