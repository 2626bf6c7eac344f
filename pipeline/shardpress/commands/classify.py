"""`shardpress classify`: measure how useful features are for a classifier."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict

from shardpress.commands.parsing import add_json_flag, byte_count, log_progress, print_json, whole_number
from shardpress.signals import Stopped, stoppable

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Measure how useful features are: train a scikit-learn classifier on them, and print its accuracy.

    shardpress classify                     features/, labels "y", or the only extra with labels
    shardpress classify --features compact --labels y --test more

For comparison, the same classifier is also trained on the raw columns, and on the same number of principal components
of the columns with the run's scaling, and of standardized columns (mean 0 and unit variance).
The classifier is a logistic regression on standardized columns, and is trained until it converges. Rows that do not fit
in the memory budget are read again in every pass (out of core). Without --test, the test rows are those that the run
has left out with --fit-on, or a fifth of the rows of each class.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--features",
        metavar="DIRECTORY",
        default="features",
        help="Output directory of a finished run. Default: %(default)s.",
    )
    parser.add_argument(
        "--test",
        metavar="DIRECTORY",
        help="Output directory with the features of test rows. Default: the rows that --fit-on has left out, or a "
        "fifth of the rows.",
    )
    parser.add_argument(
        "--labels",
        metavar="NAME",
        help="Extra dataset with the labels. Default: the --labels of the run, the first usable one of its --include, "
        "y, label, target or class, or the only usable one.",
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        type=whole_number,
        default=2000,
        help="Maximum number of passes over the training rows. Default: %(default)s.",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        type=byte_count,
        default=2 * 2**30,
        help="Host memory for rows, for example 4GiB. Default: 2GiB.",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Seed of all random numbers. Default: 0.")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Train the classifiers and print their accuracies."""
    from shardpress.runlog import Terminal

    logging.basicConfig(handlers=[Terminal()])
    with stoppable(), log_progress():
        try:
            _compare(options)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
    return 0


def _compare(options: argparse.Namespace) -> None:
    from shardpress.classify.compare import Options, compare_representations

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
