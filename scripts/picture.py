"""Draw images, their features, and their reconstruction from the features.

    make run
    python scripts/picture.py            sample/fashion-mnist/picture.png, one image of each label

The rows must be square images with a label y. `--features`, `--input` and `--output` choose other files.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

import argparse
import math
from collections.abc import Sequence

import numpy as np

from shardpress.base.errors import ShardpressError
from shardpress.hdf5.shard import block_of, first_rows
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read

TITLES = ("rows: {} columns", "{} features of each row", "rows reconstructed from their features")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--features", default="sample/fashion-mnist/features", help="output of a finished run (default: %(default)s)"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        default=["data/fashion-mnist-train-*.h5"],
        help="input files of that run (default: %(default)s)",
    )
    parser.add_argument("--output", default="sample/fashion-mnist/picture.png", help="PNG file (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        lines = images(options.features, options.input)
    except ShardpressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    draw(lines, options.output)
    print(f"The picture is in {options.output}.")
    return 0


def images(features: str, patterns: Sequence[str]) -> list[np.ndarray]:
    """Return the scaled first row of each label, its features and its reconstruction, as squares."""
    found = open_features(features)
    model = load_model(features)
    shards = open_shards(patterns)
    _, numbers = np.unique(found.extras["y"].compute(), return_index=True)
    firsts = first_rows(shards)
    rows = np.concatenate([read(block_of(shards, firsts, number, number + 1)) for number in numbers.tolist()])
    codes = found.features[numbers].compute()
    reconstruction = model.decode(codes)
    return [square(line) for line in (model.scaler.transform(rows), codes, reconstruction)]


def square(rows: np.ndarray) -> np.ndarray:
    """Return each row as a square image, without the last columns if needed."""
    height = math.isqrt(rows.shape[1])
    return rows[:, : height * height].reshape(len(rows), height, height)


def draw(lines: Sequence[np.ndarray], path: str) -> None:
    """Draw the lines of images, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n_columns = [lines[0][0].size, lines[1][0].size, 0]
    figure = pyplot.figure(figsize=(len(lines[0]), 3.9), layout="constrained")
    for part, line, title, n in zip(figure.subfigures(3, 1), lines, TITLES, n_columns, strict=True):
        part.suptitle(title.format(n), x=0.005, horizontalalignment="left", fontsize=11)
        for axis, image in zip(part.subplots(1, len(line), squeeze=False)[0], line, strict=True):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
