"""Reproduce the reference run of the model on two noisy donuts, and plot it.

    python scripts/make_data.py donuts               write the input
    python scripts/reference.py                      train 10,000 epochs; print a table, write reference/reference.png
    THEANO_FLAGS=device=opencl0:0 python scripts/reference.py --epochs 600

The script runs `scripts/extract.py` with `--preset reference`, and with all rows in one minibatch.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from shardpress.base.errors import NoInput, ShardpressError
from shardpress.cli import main as extract
from shardpress.hdf5.shard import Block
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read

# Costs of the published run of this model. Its data are not available; ours are similar.
PUBLISHED = {
    0: 0.4269,
    500: 8.602e-4,
    1000: 3.510e-4,
    2000: 1.835e-4,
    4000: 1.328e-4,
    6000: 1.240e-4,
    8000: 1.216e-4,
    9500: 1.208e-4,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and plot our costs and the published costs, and return the exit code."""
    options = parse(argv)
    try:
        code = run(options)
    except ShardpressError as error:
        hint = " scripts/make_data.py donuts writes it." if isinstance(error, NoInput) else ""
        print(f"{type(error).__name__}: {error}{hint}", file=sys.stderr)
        return error.exit_code
    if code:
        return code
    output = Path(options.output)
    history = load_model(output).about.training.history
    costs = [epoch.cost for epoch in history]
    print(table(costs))
    plot(output, options.data, costs)
    print(f"The plot is in {output / 'reference.png'}.")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="data/donuts", help="directory of the donuts (default: %(default)s)")
    parser.add_argument("--output", default="reference", help="directory of features and plot (default: %(default)s)")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """Run the pipeline with all rows in one minibatch."""
    n_rows = sum(shard.n_rows for shard in open_shards([options.data]))
    sizes = ["--batch-size", str(n_rows), "--epochs", str(options.epochs), "--seed", str(options.seed)]
    preset = ["--preset", "reference"]
    return extract("", ["--input", options.data, "--output", options.output, "--overwrite", *preset, *sizes])


def table(costs: Sequence[float]) -> str:
    """Return a table of our costs and the published costs, at the epochs with a published cost."""
    lines = [f"{'epoch':>6}  {'published':>10}  {'ours':>10}"]
    for epoch, published in PUBLISHED.items():
        if epoch < len(costs):
            lines.append(f"{epoch:>6}  {published:>10.4g}  {costs[epoch]:>10.4g}")
    return "\n".join(lines)


def plot(output: Path, data: str, costs: Sequence[float]) -> None:
    """Plot input, code and reconstruction in the colours of the labels, and the cost over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    features = open_features(output)
    model = load_model(output)
    code = features.features.compute()
    labels = features.extras["y"].compute()
    rows = np.concatenate([read(Block(shard, 0, shard.n_rows)) for shard in open_shards([data])])
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 9), layout="constrained")
    _scatter(axes[0, 0], model.scaler.transform(rows), labels, "Input (columns 0 and 1, scaled)")
    _scatter(axes[0, 1], code, labels, "Code (2 features)")
    _scatter(axes[1, 0], model.decode(code), labels, "Reconstruction (columns 0 and 1)")
    _draw_costs(axes[1, 1], costs)
    figure.savefig(output / "reference.png", dpi=120)
    pyplot.close(figure)


def _draw_costs(axes: Any, costs: Sequence[float]) -> None:
    published = {epoch: cost for epoch, cost in PUBLISHED.items() if epoch < len(costs)}
    axes.semilogy(costs, label="ours")
    axes.semilogy(list(published), list(published.values()), "o", label="published run, its own data")
    axes.set(title="Cost", xlabel="epoch", ylabel="mean squared error")
    axes.legend()


def _scatter(axes: Any, points: np.ndarray, labels: np.ndarray, title: str) -> None:
    for label in np.unique(labels):
        chosen = labels == label
        axes.scatter(points[chosen, 0], points[chosen, 1], s=6, alpha=0.6, label=f"y = {label}")
    axes.set(title=title)
    axes.legend()


if __name__ == "__main__":
    sys.exit(main())
