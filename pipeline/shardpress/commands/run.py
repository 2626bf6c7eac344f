"""`shardpress run`: scan, train and encode."""

from __future__ import annotations

import argparse

DESCRIPTION = """Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    shardpress run                                         read data/*.h5, write features/
    THEANO_FLAGS=device=cuda shardpress run                use a GPU
    shardpress run --input shards/ --n-features 32 --output compact
    shardpress run --dry-run                               estimate time and memory, like shardpress plan
    shardpress run --model features --input new.h5 --output more     encode with an existing model
    shardpress run --append                                encode new files, and add them to features/
    shardpress run --retrain                               train again on all files, and keep the earlier features

An interrupted run resumes when the same command is run again. Settings can also be given in a YAML file (--config) and
in environment variables (SHARDPRESS_EPOCHS=5); flags override variables, and variables override the file. report.html
in the output directory describes the run. This page lists the common settings, and --help-all lists all of them.
"""


def run(options: argparse.Namespace) -> int:
    """Run the pipeline. ``--dry-run`` is another name of `shardpress plan`."""
    if "--dry-run" in options.arguments:
        from shardpress.commands.plan import run as plan

        return plan(options)
    import shardpress.setup.installed  # noqa: F401  it exits with a message if no run is possible here

    # isort: split
    from shardpress.cli import main

    return main(DESCRIPTION, options.arguments, program="shardpress run")
