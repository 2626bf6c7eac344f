"""Tests of the errors and accuracies of the first features of a nested model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from shardpress.labels import LabelChoice
from shardpress.report.baselines import are_correct
from shardpress.report.measures import measure
from shardpress.report.page.document import Table
from shardpress.report.page.quality import quality
from shardpress.report.sample import SampleSpec, draw_sample
from tests.support.cases import each
from tests.support.pages import make_parts, model_of

RNG = np.random.default_rng(5)
CLASSES = RNG.integers(0, 4, 600)
# 24 columns. Later columns vary less. The classes differ in the last column only.
ROWS = RNG.normal(size=(600, 24)) * np.geomspace(1, 0.1, 24)
ROWS[:, -1] += 0.25 * CLASSES
ROWS = (0.5 + ROWS / 20).astype(np.float32)
IS_TRAINED = np.arange(600) % 2 == 1


def facts_of(
    folder: Path, n_features: int, about: dict[str, Any] | None = None, **extras: np.ndarray
) -> tuple[Any, Any, Any]:
    """Return the measurements of a model, the model and the sample."""
    model = replace(model_of(24, n_features), about={"config": {"nested": True}, **(about or {})})
    (part,) = make_parts(folder, model, ROWS, 600, **extras)
    parts = [replace(part, trained=IS_TRAINED)]
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    return measure(sample, parts, model, LabelChoice()), model, sample


def table_of(facts: Any) -> Table:
    report = {"summary": {"n_features": 20}, "sample": facts}
    (table,) = [item for item in quality(report).items if isinstance(item, Table) and item.columns[0] == "features"]
    return table


def test_errors_and_accuracies_are_those_of_the_first_features(tmp_path: Path) -> None:
    facts, model, sample = facts_of(tmp_path, 20, y=CLASSES)
    widths = facts["widths"]
    assert [width["n_features"] for width in widths] == [8, 16, 20]
    rows = sample.scaled[sample.trained].astype(np.float64)
    W = model.parameters["W"].astype(np.float64)
    pca = PCA(20).fit(rows)
    scores = pca.transform(rows)
    for width in widths:
        n = width["n_features"]
        features = sample.features[:, :n].astype(np.float64)
        decoded = features[sample.trained] @ W[:, :n].T + model.parameters["b_output"]
        assert width["error"] == pytest.approx(np.square(decoded - rows).mean(), rel=1e-6)
        expected = np.square(scores[:, :n] @ pca.components_[:n] + pca.mean_ - rows).mean()
        assert width["components"] == pytest.approx(expected, rel=1e-3)
        assert width["score"] == pytest.approx(are_correct(features, sample.extras["y"], ~sample.trained).mean())
    accuracies = [width["components_score"] for width in widths]
    assert accuracies[-1] > accuracies[0] + 0.1
    cells = table_of(facts).rows
    assert [row[0] for row in cells] == ["8", "16", "20"]
    assert float(cells[0][1]) == pytest.approx(widths[0]["error"], rel=0.01)
    assert cells[-1][4] == f"{100 * accuracies[-1]:.1f} %"


@each("n_features, expected", [(1, [1]), (8, [8]), (9, [8, 9])])
def test_all_features_come_last(tmp_path: Path, n_features: int, expected: list[int]) -> None:
    facts, _, _ = facts_of(tmp_path, n_features)
    assert [width["n_features"] for width in facts["widths"]] == expected
    assert "score" not in facts["widths"][0]


def test_other_models_have_no_widths(tmp_path: Path) -> None:
    facts, _, _ = facts_of(tmp_path, 20, {"config": {"nested": False}}, y=CLASSES)
    assert "widths" not in facts


def test_scores_of_a_target_are_r2(tmp_path: Path) -> None:
    about = {"training": {"target": {"name": "t", "kind": "numbers"}}}
    facts, _, _ = facts_of(tmp_path, 20, about, t=ROWS[:, -1].astype(np.float64), y=CLASSES)
    probe = facts["probe"]
    assert (probe["labels"], probe["score"]) == ("t", "R2")
    assert facts["widths"][-1]["score"] == pytest.approx(probe["features"])
    assert facts["widths"][-1]["components_score"] == pytest.approx(probe["components"])
    assert table_of(facts).rows[-1][3] == f"{probe['features']:.3f}"
