"""`shardpress run`: scan, train and encode."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    shardpress run                                         reads data/*.h5, writes features/
    THEANO_FLAGS=device=cuda shardpress run                the same on a GPU
    shardpress run --input shards/ --n-features 32 --output compact
    shardpress run --dry-run                               what it would take, without a run
    shardpress run --model features --input new.h5 --output more     encodes only, with a fitted model

A setting may also stand in a YAML file (--config) or in the environment (SHARDPRESS_EPOCHS=5); flags win over the
environment, and the environment over the file. What the run did stands in report.json beside the features.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the settings and ``--dry-run``."""
    from pipeline.settings.flags import add_settings

    add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help="what it would take, without a run")


def run(options: argparse.Namespace) -> int:
    """Run the pipeline."""
    if "--dry-run" in options.arguments:
        from pipeline.commands.plan import run as plan

        return plan(options)
    import pipeline.installed  # noqa: F401  it exits with a message if no run is possible here

    # isort: split
    from pipeline.cli import main

    return main(DESCRIPTION, options.arguments, program="shardpress run")
