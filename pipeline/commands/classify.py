"""`shardpress classify`: how good features are for a classifier."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.commands.parsing import Parser, printed_json, progress_told
from pipeline.errors import ShardpressError
from pipeline.settings.kinds import parse_bytes
from pipeline.signals import Stopped, stoppable

__all__ = ["EXAMPLES", "main"]

EXAMPLES = """Train a scikit-learn classifier on features, and say how good they are.

    shardpress classify                     features/, labels "y"
    shardpress classify --features compact --labels y --test more

The same classifier is trained on the raw columns and on as many principal components, on the same rows: a logistic
regression on standardized columns, until it has converged. Rows that do not fit in the memory budget are learnt from
out of core. Without --test, a fifth of the rows of every class is held out.
"""


def main(arguments: Sequence[str], name: str = "shardpress classify", examples: str = EXAMPLES) -> int:
    """Print the accuracies and return the exit code."""
    from pipeline.runlog import Terminal

    logging.basicConfig(handlers=[Terminal()])
    with stoppable(), progress_told():
        try:
            _compare(_parser(name, examples).parse_args(arguments))
        except ShardpressError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_code
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
    return 0


def _compare(options: argparse.Namespace) -> None:
    from pipeline.classify.compare import Asked, compared

    given = vars(options)
    is_json = given.pop("json")
    found = compared(Asked(**given))
    if is_json:
        printed_json(asdict(found))
    else:
        print(found)


def _parser(name: str, examples: str) -> Parser:
    parser = Parser("classify", examples)
    parser.prog = name
    parser.add_argument(
        "--features",
        metavar="DIRECTORY",
        default="features",
        help="output directory of a run (default: %(default)s)",
    )
    parser.add_argument(
        "--test", metavar="DIRECTORY", help="the same with the features of test rows (default: hold out a fifth)"
    )
    parser.add_argument(
        "--labels", metavar="NAME", default="y", help="riding dataset with the labels (default: %(default)s)"
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        type=_positive,
        default=2000,
        help="passes over the training rows, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        type=_bytes,
        default=2 * 2**30,
        help="host memory for rows, like 4GiB (default: 2GiB)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="where all randomness starts (default: 0)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number, 1 or more")
    return int(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
