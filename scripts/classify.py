"""Train a scikit-learn classifier on features, and print its accuracy.

    python scripts/classify.py                     features/, labels "y", or the only extra with labels
    python scripts/classify.py --features compact --labels y --test more

`shardpress classify` does the same. The classifier is a logistic regression on standardized columns, trained until it
converges. For comparison it is also trained on the raw columns and on the same number of principal components of the
same rows. Rows that do not fit in the memory budget are read in batches. Without --test, a fifth of the rows of every
class is held out.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

from collections.abc import Sequence

from shardpress.commands.table import run_script
from shardpress.signals import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracies and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_script("classify", arguments, "classify.py", __doc__ or "")


if __name__ == "__main__":
    leave(main())
