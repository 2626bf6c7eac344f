"""`shardpress classify`: measure how useful features are for a classifier."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict

from pipeline.commands.parsing import add_json_flag, byte_count, log_progress, print_json, whole_number
from pipeline.signals import Stopped, stoppable

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Train a scikit-learn classifier on features, and say how good they are.

    shardpress classify                     features/, labels "y"
    shardpress classify --features compact --labels y --test more

The same classifier is trained on the raw columns and on as many principal components, on the same rows: a logistic
regression on standardized columns, until it has converged. Rows that do not fit in the memory budget are learnt from
out of core. Without --test, a fifth of the rows of every class is held out.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--features",
        metavar="DIRECTORY",
        default="features",
        help="output directory of a run (default: %(default)s)",
    )
    parser.add_argument(
        "--test", metavar="DIRECTORY", help="the same with the features of test rows (default: hold out a fifth)"
    )
    parser.add_argument("--labels", metavar="NAME", default="y", help="extra with the labels (default: %(default)s)")
    parser.add_argument(
        "--passes",
        metavar="N",
        type=whole_number,
        default=2000,
        help="passes over the training rows, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        type=byte_count,
        default=2 * 2**30,
        help="host memory for rows, like 4GiB (default: 2GiB)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="where all randomness starts (default: 0)")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Train the classifiers and print their accuracies."""
    from pipeline.runlog import Terminal

    logging.basicConfig(handlers=[Terminal()])
    with stoppable(), log_progress():
        try:
            _compare(options)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
    return 0


def _compare(options: argparse.Namespace) -> None:
    from pipeline.classify.compare import Options, compare_representations

    comparison = Options(
        features=options.features,
        test=options.test,
        labels=options.labels,
        passes=options.passes,
        memory_budget=options.memory_budget,
        seed=options.seed,
    )
    result = compare_representations(comparison)
    if options.json:
        print_json(asdict(result))
    else:
        print(result)
