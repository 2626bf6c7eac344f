"""Errors and accuracies of the first features of a nested model, compared with the same number of components."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import numpy as np

from shardpress.labels import Labels
from shardpress.model import Model
from shardpress.report.baselines import Split
from shardpress.report.sample import Sample
from shardpress.training.components import Components

_FIRST = 8  # smallest number of features; the others are its multiples by powers of two, and all features


def width_facts(
    sample: Sample, model: Model, components: Components, labels: Labels | None, is_test: np.ndarray
) -> list[dict[str, Any]]:
    """Return the error and the accuracy of the first 8, 16, 32, ... features and principal components.

    The components are those of the scaled rows that are not test rows. Errors are measured on the same rows, where no
    other components have a smaller error; accuracies of a linear classifier, if there are labels, on the test rows.
    """
    split = None if labels is None else Split.of(labels, is_test)
    n_most = min(model.n_features, components.components.shape[1])
    powers = takewhile(lambda n: n < n_most, (_FIRST * 2**i for i in range(64)))
    return [_facts_of(n, sample, model, components, split, is_test) for n in (*powers, n_most)]


def _facts_of(
    n: int, sample: Sample, model: Model, components: Components, split: Split | None, is_test: np.ndarray
) -> dict[str, Any]:
    features = sample.features[:, :n]
    directions = components.components[:, :n]
    scores = (sample.scaled - components.mean) @ directions
    rows = sample.scaled[~is_test]
    decoded = model.with_first_features(n).decode(features[~is_test])
    projected = scores[~is_test] @ directions.T + components.mean
    facts = {
        "n_features": n,
        "error": float(np.square(decoded - rows).mean()),
        "components": float(np.square(projected - rows).mean()),
    }
    if split is not None:
        facts["accuracy"] = float(split.are_correct(features[split.has_label]).mean())
        facts["components_accuracy"] = float(split.are_correct(scores[split.has_label]).mean())
    return facts
