"""Logistic regression on four representations of the same rows, in memory or out of core.

All classifiers are multinomial, and are trained on standardized columns with scikit-learn's default penalty. In memory,
scikit-learn's `LogisticRegression` is fitted until it converges. Out of core, each pass over the files trains all four
classifiers, and a classifier is trained until its loss on held-out rows stops falling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from shardpress.classify.rows import Map, Rows, RowsRead
from shardpress.errors import DataError
from shardpress.model import Model
from shardpress.progress import Progress

__all__ = ["Outcome", "compare", "fits_in_memory"]

# Up to this number of raw values, classifiers use scikit-learn's defaults: float64 and a tolerance of 1e-4. For more
# values, they use float32 and 1e-3. On Fashion-MNIST, this takes a tenth of the time, and changes accuracies by at most
# 0.005.
_MAX_VALUES_IN_FLOAT64 = 10**7

# Validation rows decide when out-of-core training stops.
_VALIDATION_SHARE = 0.1
_MAX_VALIDATION_ROWS = 50_000
_PIECES_PER_WINDOW = 16
# Training stops after `_PATIENCE` consecutive passes that do not lower the loss by the relative amount `_MIN_FALL`.
# Without this threshold, training on separable classes would never stop, because the loss keeps falling towards 0.
_PATIENCE = 3
_MIN_FALL = 1e-3
_STEPS_PER_PASS = 50
_MAX_BATCH_ROWS = 200

Maps = Mapping[str, Map]
"""Function that returns the standardized columns of a representation, by the name of the representation."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy of a classifier on the test rows, and the number of passes of its training."""

    accuracy: float
    n_passes: int
    converged: bool


def compare(rows: Rows, n_classes: int, memory_budget: int, max_passes: int, seed: int) -> dict[str, Outcome]:
    """Train a classifier on each representation of the training rows, and test it on the test rows.

    Raises
    ------
    DataError
        If the memory budget is too small even for training out of core.
    """
    if fits_in_memory(rows, n_classes, memory_budget):
        return _in_memory(rows, max_passes, seed)
    return _out_of_core(rows, n_classes, memory_budget, max_passes, seed)


def fits_in_memory(rows: Rows, n_classes: int, memory_budget: int) -> bool:
    """Return whether the rows fit in memory, together with the copies and scores that scikit-learn makes."""
    n_rows = len(rows.train) + len(rows.test)
    n_inputs = rows.model.n_inputs
    width = 4 * n_inputs + 3 * rows.model.n_features + 2 * n_classes
    return n_rows * width * _dtype(n_rows * n_inputs).itemsize <= memory_budget


def _dtype(n_values: int) -> np.dtype:
    if n_values <= _MAX_VALUES_IN_FLOAT64:
        return np.dtype(np.float64)
    return np.dtype(np.float32)


def _names(rows: Rows, n_components: int) -> tuple[str, str, str, str]:
    model = rows.model
    components = f"{n_components} principal components"
    return (
        f"{model.n_features} features",
        components,
        f"{components} of standardized columns",
        f"{model.n_inputs} raw columns",
    )


# -- in memory -----------------------------------------------------------------------------------------------------


def _in_memory(rows: Rows, max_passes: int, seed: int) -> dict[str, Outcome]:
    n_train = len(rows.train)
    features, raw, codes = _load(rows)
    n_components = _n_components(rows.model, n_train)
    components = _components(raw, n_train, n_components, seed)
    raw = StandardScaler(copy=False).fit(raw[:n_train]).transform(raw)
    standardized = _components(raw, n_train, n_components, seed)
    tables = (features, components, standardized, raw)
    tolerance = 1e-4 if raw.dtype == np.float64 else 1e-3
    outcomes = {}
    for name, table in zip(_names(rows, components.shape[1]), tables, strict=True):
        outcomes[name] = _fit_and_test(name, table, codes, n_train, tolerance, max_passes)
    return outcomes


def _n_components(model: Model, n_train: int) -> int:
    """Return the number of principal components to compare with: that of the features, if there are as many."""
    return min(model.n_features, model.n_inputs, n_train)


def _components(rows: np.ndarray, n_train: int, n_components: int, seed: int) -> np.ndarray:
    """Return the principal components of rows (n_rows, n_inputs). The first `n_train` rows determine them."""
    return np.asarray(PCA(n_components, random_state=seed).fit(rows[:n_train]).transform(rows))


def _load(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, raw rows and classes. Training rows precede test rows."""
    numbers = np.concatenate([rows.train, rows.test])
    position = np.full(len(rows.codes), -1)
    position[numbers] = np.arange(len(numbers))
    features, raw = _empty_tables(len(numbers), rows.model)
    with Progress("reading", len(numbers), "rows", 4 * rows.model.n_inputs) as progress:
        for each in rows.read(position >= 0, advance=progress.advance):
            features[position[each.numbers]] = each.features
            raw[position[each.numbers]] = each.raw
    return features, raw, rows.codes[numbers]


def _empty_tables(n_rows: int, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Return uninitialized tables for features and raw rows."""
    dtype = _dtype(n_rows * model.n_inputs)
    return np.empty((n_rows, model.n_features), dtype), np.empty((n_rows, model.n_inputs), dtype)


def _fit_and_test(
    name: str, table: np.ndarray, codes: np.ndarray, n_train: int, tolerance: float, max_passes: int
) -> Outcome:
    """Fit a classifier to the first `n_train` rows, and test it on the other rows.

    The table is standardized in place.
    """
    scaler = StandardScaler(copy=False).fit(table[:n_train])
    table = scaler.transform(table)
    classifier = LogisticRegression(tol=tolerance, max_iter=max_passes)
    has_converged = _fit(classifier, table[:n_train], codes[:n_train], name)
    accuracy = classifier.score(table[n_train:], codes[n_train:])
    return Outcome(accuracy, int(classifier.n_iter_.max()), has_converged)


def _fit(classifier: LogisticRegression, table: np.ndarray, codes: np.ndarray, name: str) -> bool:
    """Fit a classifier, and return whether it has converged."""
    with Progress(name, None, "steps") as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.set_callbacks(_Steps(progress))
        classifier.fit(table, codes)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


class _Steps:
    """Callback for scikit-learn that shows the steps of a fit in a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def setup(self, estimator: object, context: object) -> None:
        """Do nothing."""

    def teardown(self, estimator: object, context: object) -> None:
        """Do nothing."""

    def on_fit_task_begin(self, estimator: object, context: object) -> None:
        """Do nothing."""

    def on_fit_task_end(self, estimator: object, context: object) -> None:
        """Count a step."""
        self._progress.advance()


# -- out of core ---------------------------------------------------------------------------------------------------


def _out_of_core(rows: Rows, n_classes: int, memory_budget: int, max_passes: int, seed: int) -> dict[str, Outcome]:
    is_train = _mask(rows, rows.train)
    validation = _validation_rows(rows, memory_budget, seed)
    maps, validation_rows = _first_pass(rows, is_train, validation, memory_budget)
    is_train[validation] = False
    learners = {name: _Learner(n_classes, int(is_train.sum()), seed) for name in maps}
    training = _Training(rows, is_train, validation_rows, maps, learners)
    rng = np.random.default_rng(seed)
    for number in range(1, max_passes + 1):
        if not training.active():
            break
        training.run_pass(number, rng)
    return _test(rows, maps, learners)


@dataclass(frozen=True)
class _Training:
    """Out-of-core training of classifiers on all representations.

    Attributes
    ----------
    rows : Rows
        All rows.
    is_train : ndarray of shape (n_rows,), bool
        Mask of the training rows.
    validation : RowsRead
        Rows that decide when training stops.
    maps : mapping of str to callable
        Functions that return the standardized columns of each representation.
    learners : mapping of str to _Learner
        Classifier for each representation.
    """

    rows: Rows
    is_train: np.ndarray
    validation: RowsRead
    maps: Maps
    learners: Mapping[str, _Learner]

    def active(self) -> dict[str, _Learner]:
        """Return the learners that have not converged."""
        return {name: learner for name, learner in self.learners.items() if not learner.has_converged}

    def run_pass(self, number: int, rng: np.random.Generator) -> None:
        """Train the active learners on all windows once, and evaluate them on the validation rows."""
        active = self.active()
        n_train = int(self.is_train.sum())
        with Progress(f"pass {number}", n_train, "rows", 4 * self.rows.model.n_inputs) as progress:
            for window in _windows(self.rows, self.is_train, rng, progress.advance):
                for name, learner in active.items():
                    learner.learn(window.table(self.maps[name]), self._codes(window))
            for name, learner in active.items():
                learner.end_pass(self.validation.table(self.maps[name]), self._codes(self.validation))
            progress.advance(0, self._losses())

    def _codes(self, rows: RowsRead) -> np.ndarray:
        return self.rows.codes[rows.numbers]

    def _losses(self) -> str:
        return "loss " + ", ".join(f"{learner.loss:.4f}" for learner in self.learners.values())


def _mask(rows: Rows, numbers: np.ndarray) -> np.ndarray:
    """Return a mask of the rows with the given numbers, bool (n_rows,)."""
    mask = np.zeros(len(rows.codes), dtype=bool)
    mask[numbers] = True
    return mask


def _validation_rows(rows: Rows, memory_budget: int, seed: int) -> np.ndarray:
    """Return the sorted numbers of the validation rows, which are a tenth of the training rows up to a limit."""
    row_bytes = 4 * (rows.model.n_inputs + rows.model.n_features)
    fits_in_memory = memory_budget // 8 // row_bytes
    n_rows = max(1, min(int(_VALIDATION_SHARE * len(rows.train)), _MAX_VALIDATION_ROWS, fits_in_memory))
    return np.sort(np.random.default_rng(seed).choice(rows.train, n_rows, replace=False))


def _first_pass(rows: Rows, is_train: np.ndarray, validation: np.ndarray, memory_budget: int) -> tuple[Maps, RowsRead]:
    """Read the training rows once, to compute the statistics of each representation.

    Returns
    -------
    maps : mapping of str to callable
        Functions that return the standardized columns of each representation.
    validation_rows : RowsRead
        Validation rows in memory.
    """
    n_inputs = rows.model.n_inputs
    _check_budget(n_inputs, memory_budget)
    scaler = StandardScaler()
    moments = _Moments(n_inputs)
    is_validation = _mask(rows, validation)
    found = []
    with Progress("means", int(is_train.sum()), "rows", 4 * n_inputs) as progress:
        for piece in rows.read(is_train, advance=progress.advance):
            scaler.partial_fit(piece.features)
            moments.add(piece.raw)
            found.append(piece.select(is_validation[piece.numbers]))
    return _maps(rows, scaler, moments), RowsRead.concatenate(found)


def _check_budget(n_inputs: int, memory_budget: int) -> None:
    needed = 24 * n_inputs**2
    if needed > memory_budget:
        raise DataError(
            f"memory_budget: {memory_budget} bytes, expected at least {needed} for the principal components "
            f"of {n_inputs} columns. Raise --memory-budget."
        )


def _maps(rows: Rows, scaler: StandardScaler, moments: _Moments) -> Maps:
    """Return functions that compute standardized features, two kinds of principal components, and raw columns."""
    mean, covariance = moments.result()
    n_components = _n_components(rows.model, moments.n_rows)
    to_components = _largest_components(covariance, n_components).astype(np.float32)
    scales = _inverse_root(np.diagonal(covariance))
    to_columns = scales.astype(np.float32)
    covariance *= scales[:, None]  # in place, because the matrix can be large
    covariance *= scales
    to_standardized = (scales[:, None] * _largest_components(covariance, n_components)).astype(np.float32)
    mean = mean.astype(np.float32)
    of_features, of_components, of_standardized, of_columns = _names(rows, n_components)
    return {
        of_features: lambda features, raw: scaler.transform(features),
        of_components: lambda features, raw: (raw - mean) @ to_components,
        of_standardized: lambda features, raw: (raw - mean) @ to_standardized,
        of_columns: lambda features, raw: (raw - mean) * to_columns,
    }


def _largest_components(covariance: np.ndarray, n: int) -> np.ndarray:
    """Return the matrix (n_inputs, n) that maps centred rows to standardized principal components."""
    variances, axes = np.linalg.eigh(covariance)
    largest = variances[::-1][:n]
    return np.asarray(axes[:, ::-1][:, :n] * _inverse_root(largest))


def _inverse_root(variances: np.ndarray) -> np.ndarray:
    """Return inverse standard deviations. Like `StandardScaler`, return 1 where the standard deviation is 0."""
    return 1 / np.sqrt(np.where(variances > 1e-12 * variances.max(), variances, 1))


class _Moments:
    """Accumulator for the mean and covariance of rows.

    The mean of the first block is subtracted from all rows. Products are then computed in float32, and summed in
    float64.
    """

    def __init__(self, n_inputs: int) -> None:
        self.n_rows = 0
        self._guess = np.zeros(n_inputs, dtype=np.float32)
        self._sum = np.zeros(n_inputs)
        self._products = np.zeros((n_inputs, n_inputs))

    def add(self, rows: np.ndarray) -> None:
        """Add rows (n, n_inputs), float32."""
        if not self.n_rows:
            self._guess = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        differences = rows - self._guess
        self.n_rows += len(rows)
        self._sum += differences.sum(axis=0, dtype=np.float64)
        self._products += differences.T @ differences

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean (n_inputs,) and the covariance (n_inputs, n_inputs) in float64."""
        shift = self._sum / self.n_rows
        return self._guess + shift, self._products / self.n_rows - np.outer(shift, shift)


def _windows(
    rows: Rows, wanted: np.ndarray, rng: np.random.Generator, advance: Callable[[int], object]
) -> Iterator[RowsRead]:
    """Yield windows of rows. Each window joins random pieces of all files, because files may be sorted by class."""
    window = []
    for piece in rows.read(wanted, rng.permutation(len(rows.pieces)).tolist(), advance):
        window.append(piece)
        if len(window) == _PIECES_PER_WINDOW:
            yield RowsRead.concatenate(window)
            window = []
    if window:
        yield RowsRead.concatenate(window)


class _Learner:
    """Logistic regression that is trained on one window at a time, until its validation loss stops falling.

    Attributes
    ----------
    best : MLPClassifier
        Classifier with the lowest validation loss so far.
    loss : float
        Validation loss of `best`.
    n_passes : int
        Number of completed passes.
    """

    def __init__(self, n_classes: int, n_rows: int, seed: int) -> None:
        # Without a hidden layer, `MLPClassifier` is multinomial logistic regression. `SGDClassifier` is one-versus-all,
        # and its accuracy is lower by 0.01. The penalty is equal to the default of `LogisticRegression`.
        self._batch_rows = max(1, min(n_rows // _STEPS_PER_PASS, _MAX_BATCH_ROWS))
        penalty = self._batch_rows / n_rows
        self._classifier = MLPClassifier((), alpha=penalty, learning_rate_init=0.003, random_state=seed)
        self._classes = np.arange(n_classes)
        self._sums: list[np.ndarray] = []  # weights after each window of the pass, summed
        self._n_windows = 0
        self._n_stale_passes = 0
        self.n_passes = 0
        self.best = self._classifier
        self.loss = np.inf

    @property
    def has_converged(self) -> bool:
        """True if the validation loss has stopped falling."""
        return self._n_stale_passes >= _PATIENCE

    def outcome(self, accuracy: float) -> Outcome:
        """Return the outcome of the training. `accuracy` is the test accuracy of the best classifier."""
        return Outcome(accuracy, self.n_passes, self.has_converged)

    def learn(self, table: np.ndarray, codes: np.ndarray) -> None:
        """Train on the rows of one window."""
        self._classifier.set_params(batch_size=min(self._batch_rows, len(table)))
        self._classifier.partial_fit(table, codes, classes=self._classes)
        weights = [self._classifier.coefs_[0].copy(), self._classifier.intercepts_[0].copy()]
        if self._n_windows:
            weights = [total + one for total, one in zip(self._sums, weights, strict=True)]
        self._sums = weights
        self._n_windows += 1

    def end_pass(self, table: np.ndarray, codes: np.ndarray) -> None:
        """End a pass, and evaluate the mean of the weights, which is better than the last weights.

        The mean is kept if its validation loss is the lowest so far.
        """
        mean = self._mean_classifier()
        loss = log_loss(codes, mean.predict_proba(table), labels=self._classes)
        if loss < self.loss - _MIN_FALL * max(self.loss, 0.1):
            self._n_stale_passes = 0
        else:
            self._n_stale_passes += 1
        if loss < self.loss:
            self.best = mean
            self.loss = loss
        self._n_windows = 0
        self.n_passes += 1

    def _mean_classifier(self) -> MLPClassifier:
        """Return a classifier whose weights are the mean of the weights after each window."""
        mean = deepcopy(self._classifier)
        coefficients, intercepts = self._sums
        mean.coefs_ = [coefficients / self._n_windows]
        mean.intercepts_ = [intercepts / self._n_windows]
        return mean


def _test(rows: Rows, maps: Maps, learners: Mapping[str, _Learner]) -> dict[str, Outcome]:
    """Return the outcome of each learner, with its accuracy on the test rows."""
    n_test = len(rows.test)
    n_right = dict.fromkeys(learners, 0)
    with Progress("test", n_test, "rows", 4 * rows.model.n_inputs) as progress:
        for piece in rows.read(_mask(rows, rows.test), advance=progress.advance):
            for name, learner in learners.items():
                predicted = learner.best.predict(piece.table(maps[name]))
                n_right[name] += int((predicted == rows.codes[piece.numbers]).sum())
    return {name: learner.outcome(n_right[name] / max(1, n_test)) for name, learner in learners.items()}
