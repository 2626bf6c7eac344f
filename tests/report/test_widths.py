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
from tests.support.pages import make_parts, model_of

RNG = np.random.default_rng(5)
CLASSES = RNG.integers(0, 4, 600)
# 24 columns. Later columns vary less. The classes differ in the last column only.
ROWS = RNG.normal(size=(600, 24)) * np.geomspace(1, 0.1, 24)
ROWS[:, -1] += 0.25 * CLASSES
ROWS = (0.5 + ROWS / 20).astype(np.float32)


def facts_of(folder: Path, n_features: int, nested: bool = True, **extras: np.ndarray) -> tuple[Any, Any, Any]:
    """Return the measurements of a model, the model and the sample."""
    model = replace(model_of(24, n_features), about={"config": {"nested": nested}})
    parts = make_parts(folder, model, ROWS, 600, **extras)
    if "train" in extras:
        parts = [replace(part, trained=extras["train"] == 1) for part in parts]
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    return measure(sample, parts, model, LabelChoice()), model, sample


def test_errors_and_accuracies_are_those_of_the_first_features(tmp_path: Path) -> None:
    is_train = (np.arange(600) % 2).astype(np.int64)
    facts, model, sample = facts_of(tmp_path, 20, y=CLASSES, train=is_train)
    widths = facts["widths"]
    assert [each["n_features"] for each in widths] == [8, 16, 20]
    rows = sample.scaled[sample.extras["train"] == 1].astype(np.float64)
    W = model.parameters["W"].astype(np.float64)
    pca = PCA(20).fit(rows)
    scores = pca.transform(rows)
    is_test = sample.extras["train"] == 0
    for each in widths:
        n = each["n_features"]
        features = sample.features[:, :n].astype(np.float64)
        decoded = features[~is_test] @ W[:, :n].T + model.parameters["b_output"]
        assert each["error"] == pytest.approx(np.square(decoded - rows).mean(), rel=1e-6)
        expected = np.square(scores[:, :n] @ pca.components_[:n] + pca.mean_ - rows).mean()
        assert each["components"] == pytest.approx(expected, rel=1e-3)
        assert each["score"] == pytest.approx(are_correct(features, sample.extras["y"], is_test).mean())
    accuracies = [each["components_score"] for each in widths]
    assert accuracies[-1] > accuracies[0] + 0.1


@pytest.mark.parametrize("n_features", [1, 8, 9])
def test_all_features_come_last(tmp_path: Path, n_features: int) -> None:
    facts, _, _ = facts_of(tmp_path, n_features)
    expected = sorted({min(8, n_features), n_features})
    assert [each["n_features"] for each in facts["widths"]] == expected
    assert "score" not in facts["widths"][0]


def test_other_models_have_no_widths(tmp_path: Path) -> None:
    facts, _, _ = facts_of(tmp_path, 20, nested=False, y=CLASSES)
    assert "widths" not in facts


def test_scores_of_a_target_are_r2(tmp_path: Path) -> None:
    target = {"name": "t", "kind": "numbers"}
    about = {"config": {"nested": True}, "training": {"target": target}}
    model = replace(model_of(24, 20), about=about)
    (part,) = make_parts(tmp_path, model, ROWS, 600, t=ROWS[:, -1].astype(np.float64), y=CLASSES)
    parts = [replace(part, trained=np.arange(600) % 2 == 1)]
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    facts = measure(sample, parts, model, LabelChoice())
    assert (facts["probe"]["labels"], facts["probe"]["score"]) == ("t", "R2")
    assert facts["widths"][-1]["score"] == pytest.approx(facts["probe"]["features"])
    assert facts["widths"][-1]["components_score"] == pytest.approx(facts["probe"]["components"])
    (table,) = [item for item in quality({"summary": {"n_features": 20}, "sample": facts}).items if is_widths(item)]
    assert table.rows[-1][3] == f"{facts['probe']['features']:.3f}"


def is_widths(item: Any) -> bool:
    return isinstance(item, Table) and item.columns[0] == "features"


def test_the_page_shows_errors_and_accuracies(tmp_path: Path) -> None:
    facts, _, _ = facts_of(tmp_path, 20, y=CLASSES)
    report = {"summary": {"n_features": 20}, "sample": facts}
    (table,) = [item for item in quality(report).items if isinstance(item, Table) and "features" in item.columns[0]]
    assert [row[0] for row in table.rows] == ["8", "16", "20"]
    assert float(table.rows[0][1]) == pytest.approx(facts["widths"][0]["error"], rel=0.01)
    assert table.rows[-1][4] == f"{100 * facts['widths'][-1]['components_score']:.1f} %"
