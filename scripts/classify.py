"""Train a scikit-learn classifier on features, out of core, and say how good they are.

    python scripts/classify.py                     features/, labels "y"
    python scripts/classify.py --features compact --labels y --test more

The same classifier is trained on the raw columns and on as many principal components, on the same rows. Without --test,
a fifth of the rows is held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import IncrementalPCA
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.errors import DataError, ShardpressError
from pipeline.features import Features, open_features
from pipeline.model import Model, load_model
from pipeline.shards import Block, open_shards, read

BLOCK_ROWS = 8192
HELD_OUT = 0.2
REMEMBERED_BYTES = 2**29  # of each representation, so that later passes need not make it again

Batches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Passes over a data set: each call gives (rows, labels) a block at a time."""


@dataclass(frozen=True)
class Split:
    """Training and test passes over one representation of the rows."""

    train: Batches
    test: Batches


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracies and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="features", help="output directory of extract.py (default: %(default)s)")
    parser.add_argument("--test", help="output directory with the features of test rows (default: hold out a fifth)")
    parser.add_argument("--labels", default="y", help="riding dataset with the labels (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=30, help="passes over the training rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        report(options.features, options.test, options.labels, options.passes, options.seed)
    except ShardpressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report(features: str, test: str | None, labels: str, passes: int, seed: int) -> None:
    """Train on three representations of the same rows and print how they compare."""
    train_set, model = open_features(features), load_model(features)
    test_set = open_features(test) if test else None
    classes = np.unique(_labels(train_set, labels).compute())
    if len(classes) < 2:
        raise DataError(f"features={features} dataset={labels}: one class only, expected two or more")
    encoded = _split(train_set, test_set, labels, seed, encoded_rows)
    raw = _split(train_set, test_set, labels, seed, lambda found: raw_rows(found, model))
    pca = fit_pca(raw.train, model.n_features)
    components = Split(_projected(raw.train, pca), _projected(raw.test, pca))
    accuracies = {
        f"{model.n_features} features": accuracy(encoded, classes, passes, seed),
        f"{model.n_features} principal components": accuracy(components, classes, passes, seed),
        f"{model.n_inputs} raw columns": accuracy(raw, classes, passes, seed),
    }
    held_out = f"the rows of {test}" if test else f"a held-out fifth of the rows of {features}"
    print(f"Accuracy of a logistic regression on {held_out}, {len(classes)} classes:")
    for name, value in accuracies.items():
        print(f"  {value:.4f}  on {name}")


# -- rows --------------------------------------------------------------------------------------------------------


def encoded_rows(found: Features) -> Iterator[np.ndarray]:
    """The features, a block at a time."""
    array = found.features.rechunk((BLOCK_ROWS, -1))
    for i in range(array.numblocks[0]):
        yield array.blocks[i].compute(scheduler="threads")


def raw_rows(found: Features, model: Model) -> Iterator[np.ndarray]:
    """The scaled rows that the features were made from, a block at a time."""
    for part in found.manifest["parts"]:
        (shard,) = open_shards([part["path"]], part["dataset"])
        for start in range(part["start"], part["stop"], BLOCK_ROWS):
            yield model.scaler.transform(read(Block(shard, start, min(start + BLOCK_ROWS, part["stop"]))))


def _labels(found: Features, name: str) -> Any:
    if name not in found.riders:
        raise DataError(
            f"no dataset {name!r} rides along, found {sorted(found.riders)}. Name the labels with --labels."
        )
    return found.riders[name]


def _split(
    train_set: Features, test_set: Features | None, labels: str, seed: int, rows_of: Callable[[Features], Iterator]
) -> Split:
    """The same rows and the same split whatever the representation."""

    def batches(found: Features, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        y, valid = _labels(found, labels).compute(), found.valid.compute()
        chosen = np.random.default_rng(seed).random(len(y)) < HELD_OUT
        keep = valid & (np.ones(len(y), dtype=bool) if test_set else chosen if part == "test" else ~chosen)
        start = 0
        for rows in rows_of(found):
            mask = keep[start : start + len(rows)]
            if mask.any():
                yield rows[mask], y[start : start + len(rows)][mask]
            start += len(rows)

    return Split(remembered(lambda: batches(train_set, "train")), lambda: batches(test_set or train_set, "test"))


def remembered(batches: Batches) -> Batches:
    """Give the same passes, kept in memory after the first one if they are small enough."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def passes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if kept:
            yield from kept
            return
        seen: list[tuple[np.ndarray, np.ndarray]] = []
        n_bytes = 0
        for rows, y in batches():
            n_bytes += rows.nbytes
            seen = [*seen, (rows, y)] if n_bytes <= REMEMBERED_BYTES else []
            yield rows, y
        if n_bytes <= REMEMBERED_BYTES:
            kept.extend(seen)

    return passes


# -- models ------------------------------------------------------------------------------------------------------


def fit_pca(train: Batches, n_components: int) -> IncrementalPCA:
    """Principal components in one pass."""
    pca = IncrementalPCA(n_components)
    for rows, _ in train():
        if len(rows) >= n_components:
            pca.partial_fit(rows)
    return pca


def _projected(batches: Batches, pca: IncrementalPCA) -> Batches:
    return remembered(lambda: ((pca.transform(rows).astype(np.float32, order="C"), y) for rows, y in batches()))


def accuracy(split: Split, classes: np.ndarray, passes: int, seed: int) -> float:
    """Share of test rows that a multinomial logistic regression on standardized columns gets right."""
    scaler = StandardScaler()
    for rows, _ in split.train():
        scaler.partial_fit(rows)
    # Without a hidden layer this is multinomial logistic regression, and it learns block by block. SGDClassifier does
    # too, but one class against the rest, which costs a hundredth of the accuracy here.
    classifier = MLPClassifier(hidden_layer_sizes=(), learning_rate_init=0.003, random_state=seed)
    rng = np.random.default_rng(seed)
    for _ in range(passes):
        for rows, y in split.train():
            order = rng.permutation(len(rows))
            classifier.partial_fit(scaler.transform(rows[order]), y[order], classes=classes)
    hits = [classifier.predict(scaler.transform(rows)) == y for rows, y in split.test()]
    return float(np.concatenate(hits).mean())


if __name__ == "__main__":
    sys.exit(main())
