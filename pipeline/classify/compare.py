"""A classifier on three representations of the rows of finished runs, and how they compare."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.classify.classifiers import Outcome, compare
from pipeline.classify.rows import LEFT_OUT, Piece, Rows, classes_of, held_out, labels_of, pieces, present
from pipeline.errors import DataError, counted, shown
from pipeline.features import Features, open_features
from pipeline.model import Model, load_model

__all__ = ["Asked", "Comparison", "compared"]

log = logging.getLogger(__name__)

_PIECES_A_BUDGET = 128


@dataclass(frozen=True)
class Asked:
    """What is to be compared.

    Attributes
    ----------
    features : str
        Output directory of a run.
    test : str or None
        The same of rows that test; with none, a fifth of the rows of every class is held out.
    labels : str
        Name of the riding dataset with the labels.
    passes : int
        Over the training rows, at most.
    memory_budget : int
        Bytes of host memory for rows.
    """

    features: str
    test: str | None
    labels: str
    passes: int
    memory_budget: int
    seed: int

    @property
    def directories(self) -> list[str]:
        """Of one or two runs."""
        return [self.features, *filter(None, [self.test])]


@dataclass(frozen=True)
class Comparison:
    """How a classifier fares on each representation.

    Attributes
    ----------
    outcomes : dict of str to Outcome
        By what each representation is called.
    tested_on : str
        Which rows.
    n_bad, n_unlabelled : int
        Rows that took no part.
    """

    outcomes: dict[str, Outcome]
    tested_on: str
    n_classes: int
    n_train: int
    n_bad: int
    n_unlabelled: int

    def __str__(self) -> str:
        head = f"Accuracy of a logistic regression on {self.tested_on}, {self.n_classes} classes, "
        lines = [f"{head}{self.n_train} training rows:"]
        for name, found in self.outcomes.items():
            doubt = "" if found.converged else f" (not converged: raise --passes from {found.n_passes})"
            lines.append(f"  {found.accuracy:.4f}  on {name}{doubt}")
        if self.n_bad or self.n_unlabelled:
            left_out = f"{counted(self.n_bad, 'bad row')}, {counted(self.n_unlabelled, 'row')} without a label"
            lines.append(f"Left out: {left_out}.")
        return "\n".join(lines)


def compared(asked: Asked) -> Comparison:
    """Train on three representations of the same rows.

    Raises
    ------
    NoInput
        When a directory holds no finished run.
    DataError
        For labels that are none, features of another model, or rows that have changed.
    """
    runs, model = [_open(directory) for directory in asked.directories], load_model(asked.features)
    for directory, run in zip(asked.directories, runs, strict=True):
        _check_model(directory, run, model, asked.features)
    codes, n_first = _codes(asked, runs)
    valid = np.concatenate([run.valid.compute() for run in runs])
    n_bad, n_unlabelled = int((~valid).sum()), int((codes[valid] == LEFT_OUT).sum())
    codes[~valid] = LEFT_OUT
    is_test = np.arange(len(codes)) >= n_first if asked.test else held_out(codes, asked.seed)
    n_classes = _check_classes(asked, codes, is_test)
    rows = Rows(_cut(asked, runs, model, n_first), model, codes, is_test)
    outcomes = compare(rows, int(codes.max()) + 1, asked.memory_budget, asked.passes, asked.seed)
    where = f"the {len(rows.test)} rows of {asked.test}" if asked.test else f"{len(rows.test)} held-out rows"
    return Comparison(outcomes, where, n_classes, len(rows.train), n_bad, n_unlabelled)


def _codes(asked: Asked, runs: Sequence[Features]) -> tuple[np.ndarray, int]:
    """Each row's class, LEFT_OUT without a label; and how many rows the first run has."""
    labels = [labels_of(directory, run, asked.labels) for directory, run in zip(asked.directories, runs, strict=True)]
    masks = [present(run, asked.labels) for run in runs]
    codes = np.full(sum(map(len, labels)), LEFT_OUT, dtype=np.int64)
    _, codes[np.concatenate(masks)] = classes_of([y[mask] for y, mask in zip(labels, masks, strict=True)])
    return codes, len(labels[0])


def _cut(asked: Asked, runs: Sequence[Features], model: Model, n_first: int) -> tuple[Piece, ...]:
    most_bytes = asked.memory_budget // _PIECES_A_BUDGET
    cut = pieces(runs[0], asked.features, model.columns, most_bytes)
    for directory, run in zip(asked.directories[1:], runs[1:], strict=True):
        cut += pieces(run, directory, model.columns, most_bytes, n_first)
    return cut


def _open(directory: str) -> Features:
    if Path(directory).is_file():
        raise DataError(
            f"features={shown(directory)}: a file, expected the output directory of a finished run, whose manifest "
            "says where the raw rows lie"
        )
    return open_features(directory)


def _check_model(directory: str, run: Features, model: Model, features: str) -> None:
    if run.manifest["model"] != model.fingerprint:
        raise DataError(
            f"features={shown(directory)}: {run.features.shape[1]} features of another model than that of "
            f"features={shown(features)}, which gives {model.n_features}. Encode them with shardpress run --model "
            f"{shown(features)}."
        )


def _check_classes(asked: Asked, codes: np.ndarray, is_test: np.ndarray) -> int:
    """How many classes there are to learn."""
    where = f"features={shown(asked.features)} dataset={asked.labels}"
    train = codes[(codes != LEFT_OUT) & ~is_test]
    n_classes, n_test = len(np.unique(train)), int(((codes != LEFT_OUT) & is_test).sum())
    if n_classes < 2:
        raise DataError(f"{where}: {('no', 'one')[n_classes]} class only among the training rows, expected two or more")
    if 2 * n_classes > len(train):
        raise DataError(
            f"{where}: {n_classes} different values in {len(train)} training rows, expected a class to have a few "
            "rows. Name the labels with --labels."
        )
    if not n_test:
        raise DataError(f"features={shown(asked.test)} dataset={asked.labels}: no row with a label, expected some")
    if len(np.unique(codes[codes != LEFT_OUT])) > n_classes:
        log.warning("some test rows have labels that no training row has; they count as mistakes")
    return n_classes
