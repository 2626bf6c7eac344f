"""Measure how good features are beside principal components and raw columns, on twelve kinds of data.

    run.py quality                                       every data set, default settings, three seeds
    run.py quality wine wide --seeds 1                   some of them
    run.py quality fashion-64 -- --hidden none           with settings of scripts/extract.py
    run.py quality --markdown                            what was measured so far, as a table

A data set is split once: no test row is seen by a training, nor by the choice of its best epoch. The error is the mean
squared one of the test rows' reconstruction, in scaled columns; the probe is the accuracy of a logistic regression on
standardized columns, trained on 20,000 training rows at most. Every run is a line in quality/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import h5py
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.features import open_features
from pipeline.model import load_model
from pipeline.scan.scaler import Scaler
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read
from pipeline.shards.shard import blocks
from scripts.benchmarks.common import ROOT, one_of

FOLDER = Path("quality")
TEST_SHARE = 0.2
MOST_PROBED = 20_000  # training rows of the probe
MOST_BYTES = 2**28  # of training rows that the components are fitted to

Rows = tuple[np.ndarray, np.ndarray]  # and their classes


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "sets", nargs="*", type=one_of(SETS), metavar="SET", help=f"of {', '.join(SETS)} (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print what was measured so far, and measure nothing")


def run(options: argparse.Namespace) -> int:
    """Measure, print each run as it ends, and return the exit code."""
    if options.markdown:
        print(markdown())
        return 0
    for name in options.sets or SETS:
        for seed in range(options.seeds):
            measure(name, seed, options.settings)
    return 0


# -- data ------------------------------------------------------------------------------------------------------------


def fashion() -> tuple[Rows, Rows]:
    """Images of clothes, 28 x 28 bytes: 60,000 rows and 10,000 test rows."""
    for name in ("fashion-mnist", "fashion-mnist-test"):
        subprocess.run([sys.executable, ROOT / "scripts/make_data.py", name, "--output", FOLDER / name], check=True)
    return _stored(FOLDER / "fashion-mnist"), _stored(FOLDER / "fashion-mnist-test")


def _stored(folder: Path) -> Rows:
    shards = open_shards([str(folder)])
    labels = [h5py.File(shard.path)["y"][:] for shard in shards]
    return np.concatenate([read(block) for block in blocks(shards, 65536)]), np.concatenate(labels)


def of_sklearn(load: Callable[..., Rows]) -> Callable[[], tuple[Rows, Rows]]:
    """One of scikit-learn's data sets."""
    return lambda: split(*load(return_X_y=True))


def manifold() -> tuple[Rows, Rows]:
    """A curved surface of 8 latent variables in 784 columns, with a little noise: 20,000 rows."""
    rng = np.random.default_rng(1)
    latent = rng.uniform(-1, 1, (20_000, 8))
    inner = 1.2 * rng.standard_normal((8, 64))
    rows = np.tanh(np.tanh(latent @ inner + rng.standard_normal(64) / 2) @ rng.standard_normal((64, 784)) / 8)
    centers = rng.uniform(-1, 1, (10, 8))
    classes = ((latent[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    return split((rows + 0.01 * rng.standard_normal(rows.shape)).astype(np.float32), classes)


def spectra() -> tuple[Rows, Rows]:
    """4,096 columns around 1/2 of 40 factors that fade, behind a sigmoid: 20,000 rows."""
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((20_000, 40))
    loadings = rng.standard_normal((40, 4096)) * 0.93 ** np.arange(40)[:, None]
    rows = 1 / (1 + np.exp(-(factors @ loadings) / 3)) + 0.02 * rng.standard_normal((20_000, 4096))
    return split(rows.astype(np.float32), (factors[:, :3] > 0) @ np.array([1, 2, 4]))


def tall() -> tuple[Rows, Rows]:
    """8 columns with heavy tails, of sizes from 0.001 to 10,000, half of them around 1e9: 200,000 rows."""
    rng = np.random.default_rng(3)
    factors = rng.standard_t(3, (200_000, 4))
    rows = factors @ rng.standard_normal((4, 8)) + 0.3 * rng.standard_t(3, (200_000, 8))
    rows = rows * 10.0 ** np.arange(-3, 5) + 1e9 * (np.arange(8) % 2)
    return split(rows, (factors[:, :2] > 0) @ np.array([1, 2]))


def linear(n_rows: int, n_inputs: int, noise: float) -> Callable[[], tuple[Rows, Rows]]:
    """Rows of rank 20, and noise: nothing can be better than principal components."""

    def made() -> tuple[Rows, Rows]:
        rng = np.random.default_rng(4)
        factors = rng.standard_normal((n_rows, 20))
        rows = (factors @ rng.standard_normal((20, n_inputs))).astype(np.float32)
        if noise:
            rows += noise * rng.standard_normal(rows.shape, dtype=np.float32)
        return split(rows, (factors[:, 0] > 0).astype(np.int64))

    return made


def split(rows: np.ndarray, classes: np.ndarray) -> tuple[Rows, Rows]:
    """Training rows and a fifth of all for the test."""
    order = np.random.default_rng(0).permutation(len(rows))
    test, train = np.split(order, [int(TEST_SHARE * len(rows))])
    return (rows[train], classes[train]), (rows[test], classes[test])


SETS: dict[str, tuple[Callable[[], tuple[Rows, Rows]], int]] = {
    "fashion-16": (fashion, 16),
    "fashion-64": (fashion, 64),
    "fashion-128": (fashion, 128),
    "digits-8": (of_sklearn(load_digits), 8),
    "digits-16": (of_sklearn(load_digits), 16),
    "cancer": (of_sklearn(load_breast_cancer), 15),
    "manifold": (manifold, 16),
    "spectra": (spectra, 64),
    "tall": (tall, 4),
    "wine": (of_sklearn(load_wine), 6),
    "wide": (linear(200, 20_000, 0), 64),
    "wide-noisy": (linear(5_000, 10_000, 0.5), 64),
}
"""Data sets by name, each with the features that its rows become."""


def stored(name: str) -> tuple[Path, Path]:
    """The files of a data set's training and test rows, written where they are not there yet."""
    paths = (FOLDER / name / "train.h5", FOLDER / name / "test.h5")
    if not paths[1].exists():
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, (rows, classes) in zip(paths, SETS[name][0](), strict=True):
            with h5py.File(path, "w") as file:
                file["X"] = rows
                file["y"] = classes
    return paths


# -- runs ------------------------------------------------------------------------------------------------------------


def measure(name: str, seed: int, settings: Sequence[str]) -> None:
    """Train on a data set, encode its test rows, and keep and print what came of it."""
    train, test = stored(name)
    outputs = (FOLDER / name / "features", FOLDER / name / "features-test")
    sizes = ["--n-features", str(SETS[name][1]), "--seed", str(seed), "--memory-budget", "8GiB", *settings]
    extract("--input", train, "--output", outputs[0], *sizes)
    extract("--input", test, "--output", outputs[1], "--model", outputs[0])
    report = json.loads((outputs[0] / "report.json").read_text())
    found = {
        "set": name,
        "settings": " ".join(settings),
        "seed": seed,
        **judged(train, test, *outputs),
        "epochs": len(report["training"]["history"]),
        "seconds": report["summary"]["seconds"]["training"],
        "rows_per_second": report["summary"]["n_rows"] / report["summary"]["seconds"]["encoding"],
        **beside(name),
    }
    with (FOLDER / "results.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(
        f"{name:12} {found['settings']} seed {seed}: error {found['error']:.5g} (components {found['pca_error']:.5g}, "
        f"mean {found['mean_error']:.5g}), probe {found['probe']:.4f} (components {found['pca_probe']:.4f}, raw "
        f"{found['raw_probe']:.4f}), {found['epochs']} epochs in {found['seconds']:.1f} s",
        flush=True,
    )


def extract(*flags: object) -> None:
    """Run scripts/extract.py without its output."""
    command = [sys.executable, ROOT / "scripts/extract.py", "--quiet", "--restart", *map(str, flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def judged(train: Path, test: Path, *outputs: Path) -> dict[str, float]:
    """Error and probe of a run's features."""
    model = load_model(outputs[0])
    features = [open_features(output).features.compute() for output in outputs]
    rows = scaled(test, model.scaler)
    return {"error": error_of(rows, model.decode(features[1])), "probe": probe(*features, train, test)}


def beside(name: str) -> dict[str, float]:
    """What principal components of the same width, the mean and the raw columns make of a data set; kept in a file."""
    path = FOLDER / name / "beside.json"
    if not path.exists():
        train, test = stored(name)
        with h5py.File(train) as file:
            stored_rows = file["X"][:]
        scaler = Scaler(stored_rows.min(axis=0).astype(np.float64), stored_rows.max(axis=0).astype(np.float64))
        seen = scaled(train, scaler)
        rows = scaled(test, scaler)
        few = seen[: MOST_BYTES // (4 * seen.shape[1])]
        pca = PCA(min(SETS[name][1], len(few)), svd_solver="randomized", iterated_power=7, random_state=0).fit(few)
        found = {
            "pca_error": error_of(rows, pca.inverse_transform(pca.transform(rows))),
            "mean_error": error_of(rows, few.mean(axis=0, dtype=np.float64)),
            "pca_probe": probe(pca.transform(seen), pca.transform(rows), train, test),
            "raw_probe": probe(seen, rows, train, test),
        }
        path.write_text(json.dumps(found))
    kept: dict[str, float] = json.loads(path.read_text())
    return kept


def scaled(path: Path, scaler: Scaler) -> np.ndarray:
    """A file's rows (n_rows, n_inputs), scaled: float32."""
    with h5py.File(path) as file:
        return np.concatenate([scaler.transform(file["X"][i : i + 1024]) for i in range(0, len(file["X"]), 1024)])


def error_of(rows: np.ndarray, found: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean(np.square(rows - found), dtype=np.float64))


def probe(seen: np.ndarray, rows: np.ndarray, train: Path, test: Path) -> float:
    """Accuracy of a logistic regression on standardized columns."""
    classes = [h5py.File(path)["y"][:] for path in (train, test)]
    few = np.random.default_rng(0).permutation(len(seen))[:MOST_PROBED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(seen[few], classes[0][few])
    return float(fitted.score(rows, classes[1]))


# -- tables ----------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """All runs as a table: means over the seeds, one line for each data set and settings."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for text in (FOLDER / "results.jsonl").read_text().splitlines():
        line = json.loads(text)
        runs.setdefault((line["settings"], line["set"]), []).append(line)
    head = [
        "| data | settings | error | components | mean | probe | components | raw | training | rows/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(_line(name, settings, lines) for (settings, name), lines in runs.items())])


def _line(name: str, settings: str, lines: Sequence[dict[str, Any]]) -> str:
    means = {key: mean(line[key] for line in lines) for key, value in lines[0].items() if isinstance(value, float)}
    errors = " | ".join(f"{means[key]:.3g}" for key in ("error", "pca_error", "mean_error"))
    probes = " | ".join(f"{means[key]:.3f}" for key in ("probe", "pca_probe", "raw_probe"))
    speed = f"{means['seconds']:.1f} s | {means['rows_per_second']:,.0f}"
    return f"| {name} | {settings or 'default'} ({len(lines)}) | {errors} | {probes} | {speed} |"
