"""Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    python scripts/extract.py                                       reads data/*.h5, writes features/
    THEANO_FLAGS=device=cuda python scripts/extract.py              the same on a GPU
    python scripts/extract.py --input shards/ --n-features 32 --output compact
    python scripts/extract.py --model features --input new.h5 --output more     encodes only, with a fitted model

A setting may also stand in a YAML file (--config) or in the environment (SHARDPRESS_EPOCHS=5); flags win over the
environment, and the environment over the file. What the run did stands in report.json beside the features.

docs/training.md says why the defaults are what they are, docs/inputs.md which files can be read and how to write them,
docs/reliability.md what is promised when a run is interrupted.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where any Python finds what the next line names
import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

# isort: split

from collections.abc import Sequence

from pipeline.cli import main as run_cli
from pipeline.signals import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline and return the exit code."""
    return run_cli(__doc__ or "", argv)


if __name__ == "__main__":
    leave(main())
