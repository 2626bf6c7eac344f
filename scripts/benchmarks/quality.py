"""Compare features with principal components and raw columns, on twelve kinds of data.

    run.py quality                                       every data set, default settings, three seeds
    run.py quality wine wide --seeds 1                   some of the data sets
    run.py quality fashion-64 -- --hidden none           with settings of scripts/extract.py

Each data set is split once; test rows are used neither for training nor for the choice of the best epoch. The error is
the mean squared error of the reconstruction of the test rows, in scaled columns. The probe is the accuracy of a
logistic regression on standardized columns, trained on at most 20,000 training rows. The benchmark prints a table with
one row for each data set, with means over the seeds, and appends each run to quality/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import h5py
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.benchmarks.harness import one_of, print_head, print_row, script
from shardpress.model.scaler import Scaler
from shardpress.report.summary import report_of
from shardpress.result.features import open_features
from shardpress.result.finished import Result, load_model

FOLDER = Path("quality")
TEST_SHARE = 0.2
MAX_PROBE_ROWS = 20_000
MAX_PCA_BYTES = 2**28

Rows = tuple[np.ndarray, np.ndarray]
"""Rows and their classes."""
Numbers = dict[str, float]

# Columns of the table: the numbers of a run, their titles, and their formats.
COLUMNS = {
    "error": ("error", ".3g"),
    "pca_error": ("components", ".3g"),
    "mean_error": ("mean", ".3g"),
    "probe": ("probe", ".3f"),
    "pca_probe": ("components", ".3f"),
    "raw_probe": ("raw", ".3f"),
    "epochs": ("epochs", ".0f"),
    "seconds": ("training, s", ".1f"),
    "rows_per_second": ("rows/s", ",.0f"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("sets", nargs="*", type=one_of(SETS), metavar="SET", help=f"some of {', '.join(SETS)} (default: all)")
    add("--seeds", type=int, default=3, help="training runs per data set (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    print_head("data", "settings", *(title for title, _ in COLUMNS.values()))
    settings = " ".join(options.settings) or "default"
    for name in options.sets or SETS:
        runs = [measure(name, seed, options.settings) for seed in range(options.seeds)]
        cells = [format(mean(run[key] for run in runs), spec) for key, (_, spec) in COLUMNS.items()]
        print_row(name, f"{settings} ({len(runs)})", *cells)
    return 0


def fashion() -> tuple[Rows, Rows]:
    """Return images of clothes, 28 x 28 bytes: 60,000 rows and 10,000 test rows."""
    found = []
    for name in ("fashion-mnist", "fashion-mnist-test"):
        script("make_data.py", name, "--output", FOLDER / name)
        shards = [load(path) for path in sorted((FOLDER / name).glob("*.h5"))]
        found.append((np.concatenate([X for X, _ in shards]), np.concatenate([y for _, y in shards])))
    train, test = found
    return train, test


def toy(load: Callable[..., Rows]) -> tuple[Rows, Rows]:
    """Return one of scikit-learn's data sets."""
    return split(*load(return_X_y=True))


def manifold() -> tuple[Rows, Rows]:
    """Return a curved surface of 8 latent variables in 784 columns, with a little noise: 20,000 rows."""
    rng = np.random.default_rng(1)
    latent = rng.uniform(-1, 1, (20_000, 8))
    inner = 1.2 * rng.standard_normal((8, 64))
    hidden = np.tanh(latent @ inner + rng.standard_normal(64) / 2)
    rows = np.tanh(hidden @ rng.standard_normal((64, 784)) / 8)
    centers = rng.uniform(-1, 1, (10, 8))
    classes = ((latent[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    return split((rows + 0.01 * rng.standard_normal(rows.shape)).astype(np.float32), classes)


def spectra() -> tuple[Rows, Rows]:
    """Return 4,096 columns around 1/2, from 40 factors of decreasing size and a sigmoid: 20,000 rows."""
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((20_000, 40))
    loadings = rng.standard_normal((40, 4096)) * 0.93 ** np.arange(40)[:, None]
    rows = 1 / (1 + np.exp(-(factors @ loadings) / 3)) + 0.02 * rng.standard_normal((20_000, 4096))
    return split(rows.astype(np.float32), (factors[:, :3] > 0) @ np.array([1, 2, 4]))


def tall() -> tuple[Rows, Rows]:
    """Return 8 columns with heavy tails and scales from 0.001 to 10,000, half of them around 1e9: 200,000 rows."""
    rng = np.random.default_rng(3)
    factors = rng.standard_t(3, (200_000, 4))
    rows = factors @ rng.standard_normal((4, 8)) + 0.3 * rng.standard_t(3, (200_000, 8))
    rows = rows * 10.0 ** np.arange(-3, 5) + 1e9 * (np.arange(8) % 2)
    return split(rows, (factors[:, :2] > 0) @ np.array([1, 2]))


def linear(n_rows: int, n_inputs: int, noise: float) -> tuple[Rows, Rows]:
    """Return rows of rank 20 with noise, for which principal components are optimal."""
    rng = np.random.default_rng(4)
    factors = rng.standard_normal((n_rows, 20))
    rows = (factors @ rng.standard_normal((20, n_inputs))).astype(np.float32)
    if noise:
        rows += noise * rng.standard_normal(rows.shape, dtype=np.float32)
    return split(rows, (factors[:, 0] > 0).astype(np.int64))


def split(rows: np.ndarray, classes: np.ndarray) -> tuple[Rows, Rows]:
    """Return training rows and test rows."""
    order = np.random.default_rng(0).permutation(len(rows))
    test, train = np.split(order, [int(TEST_SHARE * len(rows))])
    return (rows[train], classes[train]), (rows[test], classes[test])


SETS: dict[str, tuple[Callable[[], tuple[Rows, Rows]], int]] = {
    "fashion-16": (fashion, 16),
    "fashion-64": (fashion, 64),
    "fashion-128": (fashion, 128),
    "digits-8": (partial(toy, load_digits), 8),
    "digits-16": (partial(toy, load_digits), 16),
    "cancer": (partial(toy, load_breast_cancer), 15),
    "manifold": (manifold, 16),
    "spectra": (spectra, 64),
    "tall": (tall, 4),
    "wine": (partial(toy, load_wine), 6),
    "wide": (partial(linear, 200, 20_000, 0), 64),
    "wide-noisy": (partial(linear, 5_000, 10_000, 0.5), 64),
}
"""The function that makes each data set, and the number of features."""


def data_files(name: str) -> tuple[Path, Path]:
    """Return the files of training and test rows, and write them unless they exist."""
    paths = (FOLDER / name / "train.h5", FOLDER / name / "test.h5")
    if not paths[1].exists():
        make, _ = SETS[name]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, (rows, classes) in zip(paths, make(), strict=True):
            with h5py.File(path, "w") as file:
                file["X"] = rows
                file["y"] = classes
    return paths


def load(path: Path) -> Rows:
    """Read rows and classes."""
    with h5py.File(path) as file:
        return file["X"][:], file["y"][:]


def measure(name: str, seed: int, settings: Sequence[str]) -> Numbers:
    """Train on a data set, encode its test rows, store the numbers of the run and return them."""
    train_file, test_file = data_files(name)
    output = FOLDER / name / "features"
    test_output = FOLDER / name / "features-test"
    run_quietly = partial(script, "extract.py", "--quiet", "--restart")
    sizes = ("--n-features", SETS[name][1], "--seed", seed, "--memory-budget", "8GiB")
    run_quietly("--input", train_file, "--output", output, *sizes, *settings)
    run_quietly("--input", test_file, "--output", test_output, "--model", output)
    model = load_model(output)
    summary = report_of(Result.open(output)).summary
    _, classes = load(train_file)
    test_rows, test_classes = load(test_file)
    features = open_features(output).features.compute()
    test_features = open_features(test_output).features.compute()
    numbers: Numbers = {
        "error": squared_error(scale(test_rows, model.scaler), model.decode(test_features)),
        "probe": probe((features, classes), (test_features, test_classes)),
        "epochs": len(model.about.training.history),
        "seconds": summary.seconds["training"],
        "rows_per_second": summary.n_rows / summary.seconds["encoding"],
        **judge_baselines(name),
    }
    with (FOLDER / "results.jsonl").open("a") as file:
        file.write(json.dumps({"set": name, "settings": " ".join(settings), "seed": seed, **numbers}) + "\n")
    return numbers


def judge_baselines(name: str) -> Numbers:
    """Return errors and probes of principal components, the mean and the raw columns, which are computed only once."""
    path = FOLDER / name / "baselines.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    (rows, classes), (test_rows, test_classes) = (load(each) for each in data_files(name))
    scaler = Scaler(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))
    rows = scale(rows, scaler)
    test_rows = scale(test_rows, scaler)
    sample = rows[: MAX_PCA_BYTES // (4 * rows.shape[1])]
    n_components = min(SETS[name][1], len(sample))
    pca = PCA(n_components, svd_solver="randomized", iterated_power=7, random_state=0).fit(sample)
    test_codes = pca.transform(test_rows)
    numbers = {
        "pca_error": squared_error(test_rows, pca.inverse_transform(test_codes)),
        "mean_error": squared_error(test_rows, sample.mean(axis=0, dtype=np.float64)),
        "pca_probe": probe((pca.transform(rows), classes), (test_codes, test_classes)),
        "raw_probe": probe((rows, classes), (test_rows, test_classes)),
    }
    path.write_text(json.dumps(numbers))
    return numbers


def scale(rows: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Return scaled rows in float32. They are scaled block by block, because a scaler computes in float64."""
    return np.concatenate([scaler.transform(rows[i : i + 1024]) for i in range(0, len(rows), 1024)])


def squared_error(rows: np.ndarray, reconstruction: np.ndarray) -> float:
    """Return the mean squared error."""
    return float(np.mean(np.square(rows - reconstruction), dtype=np.float64))


def probe(train: Rows, test: Rows) -> float:
    """Return the accuracy of a logistic regression on standardized columns."""
    rows, classes = train
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_PROBE_ROWS]
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(rows[chosen], classes[chosen])
    return float(regression.score(*test))
