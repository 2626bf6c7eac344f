"""Extract features from HDF5 shards: scan them, train an autoencoder, encode every row.

    python scripts/extract.py                                       read data/*.h5, write features/
    THEANO_FLAGS=device=cuda python scripts/extract.py              use a GPU
    python scripts/extract.py --input shards/ --n-features 32 --output compact
    python scripts/extract.py --model features --input new.h5 --output more     encode only, with a fitted model

Settings can also be given in a YAML file (--config) or in the environment (SHARDPRESS_EPOCHS=5). Flags take precedence
over the environment, and the environment over the file. report.html, next to the features, describes the run.

docs/training.md explains the settings of the training, docs/inputs.md lists the input files that can be read, and
docs/reliability.md describes what happens when a run is interrupted.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

from collections.abc import Sequence

from shardpress.base.signals import leave
from shardpress.cli import main as run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline and return the exit code."""
    return run_cli(__doc__ or "", argv)


if __name__ == "__main__":
    leave(main())
