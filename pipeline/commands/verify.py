"""`shardpress verify`: check the files of an output against their digests, and features against rows."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pipeline.commands.parsing import add_json_flag, print_json, whole_number
from pipeline.errors import VerificationFailed

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Check an output directory: size and BLAKE3 of every file, and some rows, encoded again in float64.

    shardpress verify                     of features/
    shardpress verify /backup/features    a copy: the rows are read from where the run has read them
    shardpress verify --rows 100000       more rows than the 256 that take a moment

Nothing is written, and no Theano is needed. What cannot be checked, since its input is gone or has changed, is said. It
ends with 0, or with 79 when anything is wrong.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("output", nargs="?", default="features", help="directory of a finished run (default: features)")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="rows to encode again, all over the data (default: 256)"
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Check an output."""
    from pipeline.report.verify import verify

    found = verify(options.output, options.rows)
    if options.json:
        print_json(asdict(found))
    else:
        print(found)
    return VerificationFailed.exit_code if found.faults else 0
