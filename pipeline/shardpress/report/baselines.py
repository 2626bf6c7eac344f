"""Quality of a linear model on features, and on baselines that need no training.

The model predicts the values of an extra: a classifier predicts labels, and a regression predicts numbers. All scores
are measured on the same rows with the same split. Differences have an error bar of two standard errors: each test row
is predicted by both models, so the error bar is that of the mean of paired differences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardpress.base.outliers import outliers
from shardpress.base.ridge import fit_ridge, inverse_of_deviations
from shardpress.model.labels import Labels, Numbers
from shardpress.report.sampling import Sample
from shardpress.result.facts import BaselineScore, LinearProbe, ScoreName
from shardpress.training.components import Components, blocks, principal_components

MIN_TEST_ROWS = 30  # with fewer rows, a score would be meaningless
_STANDARD_ERRORS = 2


@dataclass(frozen=True)
class Prediction:
    """Values that a linear model predicts, and the rows that train and test it.

    A score is 1 minus the mean loss of the test rows. The loss of a label is 1 if it is wrong, so its score is the
    accuracy. The loss of a number is the squared error divided by the variance of the test rows, so its score is R2.
    """

    name: str  # of the extra
    score_name: ScoreName
    has_value: np.ndarray  # bool (n_rows,), the rows that train or test the model
    values: np.ndarray  # (n_with_value,), int64 codes of labels, or float64 numbers
    is_test: np.ndarray  # bool (n_with_value,)

    @property
    def is_regression(self) -> bool:
        return self.score_name == "R2"

    @property
    def train_values(self) -> np.ndarray:
        return self.values[~self.is_test]

    @property
    def test_values(self) -> np.ndarray:
        return self.values[self.is_test]

    def losses(self, rows: np.ndarray) -> np.ndarray:
        """Return the losses (n_test,) of a linear model of rows (n_with_value, n_columns)."""
        if self.is_regression:
            return _regression_errors(rows, self.values, self.is_test) / self.test_values.var()
        return 1.0 - are_correct(rows, self.values, self.is_test)

    def constant_losses(self) -> np.ndarray:
        """Return the losses (n_test,) of the most frequent label of the training rows, or of their mean."""
        if self.is_regression:
            return np.square(self.test_values - self.train_values.mean()) / self.test_values.var()
        return (self.test_values != np.bincount(self.train_values).argmax()).astype(np.float64)

    def score(self, rows: np.ndarray) -> float:
        return float(1 - self.losses(rows).mean())


def prediction_of(wanted: Labels | Numbers, is_test: np.ndarray, is_usable: np.ndarray) -> Prediction | None:
    """Divide rows, given masks (n_rows,) of the test rows and of the rows to use. Leave out numbers that are outliers.

    Return None if there are fewer than `MIN_TEST_ROWS` test rows, or if the values of the training rows, or numbers of
    the test rows, do not vary.
    """
    if isinstance(wanted, Labels):
        has_value = is_usable & wanted.has_value
        values = wanted.codes[has_value]
    else:
        has_value = is_usable & wanted.has_value
        has_value[has_value] = ~outliers(np.square(_scaled(wanted.values[has_value])))
        values = _scaled(wanted.values[has_value])
    prediction = Prediction(wanted.name, score_of(wanted), has_value, values, is_test[has_value])
    if len(prediction.test_values) < MIN_TEST_ROWS or len(np.unique(prediction.train_values)) < 2:
        return None
    return prediction if not prediction.is_regression or np.ptp(prediction.test_values) > 0 else None


def score_of(wanted: Labels | Numbers) -> ScoreName:
    """Return the name of the score that measures a prediction of values."""
    return "R2" if isinstance(wanted, Numbers) else "accuracy"


def _scaled(numbers: np.ndarray) -> np.ndarray:
    """Subtract the median, and scale numbers, so that their squares neither overflow nor underflow."""
    centred = numbers - np.median(numbers) if len(numbers) else numbers
    return centred / (np.abs(centred).max(initial=0) or 1)


@dataclass(frozen=True)
class FittedComponents:
    """Principal components of training rows, as these are scaled, and of their standardized columns."""

    scaled: Components
    standardized: Components  # of ``(rows - scaled.mean) * scale``
    scale: np.ndarray  # float64 (n_inputs,), inverse standard deviations

    @classmethod
    def of(cls, rows: np.ndarray, n_components: int) -> FittedComponents:
        """Fit components to scaled rows (n_rows, n_inputs), float32, without outliers. Overwrite the rows."""
        _, distances = _squares(rows)
        is_outlier = outliers(distances)
        if is_outlier.any():  # damaged rows would decide the components
            rows = rows[~is_outlier]
        scaled = principal_components(rows, n_components, np.random.default_rng(0))
        variances, _ = _squares(rows)
        scale = inverse_of_deviations(np.sqrt(variances))
        for block in blocks(*rows.shape):
            rows[block] = (rows[block] - scaled.mean) * scale
        standardized = principal_components(rows, n_components, np.random.default_rng(0))
        return cls(scaled, standardized, scale)

    def standardized_coordinates(self, rows: np.ndarray, n: int) -> np.ndarray:
        """Return scaled rows (n_rows, n_inputs) as `n` components of standardized columns, float64 (n_rows, n)."""
        return self.standardized.coordinates((rows - self.scaled.mean) * self.scale, n)


def _squares(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean squared distances of rows (n_rows, n_inputs) from their mean, by column and by row: float64."""
    mean = rows.mean(axis=0, dtype=np.float64)
    of_columns = np.zeros(len(mean))
    of_rows = np.empty(len(rows))
    for block in blocks(*rows.shape):  # a copy of all rows in float64 can exceed the memory
        squares = np.square(rows[block] - mean)
        of_columns += squares.sum(axis=0)
        of_rows[block] = squares.mean(axis=1)
    return of_columns / len(rows), of_rows


def linear_probe(sample: Sample, components: FittedComponents, prediction: Prediction) -> LinearProbe:
    """Return the scores of a linear model on features and baselines."""
    rows = sample.scaled[prediction.has_value]
    features = sample.features[prediction.has_value]
    n_components = min(features.shape[1], rows.shape[1], components.scaled.n_rows)
    on_features = prediction.losses(features)
    scaled = prediction.losses(components.scaled.coordinates(rows, n_components))
    standardized = prediction.losses(components.standardized_coordinates(rows, n_components))
    return LinearProbe(
        labels=prediction.name,
        score_name=prediction.score_name,
        n_train=len(prediction.train_values),
        n_test=len(prediction.test_values),
        n_components=n_components,
        n_fitted=components.scaled.n_rows,
        features=float(1 - on_features.mean()),
        components=_score(scaled, on_features),
        standardized=_score(standardized, on_features),
        columns=_score(prediction.losses(rows), on_features),
        constant=_score(prediction.constant_losses(), on_features),
    )


def _score(losses: np.ndarray, on_features: np.ndarray) -> BaselineScore:
    """Return the score with these losses (n_test,), and the error bar of its difference from the score on features."""
    differences = losses - on_features
    margin = float(_STANDARD_ERRORS * differences.std() / np.sqrt(len(differences)))
    return BaselineScore(float(1 - losses.mean()), margin)


# -- linear models -------------------------------------------------------------------------------------------------


def are_correct(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return a mask of the test rows that a ridge classifier assigns to the correct class, bool (n_test,).

    All other rows train the classifier. The rows have shape (n_rows, n_columns), and `codes` (n_rows,) are their
    classes, from 0 on. scikit-learn's `RidgeClassifierCV` is equally accurate, but importing it takes longer than
    making the whole report.
    """
    scores = _predictions(rows, np.eye(codes.max() + 1)[codes], is_test)
    return np.asarray(scores.argmax(axis=1) == codes[is_test])


def _regression_errors(rows: np.ndarray, numbers: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the squared errors of a ridge regression of `numbers` (n_rows,) on the test rows, float64 (n_test,).

    The rows are those of `are_correct`. Predictions are limited to the range of the training rows. Otherwise, a column
    that hardly varies in the training rows can make a prediction arbitrarily large.
    """
    known = numbers[~is_test]
    predictions = _predictions(rows, numbers[:, None], is_test)[:, 0]
    return np.square(np.clip(predictions, known.min(), known.max()) - numbers[is_test])


def _predictions(rows: np.ndarray, targets: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the predictions (n_test, n_targets) for the test rows of a ridge regression on the other rows."""
    W, b = fit_ridge(rows[~is_test], targets[~is_test])
    return np.asarray(rows[is_test] @ W + b)
