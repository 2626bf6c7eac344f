"""Logistic regressions on three representations of the same rows: in memory, or out of core.

All are multinomial, on standardized columns, with scikit-learn's default penalty. In memory scikit-learn's
`LogisticRegression` is fitted until it has converged. Out of core one pass over the files serves all three, and each
learns until its loss on rows that are held out of its training stops falling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from pipeline.classify.rows import Rows
from pipeline.errors import DataError
from pipeline.progress import Progress

__all__ = ["Outcome", "compare", "fits_in_memory"]

# Up to so many raw values all is done as scikit-learn does by itself: in float64, to a slope of 1e-4. More of them
# converge to 1e-3 in float32: on Fashion-MNIST in a tenth of the time, with accuracies that differ by 0.005 at most.
_FEW_VALUES = 10**7

_HELD_OUT, _MOST_HELD_OUT = 0.1, 50_000
_PIECES_A_WINDOW = 16
# Passes without a fall, and the share of the loss that counts as one; classes that can be told apart wholly have a loss
# that falls for ever towards 0.
_PATIENCE, _FALL = 3, 1e-3
_STEPS_A_PASS, _MOST_BATCH_ROWS = 50, 200

Maps = Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]
"""For each representation, what makes standardized columns of features and scaled raw rows."""


@dataclass(frozen=True)
class Outcome:
    """The share of test rows that are told right, and after how many passes of learning."""

    accuracy: float
    n_passes: int
    converged: bool


def compare(rows: Rows, n_classes: int, memory_budget: int, most_passes: int, seed: int) -> dict[str, Outcome]:
    """Learn from the training rows of all three, and try on the test rows.

    Raises
    ------
    DataError
        When not even what is needed out of core fits in the budget.
    """
    if fits_in_memory(rows, n_classes, memory_budget):
        return _in_memory(rows, most_passes, seed)
    return _out_of_core(rows, n_classes, memory_budget, most_passes, seed)


def fits_in_memory(rows: Rows, n_classes: int, memory_budget: int) -> bool:
    """Whether the rows do, with scikit-learn's scores and what it copies, in float64, to standardize."""
    n_rows, n_inputs = len(rows.train) + len(rows.test), rows.model.n_inputs
    width = 4 * n_inputs + 2 * rows.model.n_features + 2 * n_classes
    return n_rows * width * _dtype(n_rows * n_inputs).itemsize <= memory_budget


def _dtype(n_values: int) -> np.dtype:
    return np.dtype(np.float64 if n_values <= _FEW_VALUES else np.float32)


def _names(rows: Rows, n_components: int) -> tuple[str, str, str]:
    model = rows.model
    return f"{model.n_features} features", f"{n_components} principal components", f"{model.n_inputs} raw columns"


# -- in memory -----------------------------------------------------------------------------------------------------


def _in_memory(rows: Rows, most_passes: int, seed: int) -> dict[str, Outcome]:
    n_train = len(rows.train)
    encoded, raw, codes = _loaded(rows)
    # The training rows' rank bounds how many there are.
    pca = PCA(min(rows.model.n_features, n_train), random_state=seed).fit(raw[:n_train])
    names = _names(rows, pca.n_components_)
    tables = dict(zip(names, (encoded, pca.transform(raw), raw), strict=True))
    tolerance = 1e-4 if raw.dtype == np.float64 else 1e-3
    return {name: _outcome(name, table, codes, n_train, tolerance, most_passes) for name, table in tables.items()}


def _loaded(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, raw rows and classes, the training rows first."""
    numbers = np.concatenate([rows.train, rows.test])
    place = np.full(len(rows.codes), -1)
    place[numbers] = np.arange(len(numbers))
    dtype = _dtype(len(numbers) * rows.model.n_inputs)
    encoded, raw = (np.empty((len(numbers), width), dtype) for width in (rows.model.n_features, rows.model.n_inputs))
    with Progress("reading", len(numbers), "rows", 4 * rows.model.n_inputs) as progress:
        for here, features, values in rows.read(place >= 0, advance=progress.advance):
            encoded[place[here]], raw[place[here]] = features, values
    return encoded, raw, rows.codes[numbers]


def _outcome(
    name: str, table: np.ndarray, codes: np.ndarray, n_train: int, tolerance: float, most_passes: int
) -> Outcome:
    """Fit to the first rows and try on the others; standardizes the table where it is."""
    scaler = StandardScaler(copy=False).fit(table[:n_train])
    table = scaler.transform(table)
    with Progress(name, None, "steps") as progress, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(tol=tolerance, max_iter=most_passes).set_callbacks(_Steps(progress))
        classifier.fit(table[:n_train], codes[:n_train])
    converged = not any(issubclass(line.category, ConvergenceWarning) for line in said)
    return Outcome(classifier.score(table[n_train:], codes[n_train:]), int(classifier.n_iter_.max()), converged)


class _Steps:
    """Tells a bar of scikit-learn's steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def setup(self, estimator: object, context: object) -> None:
        """Nothing to prepare."""

    def teardown(self, estimator: object, context: object) -> None:
        """Nothing to put away."""

    def on_fit_task_begin(self, estimator: object, context: object) -> None:
        """Only ends count."""

    def on_fit_task_end(self, estimator: object, context: object) -> None:
        """A step has been done."""
        self._progress.advance()


# -- out of core ---------------------------------------------------------------------------------------------------


def _out_of_core(rows: Rows, n_classes: int, memory_budget: int, most_passes: int, seed: int) -> dict[str, Outcome]:
    watched = _watched(rows, memory_budget, seed)
    wanted = np.zeros(len(rows.codes), dtype=bool)
    wanted[rows.train] = True
    maps, held_out = _standardizing(rows, wanted, watched, memory_budget)
    wanted[watched] = False
    learners = {name: _Learner(n_classes, int(wanted.sum()), seed) for name in maps}
    rng = np.random.default_rng(seed)
    for n_passes in range(1, most_passes + 1):
        learning = {name: learner for name, learner in learners.items() if not learner.has_converged}
        if not learning:
            break
        with Progress(f"pass {n_passes}", int(wanted.sum()), "rows", 4 * rows.model.n_inputs) as progress:
            for numbers, features, raw in _windows(rows, wanted, rng, progress.advance):
                for name, learner in learning.items():
                    learner.learn(maps[name](features, raw), rows.codes[numbers])
            for name, learner in learning.items():
                learner.judge(maps[name](*held_out), rows.codes[watched])
            progress.advance(0, "loss " + ", ".join(f"{learner.loss:.4f}" for learner in learners.values()))
    return _tried(rows, maps, learners)


def _watched(rows: Rows, memory_budget: int, seed: int) -> np.ndarray:
    """Sorted numbers of the training rows that tell when to stop: a tenth of them, and no more than a good many."""
    room = memory_budget // 8 // (4 * (rows.model.n_inputs + rows.model.n_features))
    n_watched = max(1, min(int(_HELD_OUT * len(rows.train)), _MOST_HELD_OUT, room))
    return np.sort(np.random.default_rng(seed).choice(rows.train, n_watched, replace=False))


def _standardizing(
    rows: Rows, wanted: np.ndarray, watched: np.ndarray, memory_budget: int
) -> tuple[Maps, tuple[np.ndarray, np.ndarray]]:
    """What standardizes each representation, from one pass, and the features and raw rows of those that are watched."""
    n_inputs, kept = rows.model.n_inputs, []
    if 24 * n_inputs**2 > memory_budget:
        raise DataError(
            f"memory_budget: {memory_budget} bytes, expected {24 * n_inputs**2} at least for the principal components "
            f"of {n_inputs} columns. Raise --memory-budget."
        )
    scaler, moments = StandardScaler(), _Moments(n_inputs)
    is_watched = np.zeros(len(wanted), dtype=bool)
    is_watched[watched] = True
    with Progress("means", int(wanted.sum()), "rows", 4 * n_inputs) as progress:
        for numbers, features, raw in rows.read(wanted, advance=progress.advance):
            scaler.partial_fit(features)
            moments.add(raw)
            kept.append((features[is_watched[numbers]], raw[is_watched[numbers]]))
    mean, covariance = moments.result()
    n_components = min(rows.model.n_features, moments.n_rows)
    variances, axes = (found[..., ::-1][..., :n_components] for found in np.linalg.eigh(covariance))
    to_components = (axes * _inverse_root(variances)).astype(np.float32)
    to_columns = _inverse_root(np.diagonal(covariance)).astype(np.float32)
    mean = mean.astype(np.float32)
    functions = (
        lambda features, raw: scaler.transform(features),
        lambda features, raw: (raw - mean) @ to_components,
        lambda features, raw: (raw - mean) * to_columns,
    )
    held_out = tuple(np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    return dict(zip(_names(rows, n_components), functions, strict=True)), held_out


def _inverse_root(variances: np.ndarray) -> np.ndarray:
    """One over the standard deviations; 1 where there is none, as `StandardScaler` has it."""
    return 1 / np.sqrt(np.where(variances > 1e-12 * variances.max(), variances, 1))


class _Moments:
    """Mean and covariance, block by block: products in float32 around a first guess of the mean, sums in float64."""

    def __init__(self, n_inputs: int) -> None:
        self.n_rows, self._guess = 0, np.zeros(n_inputs, dtype=np.float32)
        self._sum, self._products = np.zeros(n_inputs), np.zeros((n_inputs, n_inputs))

    def add(self, rows: np.ndarray) -> None:
        """Count rows of shape (n, n_inputs), float32."""
        if not self.n_rows:
            self._guess = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        around = rows - self._guess
        self.n_rows += len(rows)
        self._sum += around.sum(axis=0, dtype=np.float64)
        self._products += around.T @ around

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n_inputs,) and covariance (n_inputs, n_inputs), float64."""
        shift = self._sum / self.n_rows
        return self._guess + shift, self._products / self.n_rows - np.outer(shift, shift)


def _windows(
    rows: Rows, wanted: np.ndarray, rng: np.random.Generator, advance: Callable[[int], object]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces from all over the files, several together, so that files sorted by class are learnt from as well."""
    window = []
    for piece in rows.read(wanted, rng.permutation(len(rows.pieces)).tolist(), advance):
        window.append(piece)
        if len(window) == _PIECES_A_WINDOW:
            yield _joined(window)
            window = []
    if window:
        yield _joined(window)


def _joined(window: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, features, raw = (np.concatenate(arrays) for arrays in zip(*window, strict=True))
    return numbers, features, raw


class _Learner:
    """A logistic regression that learns window by window until its held-out loss stops falling."""

    def __init__(self, n_classes: int, n_rows: int, seed: int) -> None:
        # Without a hidden layer this is multinomial logistic regression; `SGDClassifier` sets one class against the
        # rest, which costs a hundredth of the accuracy. The penalty is that of `LogisticRegression`.
        self._batch_rows = max(1, min(n_rows // _STEPS_A_PASS, _MOST_BATCH_ROWS))
        self._now = MLPClassifier((), alpha=self._batch_rows / n_rows, learning_rate_init=0.003, random_state=seed)
        self._classes = np.arange(n_classes)
        self._sums: list[np.ndarray] = []
        self._n_seen = self._n_stale = self.n_passes = 0
        self.best, self.loss = self._now, np.inf

    @property
    def has_converged(self) -> bool:
        return self._n_stale >= _PATIENCE

    def learn(self, table: np.ndarray, codes: np.ndarray) -> None:
        self._now.set_params(batch_size=min(self._batch_rows, len(table)))
        self._now.partial_fit(table, codes, classes=self._classes)
        weights = [self._now.coefs_[0].copy(), self._now.intercepts_[0].copy()]
        self._sums = [one + other for one, other in zip(self._sums, weights, strict=True)] if self._n_seen else weights
        self._n_seen += 1

    def judge(self, table: np.ndarray, codes: np.ndarray) -> None:
        """End a pass: its mean weights, which are better than its last ones, are kept if they are the best so far."""
        mean = deepcopy(self._now)
        mean.coefs_, mean.intercepts_ = ([total / self._n_seen] for total in self._sums)
        loss = log_loss(codes, mean.predict_proba(table), labels=self._classes)
        self._n_stale = 0 if loss < self.loss - _FALL * max(self.loss, 0.1) else self._n_stale + 1
        if loss < self.loss:
            self.best, self.loss = mean, loss
        self._n_seen, self.n_passes = 0, self.n_passes + 1


def _tried(rows: Rows, maps: Maps, learners: Mapping[str, _Learner]) -> dict[str, Outcome]:
    hits, wanted = dict.fromkeys(learners, 0), np.zeros(len(rows.codes), dtype=bool)
    wanted[rows.test] = True
    with Progress("test", int(wanted.sum()), "rows", 4 * rows.model.n_inputs) as progress:
        for numbers, features, raw in rows.read(wanted, advance=progress.advance):
            for name, learner in learners.items():
                found = learner.best.predict(maps[name](features, raw))
                hits[name] += int((found == rows.codes[numbers]).sum())
    n_test = max(1, int(wanted.sum()))
    return {name: Outcome(hits[name] / n_test, one.n_passes, one.has_converged) for name, one in learners.items()}
