"""Compare features with principal components, random features and raw columns on data of five fields.

    run.py fields                                  every data set, five splits
    run.py fields letter cells --seeds 2           some of the data sets

The data are images, tables, counts, spectra, time series, bits and windows of sensors (`datasets`). Each seed holds out
another third of the rows (of weather: other weeks). Features are computed with the default settings, with the classes
as the target, with the hidden layer as features (unless the rows are too few for it) and, if the scan prints a hint,
with the flags of the hint. All representations have the same width, except for the hidden layer, the raw columns and
the 256 random rectified linear features. Missing values are replaced by medians. For time series, there are also
features and components of the convolutions in docs/recipes.md.

The probes are a logistic regression on standardized columns, 5 nearest neighbours, and gradient boosting, trained on at
most 6,000, 6,000 and 2,000 rows. The table has the mean accuracy of the three probes, and the standard deviation over
the splits. Each run is appended to fields/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.base import TransformerMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from scripts.benchmarks.datasets import FOLDER, SETS, download, load
from scripts.benchmarks.harness import one_of, print_head, print_row
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.settings.defaults import ROWS_PER_UNIT

RECIPES = Path(__file__).parents[2] / "docs/recipes.md"
MAX_FEATURES = 64
N_RANDOM = 256
PROBES = ("logistic regression", "nearest neighbours", "boosting")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("sets", nargs="*", type=one_of(SETS), metavar="SET", help=f"some of {', '.join(SETS)} (default: all)")
    add("--seeds", type=int, default=5, help="splits per data set (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    download()
    print_head("data", "rows", "columns", "width", "representation", *PROBES, "fit, s")
    for name in options.sets or SETS:
        rows, classes, *groups = load(name)
        rows = rows.reshape(len(rows), -1)
        width = min(MAX_FEATURES, max(2, rows.shape[1] // 2))
        splits = _splits(rows, classes, groups, options.seeds)
        for title, results in _results(name, rows, classes, splits).items():
            scores = np.array([scores for scores, _ in results])
            cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(scores.mean(0), scores.std(0), strict=True)]
            seconds = np.mean([seconds for _, seconds in results])
            print_row(name, len(rows), rows.shape[1], width, title, *cells, f"{seconds:.1f}")
    return 0


SERIES = ("OSULeaf", "ItalyPowerDemand", "ACSF1")
HINTED = {
    "particles": {"impute": "median"},
    "letter": {"n_features": 15},
    "segment": {"n_features": 18},
    "vehicle": {"n_features": 17},
}
"""Parameters of `TiedAutoencoder` that correspond to the flags of the scan's hints, or of docs/recipes.md."""


def _splits(
    rows: np.ndarray, classes: np.ndarray, groups: list[np.ndarray], n_seeds: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers of the training rows and of the test rows for each seed."""
    for seed in range(n_seeds):
        if groups:
            splitter = GroupShuffleSplit(1, test_size=1 / 3, random_state=seed)
            yield next(splitter.split(rows, classes, *groups))
        else:
            numbers = np.arange(len(rows))
            yield train_test_split(numbers, test_size=1 / 3, random_state=seed, stratify=classes)


# -- measurement ---------------------------------------------------------------------------------------------------


def _results(
    name: str, rows: np.ndarray, classes: np.ndarray, splits: Iterator[tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[tuple[list[float], float]]]:
    """Return the accuracy of each probe and the seconds of each fit, by representation and split."""
    found: dict[str, list[tuple[list[float], float]]] = {}
    for seed, (train_numbers, test_numbers) in enumerate(splits):
        train = rows[train_numbers]
        test = rows[test_numbers]
        train_classes = classes[train_numbers]
        test_classes = classes[test_numbers]
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
    impute = "median" if np.isnan(train).any() else None
    fill = SimpleImputer(strategy="median")
    features = partial(TiedAutoencoder, n_features=width, impute=impute, random_state=seed)
    yield "features", features()
    yield "features, target", features(target_weight=1.0)
    if _has_hidden_layer(train):
        yield "hidden layer", features(output_layer="hidden")
    if name in HINTED:
        hinted = TiedAutoencoder(**({"n_features": width, "random_state": seed} | HINTED[name]))
        replaced = FunctionTransformer(_without_sentinels) if name == "particles" else FunctionTransformer()
        yield "features, hinted flags", make_pipeline(replaced, hinted)
    random = FunctionTransformer(partial(_random_features, seed))
    yield "components, [0, 1]", make_pipeline(fill, MinMaxScaler(), pca)
    yield "components, standardized", make_pipeline(fill, StandardScaler(), pca)
    yield f"{N_RANDOM} random", make_pipeline(fill, StandardScaler(), random)
    yield "raw columns", make_pipeline(fill, StandardScaler())
    if name in SERIES:
        convolve = FunctionTransformer(_convolve())
        few = partial(TiedAutoencoder, n_features=width, validation_fraction=0, random_state=seed)
        yield "convolutions, features", make_pipeline(convolve, few())
        yield "convolutions, features, target", make_pipeline(convolve, few(target_weight=1.0))
        yield "convolutions, components, standardized", make_pipeline(convolve, StandardScaler(), pca)
        yield "convolutions", make_pipeline(convolve, StandardScaler())


def _convolve() -> Callable[[np.ndarray], np.ndarray]:
    """Return the function in docs/recipes.md."""
    (code,) = re.findall(r"^def convolve.*?^    return .*?$", RECIPES.read_text(), re.M | re.S)
    names = {"np": np}
    exec(code, names)
    return names["convolve"]


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
