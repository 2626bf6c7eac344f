"""`shardpress verify`: check output files against their digests, and features against input rows."""

from __future__ import annotations

import argparse

from shardpress.base.errors import VerificationFailed
from shardpress.commands.parsing import add_directory, add_json_flag, print_json, whole_number

DESCRIPTION = """Check an output directory: the size and BLAKE3 digest of each file, and the features of some rows.

    shardpress verify                     check features/
    shardpress verify /backup/features    check a copy; rows are read from the input files of the run
    shardpress verify --rows 100000       recompute more than 256 rows

Features are recomputed in float64, without Theano. Nothing is written. If an input file is missing or has changed, its
features cannot be checked, and the output lists this file. The exit code is 0, or 79 if a check fails. If index.h5 is
damaged, nothing else can be checked.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument(
        "--rows",
        type=whole_number,
        metavar="N",
        help="Number of rows to recompute, spread over the data. Default: 256.",
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Check an output, and print the result."""
    from shardpress.report.verify import verify
    from shardpress.result.records import plain

    verification = verify(options.directory, options.rows)
    if options.json:
        print_json(plain(verification))
    else:
        print(verification)
    return VerificationFailed.exit_code if verification.faults else 0
