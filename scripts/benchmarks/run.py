"""Run one of the benchmarks of shardpress.

    make bench                                                      all comparisons, after setting up the environment
    .venv/bin/python scripts/benchmarks/run.py compare step encode  some of the comparisons
    .venv/bin/python scripts/benchmarks/run.py compare --help       description and options of a benchmark

compare    speed, compared with JAX, PyTorch and scikit-learn
overheads  costs of the durable protocol and of checkpoints
append     cost of adding files to finished results
scaling    costs and gains of several processes
simulate   predicted time of a run on 1 to 1,000 workers, from measured costs
quality    error and accuracy of features, compared with principal components and raw columns
fields     accuracy of three classifiers on images, tables, counts, spectra and time series
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[2] / name) for name in ("", "pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

import argparse
from collections.abc import Sequence
from importlib import import_module

NAMES = ("compare", "overheads", "append", "scaling", "simulate", "quality", "fields")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings: list[str] = []  # arguments of scripts/extract.py
    if "--" in arguments:
        at = arguments.index("--")
        settings = arguments[at + 1 :]
        arguments = arguments[:at]
    name = arguments.pop(0) if arguments else "--help"
    if name not in NAMES:
        print(__doc__)
        return 0 if name in ("-h", "--help") else 2
    benchmark = import_module(f"scripts.benchmarks.{name}")
    parser = argparse.ArgumentParser(
        f"run.py {name}", description=benchmark.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmark.configure(parser)
    options = parser.parse_args(arguments)
    options.settings = settings
    return int(benchmark.run(options))


if __name__ == "__main__":
    sys.exit(main())
