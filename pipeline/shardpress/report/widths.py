"""Errors and scores of the first features of a nested model, compared with the same number of components."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import numpy as np

from shardpress.model import Model
from shardpress.report.baselines import Prediction
from shardpress.report.sample import Sample
from shardpress.training.components import Components

_FIRST = 8  # smallest number of features; the others are its multiples by powers of two, and all features


def width_facts(
    sample: Sample, model: Model, components: Components, prediction: Prediction | None, is_fitted: np.ndarray
) -> list[dict[str, Any]]:
    """Return the error and the score of the first 8, 16, 32, ... features and principal components.

    The components are those of the scaled rows in the mask `is_fitted` (n_rows,). Errors are measured on the same rows,
    where no other components have a smaller error. Scores are those of a linear model on its test rows, if there are
    values to predict.
    """
    n_most = min(model.n_features, components.components.shape[1])
    powers = takewhile(lambda n: n < n_most, (_FIRST * 2**i for i in range(64)))
    return [_facts_of(n, sample, model, components, prediction, is_fitted) for n in (*powers, n_most)]


def _facts_of(
    n: int,
    sample: Sample,
    model: Model,
    components: Components,
    prediction: Prediction | None,
    is_fitted: np.ndarray,
) -> dict[str, Any]:
    features = sample.features[:, :n]
    directions = components.components[:, :n]
    coordinates = (sample.scaled - components.mean) @ directions
    rows = sample.scaled[is_fitted]
    decoded = model.with_first_features(n).decode(features[is_fitted])
    projected = coordinates[is_fitted] @ directions.T + components.mean
    facts = {
        "n_features": n,
        "error": float(np.square(decoded - rows).mean()),
        "components": float(np.square(projected - rows).mean()),
    }
    if prediction is not None:
        facts["score"] = prediction.score(features[prediction.has_value])
        facts["components_score"] = prediction.score(coordinates[prediction.has_value])
    return facts
