"""Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    python scripts/extract.py                                       reads data/*.h5, writes features/
    THEANO_FLAGS=device=cuda python scripts/extract.py              the same on a GPU
    python scripts/extract.py --input shards/ --n-features 32 --output compact
    python scripts/extract.py --model features --input new.h5 --output more     encodes only, with a fitted model

A setting may also stand in a YAML file (--config) or in the environment (SHARDPRESS_EPOCHS=5); flags win over the
environment, and the environment over the file. report.json, next to the features, describes the run.

docs/training.md says why the defaults are what they are, docs/inputs.md which files can be read and how to write them,
docs/reliability.md what is promised when a run is interrupted.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that any Python finds the next module
import pipeline.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

from collections.abc import Sequence

from pipeline.cli import main as run_cli
from pipeline.signals import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline and return the exit code."""
    return run_cli(__doc__ or "", argv)


if __name__ == "__main__":
    leave(main())
