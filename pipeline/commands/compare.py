"""`shardpress compare`: whether two runs' features mean the same."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.commands.parsing import Parser, printed_json, whole_number

__all__ = ["main"]

_EXAMPLES = """Do the features of two runs mean the same? Must what was trained on A be trained again for B?

    shardpress compare features features-new
    shardpress compare features features-new --rows 20000      more rows than the 4096 that take a second
    shardpress compare features features-new --json

Rows are those that both have: of files of the same names, by their numbers. Labels, and whatever else rides along, are
not looked at; the numbers of features may differ. Nothing is written, and no Theano is needed.
"""


def main(arguments: Sequence[str]) -> int:
    """Compare two outputs and return the exit code: 0 whatever comes of it."""
    parser = Parser("compare", _EXAMPLES)
    parser.add_argument("a", metavar="A", help="directory of a finished run, on which something was trained")
    parser.add_argument("b", metavar="B", help="directory of another one")
    parser.add_argument(
        "--rows", type=whole_number, metavar="N", help="rows to compare, all over the data (default: 4096)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from dataclasses import asdict

    from pipeline.report.compare import compare

    found = compare(options.a, options.b, options.rows)
    printed_json(asdict(found)) if options.json else print(found)
    return 0
