"""`shardpress verify`: whether an output is still what the run has written, and what its rows encode to."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commands.parsing import Parser, printed_json, whole_number

__all__ = ["main"]

_EXAMPLES = """Check an output directory: size and BLAKE3 of every file, and some rows, encoded again in float64.

    shardpress verify                     of features/
    shardpress verify /backup/features    a copy: the rows are read from where the run has read them
    shardpress verify --rows 100000       more rows than the 256 that take a moment

Nothing is written, and no Theano is needed. What cannot be checked, since its input is gone or has changed, is said. It
ends with 0, or with 79 when anything is wrong.
"""


def main(arguments: Sequence[str]) -> int:
    """Check an output and return the exit code."""
    parser = Parser("verify", _EXAMPLES)
    parser.add_argument("output", nargs="?", default="features", help="directory of a finished run (default: features)")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="rows to encode again, all over the data (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from dataclasses import asdict

    from pipeline.errors import VerificationFailed
    from pipeline.report.verify import verify

    found = verify(options.output, options.rows)
    printed_json(asdict(found)) if options.json else print(found)
    return VerificationFailed.exit_code if found.faults else 0
