"""`shardpress run`: the whole night."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]

_EXAMPLES = """Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    shardpress run                                         reads data/*.h5, writes features/
    THEANO_FLAGS=device=cuda shardpress run                the same on a GPU
    shardpress run --input shards/ --n-features 32 --output compact
    shardpress run --dry-run                               what it would take, without a run
    shardpress run --model features --input new.h5 --output more     encodes only, with a fitted model

A setting may also stand in a YAML file (--config) or in the environment (SHARDPRESS_EPOCHS=5); flags win over the
environment, and the environment over the file. What the run did stands in report.json beside the features.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the pipeline and return the exit code."""
    if "--dry-run" in arguments:
        from pipeline.commands.plan import main as plan

        return plan(arguments)
    import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

    # isort: split
    from pipeline.cli import main as run_cli

    return run_cli(_EXAMPLES, arguments, program="shardpress run")
