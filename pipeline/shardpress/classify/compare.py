"""Comparison of four representations of the rows of finished runs, by the accuracy of a classifier."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.classify.choice import label_name
from shardpress.classify.classifiers import Outcome, compare
from shardpress.classify.rows import LEFT_OUT, Piece, Rows, classes_of, cut_into_pieces, has_label, held_out, labels_of
from shardpress.errors import DataError, printable, quantity
from shardpress.features import Features, open_features
from shardpress.model import Model, load_model
from shardpress.rowfacts import trained_rows

__all__ = ["Comparison", "Options", "compare_representations"]

log = logging.getLogger(__name__)

_PIECES_PER_BUDGET = 128


@dataclass(frozen=True)
class Options:
    """Options of a comparison.

    Attributes
    ----------
    features : str
        Output directory of a run.
    test : str or None
        Output directory with the test rows. By default, the test rows are those that ``--fit-on`` has left out or, if
        the run has used all rows, a fifth of the rows of each class.
    labels : str or None
        Name of the extra dataset with the labels. By default, it is chosen by `label_name`.
    passes : int
        Maximum number of passes over the training rows.
    memory_budget : int
        Host memory for rows, in bytes.
    seed : int
        Seed of all random numbers.
    """

    features: str
    test: str | None
    labels: str | None
    passes: int
    memory_budget: int
    seed: int

    @property
    def directories(self) -> list[str]:
        """Output directories of the one or two runs."""
        if self.test:
            return [self.features, self.test]
        return [self.features]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes
    ----------
    outcomes : dict of str to Outcome
        Outcome for each representation, by its name.
    labels : str
        Name of the extra dataset with the labels.
    tested_on : str
        Description of the test rows.
    n_classes : int
        Number of classes in the training rows.
    n_train : int
        Number of training rows.
    n_bad, n_unlabelled : int
        Numbers of rows that were excluded because they are bad, or because they have no label.
    """

    outcomes: dict[str, Outcome]
    labels: str
    tested_on: str
    n_classes: int
    n_train: int
    n_bad: int
    n_unlabelled: int

    def __str__(self) -> str:
        head = f"Accuracy of a logistic regression on {self.tested_on}, {self.n_classes} classes of {self.labels}, "
        lines = [f"{head}{self.n_train} training rows:"]
        for name, outcome in self.outcomes.items():
            note = ""
            if not outcome.converged:
                note = f" (not converged in {outcome.n_passes} passes: raise --passes)"
            lines.append(f"  {outcome.accuracy:.4f}  on {name}{note}")
        if self.n_bad or self.n_unlabelled:
            excluded = f"{quantity(self.n_bad, 'bad row')}, {quantity(self.n_unlabelled, 'row')} without a label"
            lines.append(f"Excluded: {excluded}.")
        return "\n".join(lines)


def compare_representations(options: Options) -> Comparison:
    """Train a classifier on four representations of the same rows.

    Raises
    ------
    NoInput
        If a directory contains no finished run.
    DataError
        If the labels cannot be used, if the features were computed with another model, or if input rows have changed.
    """
    model, runs = _open_runs(options)
    name = label_name(options.features, runs[0], options.labels)
    options = replace(options, labels=name)  # for messages
    codes = _codes(options, runs, name)
    is_valid = np.concatenate([run.valid.compute() for run in runs])
    n_unlabelled = int((codes[is_valid] == LEFT_OUT).sum())
    codes[~is_valid] = LEFT_OUT
    is_test, test_rows_in_words = _test_rows(options, runs, codes)
    n_classes = _check_classes(options, codes, is_test)
    rows = Rows(_pieces(options, runs, model), model, codes, is_test)
    return Comparison(
        outcomes=compare(rows, int(codes.max()) + 1, options.memory_budget, options.passes, options.seed),
        labels=name,
        tested_on=test_rows_in_words.format(n=len(rows.test)),
        n_classes=n_classes,
        n_train=len(rows.train),
        n_bad=int((~is_valid).sum()),
        n_unlabelled=n_unlabelled,
    )


def _open_runs(options: Options) -> tuple[Model, list[Features]]:
    """Open the runs and their model. Raise `DataError` if the runs have different models."""
    runs = [_open(directory) for directory in options.directories]
    model = load_model(options.features)
    for directory, run in zip(options.directories, runs, strict=True):
        _check_model(directory, run, model, options.features)
    return model, runs


def _test_rows(options: Options, runs: Sequence[Features], codes: np.ndarray) -> tuple[np.ndarray, str]:
    """Return a mask of the test rows, bool (n_rows,), and a description with their number as ``{n}``.

    Raises
    ------
    DataError
        If test rows have trained the features with their targets, or if this is unknown.
    """
    if options.test:
        _check_test_run(options.test, options.features, runs)
        n_train = len(runs[0].valid)
        return np.arange(len(codes)) >= n_train, f"the {{n}} rows of {_escaped(options.test)}"
    run = runs[0]
    fit_on = run.manifest["config"].get("fit_on")
    has_targets = run.manifest.get("target") is not None
    if fit_on is None and not has_targets:
        return held_out(codes, options.seed), "{n} held-out rows"
    trained = trained_rows(run)
    if trained.rows is not None and (codes[~trained.rows] != LEFT_OUT).any():
        if fit_on is None:
            return ~trained.rows, "the {n} rows that were appended after the training"
        return ~trained.rows, f"the {{n}} rows that --fit-on '{_escaped(fit_on)}' has left out"
    if has_targets:
        raise _no_test_rows(options.features, run, trained.reason)
    return held_out(codes, options.seed), "{n} held-out rows"


def _check_test_run(directory: str, features: str, runs: Sequence[Features]) -> None:
    """Raise `DataError` if the test rows have trained the features with their targets, or train the classifier."""
    run = runs[1]
    if run.manifest["config"].get("target") is not None:
        raise _no_test_rows(directory, run, "")
    files = [{_identity(shard) for shard in each.manifest["request"]["inputs"]["shards"]} for each in runs]
    if files[0] & files[1]:
        name = sorted(files[0] & files[1])[0][0]
        raise DataError(
            f"features={printable(directory)}: has rows of file={printable(name)}, as features={printable(features)} "
            "has. These rows train the classifier, so that they cannot test it. Name other rows with --test."
        )


def _identity(shard: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """Return what identifies the rows of a file in any directory: its name, dataset, size and modification time."""
    return shard["file"], shard["dataset"], shard["n_bytes"], shard["changed"]


def _no_test_rows(directory: str, run: Features, reason: str) -> DataError:
    """Return an error for features whose training had targets, if no row is known to be a test row."""
    name = printable(run.manifest["target"]["name"])
    found = f"targets ({name}) of these rows have trained the features, so that they cannot test a classifier."
    if reason:
        found = f"the features were trained with targets ({name}), and no honest test is possible. {reason}"
    return DataError(
        f"features={printable(directory)}: {found} Train on some rows with --fit-on, or encode other rows with "
        f"shardpress run --model {printable(directory)}, and name them with --test."
    )


def _escaped(text: str) -> str:
    return printable(text).replace("{", "{{").replace("}", "}}")


def _codes(options: Options, runs: Sequence[Features], name: str) -> np.ndarray:
    """Return the class of each row, or LEFT_OUT for a row without a label."""
    labels = []
    masks = []
    for directory, run in zip(options.directories, runs, strict=True):
        labels.append(labels_of(directory, run, name))
        masks.append(has_label(run, name))
    _, classes = classes_of([values[mask] for values, mask in zip(labels, masks, strict=True)])
    codes = np.full(sum(map(len, labels)), LEFT_OUT, dtype=np.int64)
    codes[np.concatenate(masks)] = classes
    return codes


def _pieces(options: Options, runs: Sequence[Features], model: Model) -> tuple[Piece, ...]:
    """Divide the rows of all runs into pieces. The rows of all runs are numbered consecutively."""
    max_bytes = options.memory_budget // _PIECES_PER_BUDGET
    pieces: tuple[Piece, ...] = ()
    first = 0
    for directory, run in zip(options.directories, runs, strict=True):
        pieces += cut_into_pieces(run, directory, model.columns, max_bytes, first)
        first += len(run.valid)
    return pieces


def _open(directory: str) -> Features:
    if Path(directory).is_file():
        raise DataError(
            f"features={printable(directory)}: is a file, expected the output directory of a finished run. Its "
            "manifest lists the input files, which are needed for the raw columns."
        )
    return open_features(directory)


def _check_model(directory: str, run: Features, model: Model, features: str) -> None:
    if run.manifest["model"] != model.fingerprint:
        raise DataError(
            f"features={printable(directory)}: has {run.features.shape[1]} features of another model, expected the "
            f"{model.n_features} features of the model of features={printable(features)}. Encode the rows with "
            f"shardpress run --model {printable(features)}."
        )


def _check_classes(options: Options, codes: np.ndarray, is_test: np.ndarray) -> int:
    """Return the number of classes in the training rows. Raise `DataError` if there are too few classes or rows."""
    is_labelled = codes != LEFT_OUT
    train_codes = codes[is_labelled & ~is_test]
    n_classes = len(np.unique(train_codes))
    _check_training_rows(options, n_classes, len(train_codes))
    if not (is_labelled & is_test).any():
        raise DataError(
            f"features={printable(options.test)} dataset={options.labels}: no test row has a label, expected at least "
            "one. Name the labels with --labels."
        )
    if len(np.unique(codes[is_labelled])) > n_classes:
        log.warning("some test rows have labels that no training row has; these rows count as errors")
    return n_classes


def _check_training_rows(options: Options, n_classes: int, n_train: int) -> None:
    where = f"features={printable(options.features)} dataset={options.labels}"
    if n_classes < 2:
        found = ("no class", "only one class")[n_classes]
        raise DataError(
            f"{where}: the training rows have {found}, expected two or more. Name the labels with --labels."
        )
    if 2 * n_classes > n_train:
        raise DataError(
            f"{where}: {n_classes} different values in {n_train} training rows, expected several rows per class. Name "
            "the labels with --labels."
        )
