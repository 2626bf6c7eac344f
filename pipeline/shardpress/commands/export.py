"""`shardpress export`: write the encoder or the features of a run for other programs."""

from __future__ import annotations

import argparse
import logging
import sys

from shardpress.base.signals import Stopped, stoppable
from shardpress.commands.parsing import log_progress

DESCRIPTION = """Write the encoder or the features of a finished run for other programs.

    shardpress export features --to npz           the encoder, for the NumPy loop in the README
    shardpress export features --to onnx          the encoder, for onnxruntime
    shardpress export features --to parquet       the features, for pandas, Polars, DuckDB and Spark
    shardpress export features --to hdf5          the features in one file, which is easy to move
    shardpress export features --to anndata       the features for scanpy, as obsm/X_shardpress
    shardpress export model.h5 --to onnx          the encoder in a copy of index.h5, or in another model file

The encoder takes unscaled rows, like those in shards. Repeat the command after an append: it replaces its own earlier
export of the same directory, and of Parquet files, it writes only new ones. Other files are never replaced.
"""

# The keys of `shardpress.interop.export.FORMATS`, which would take long to import.
_FORMATS = ("npz", "onnx", "parquet", "hdf5", "anndata")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        nargs="?",
        default="features",
        metavar="DIR",
        help="Output directory of a finished run, or a file with a model (for npz and onnx). Default: features.",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=_FORMATS,
        metavar="FORMAT",
        help=f"Format: {', '.join(_FORMATS)}. onnx and parquet need pip install 'shardpress[onnx]' or [parquet].",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="File to write, or folder for parquet. Default: encoder.npz, encoder.onnx, parquet, features.h5 or "
        "features.h5ad in DIR.",
    )
    parser.add_argument(
        "--as-of",
        metavar="N",
        help="Map the features to those of this generation, output directory or map file, as open_features(as_of=N).",
    )


def run(options: argparse.Namespace) -> int:
    """Write the file or folder, and print how to use it."""
    from shardpress.base.runlog import Terminal
    from shardpress.interop.export import export

    as_of = options.as_of
    if as_of is not None and as_of.isdecimal():
        as_of = int(as_of)
    logging.basicConfig(handlers=[Terminal()])
    with stoppable(), log_progress():
        try:
            print(export(options.directory, options.to, options.output, as_of))
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
    return 0
