"""Run one of the benchmarks of shardpress.

    make bench                                                    all races, after setting up the peers' environment
    .venv/bin/python scripts/benchmarks/run.py races step encode  some of the races
    .venv/bin/python scripts/benchmarks/run.py races --help       what a benchmark does, and its options

races      against what a user would use instead: JAX, PyTorch and scikit-learn
overheads  what the durable protocol and the checkpoints cost
scaling    what several processes cost and gain
simulate   the time of a run on 1 to 1,000 workers, from measured costs
quality    how good features are, compared with principal components and raw columns
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where any Python finds what the next line names
import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

# isort: split

import argparse
from collections.abc import Sequence
from importlib import import_module

NAMES = ("races", "overheads", "scaling", "simulate", "quality")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings: list[str] = []  # of scripts/extract.py
    if "--" in arguments:
        at = arguments.index("--")
        settings = arguments[at + 1 :]
        arguments = arguments[:at]
    name = arguments[0] if arguments else "--help"
    if name not in NAMES:
        parser = parser_of(__doc__)
        parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
        parser.parse_args([name])
    benchmark = import_module(f"scripts.benchmarks.{name}")
    parser = parser_of(benchmark.__doc__)
    benchmark.configure(parser)
    options = parser.parse_args(arguments[1:])
    options.settings = settings
    return int(benchmark.run(options))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with a page of examples."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


if __name__ == "__main__":
    sys.exit(main())
