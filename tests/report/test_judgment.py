"""Tests of the judgment: features are good only if no baseline predicts better, and a damaged row does not decide."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from shardpress.labels import LabelChoice, Labels, Numbers
from shardpress.report.baselines import BASELINES, prediction_of, probe_facts
from shardpress.report.judgment import Judgment, judge
from shardpress.report.measures import measure
from shardpress.report.page.build import page_of, text_of
from shardpress.report.page.verdict import status, verdict
from shardpress.report.sample import Sample, SampleSpec, draw_sample
from shardpress.settings.config import Config
from shardpress.training.components import Baseline, principal_components
from shardpress.training.verdict import count_units
from tests.report.test_newrows import components_model, mixture
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import make_parts, model_of

NO_WARNINGS = {"n": 0, "first": []}
SUMMARY = {
    **{"n_rows": 900, "n_inputs": 20, "n_features": 8, "seconds": {"scan": 1.0}, "device": "cpu"},
    **{"cost": 0.2, "components": 0.8, "mean": 1.0},
}
SETTINGS = {**Config().flat(), "epochs": 20, "hidden": [16], "n_features": 8}


def probe_of(
    features: float, constant: float = 0.3, margin: float = 0.02, score: str = "accuracy", **baselines: float
) -> dict[str, Any]:
    scores = {"components": 0.4, "standardized": 0.4, "columns": 0.4, **baselines}
    names = (*scores, "constant")
    return {
        **{"labels": "kind", "score": score, "n_train": 600, "n_test": 300, "n_components": 8, "features": features},
        **scores,
        "constant": constant,
        "margins": dict.fromkeys(names, margin),
    }


def judged(probe: dict[str, Any] | None, config: dict[str, Any] = SETTINGS, **summary: float | None) -> Judgment:
    sample = {"mean_error": 0.2, "of_mean": 1.0, "probe": probe}
    return judge({**SUMMARY, **summary}, sample, config)


def facts_of(
    rows: np.ndarray, features: np.ndarray, wanted: Labels | Numbers | None, n_components: int
) -> dict[str, Any]:
    is_test = np.arange(len(rows)) % 3 == 2
    components = principal_components(rows[~is_test].astype(np.float32), n_components, np.random.default_rng(0))
    assert wanted is not None
    prediction = prediction_of(wanted, is_test, np.ones(len(rows), dtype=bool))
    assert prediction is not None
    numbers = np.arange(len(rows))
    scaled = rows.astype(np.float32)
    sample = Sample(scaled, features.astype(np.float32), {}, 0 * numbers, numbers, numbers, numbers >= 0)
    return probe_facts(sample, components, prediction)


def unequal_rows(n_rows: int = 900) -> tuple[np.ndarray, np.ndarray, Labels | None]:
    """Return rows whose classes differ in columns of small variance only, and the classes, also as labels."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, n_rows)
    rows = rng.normal(size=(n_rows, 12))
    rows[:, :3] += 2 * np.eye(3)[kinds]
    rows[:, :6] += rng.normal(size=(n_rows, 1))  # so that the first components hold these columns
    rows[:, 6:] *= 50
    return rows, kinds, LabelChoice().find({"kind": kinds}, {})


def test_baselines_equal_scikit_learn_on_the_same_split() -> None:
    rows, kinds, labels = unequal_rows()
    is_test = np.arange(len(rows)) % 3 == 2
    found = facts_of(rows, rows[:, :1], labels, 4)
    standard = StandardScaler().fit(rows[~is_test])
    columns = standard.transform(rows)
    representations = {
        "features": rows[:, :1],
        "components": PCA(1).fit(rows[~is_test]).transform(rows),
        "standardized": PCA(1).fit(columns[~is_test]).transform(columns),
        "columns": columns,
    }
    numbers = 3 + rows[:, 0] + rows[:, 2] ** 2
    regression = facts_of(rows, rows[:, :1], Numbers("t", numbers), 4)
    for name, values in representations.items():
        inputs = StandardScaler().fit(values[~is_test]).transform(values)
        classifier = RidgeClassifier(alpha=1e-3).fit(inputs[~is_test], kinds[~is_test])
        expected = classifier.score(inputs[is_test], kinds[is_test])
        assert found[name] == pytest.approx(expected, abs=0.02), name
        r2 = Ridge(alpha=1e-3).fit(inputs[~is_test], numbers[~is_test]).score(inputs[is_test], numbers[is_test])
        assert regression[name] == pytest.approx(r2, abs=0.01), name
    assert found["n_components"] == regression["n_components"] == 1
    constant = np.full(is_test.sum(), numbers[~is_test].mean())
    assert regression["constant"] == pytest.approx(r2_score(numbers[is_test], constant))
    assert (found["score"], regression["score"]) == ("accuracy", "R2")
    assert regression["columns"] > regression["components"] + regression["margins"]["components"]


def test_error_bar_is_two_standard_errors_of_paired_differences() -> None:
    rows, _, labels = unequal_rows()
    found = facts_of(rows, rows[:, :3], labels, 3)
    n = found["n_test"]
    for name, margin in found["margins"].items():
        difference = found[name] - found["features"]
        # All differences are -1, 0 or 1, so the variance is the share of unequal rows minus the squared mean.
        share = margin**2 * n / 4 + difference**2
        assert share * n == pytest.approx(round(share * n), abs=1e-6)
        assert abs(difference) <= share + 1e-9
    same = facts_of(rows, rows, labels, 12)
    assert same["margins"]["columns"] == pytest.approx(0, abs=1e-12)


@each(
    "probe, errors, is_good",
    [
        (probe_of(0.6, components=0.61), {}, True),
        (probe_of(0.6, columns=0.63), {}, False),
        (probe_of(0.6, columns=0.63, margin=0.04), {}, True),
        (probe_of(0.912, -0.01, 0.025, "R2", columns=0.951), {}, False),
        (probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.59), {}, False),
        (None, {"cost": 0.97}, False),
        (None, {"cost": None, "components": None, "mean": None}, True),
    ],
)
def test_features_are_good_unless_a_baseline_is_better(
    probe: dict[str, Any] | None, errors: dict[str, float | None], is_good: bool
) -> None:
    found = judged(probe, **errors)
    assert found.is_good == is_good
    assert (found.suggestion == "") == is_good
    report = {
        **{"summary": {**SUMMARY, **errors}, "sample": None, "judgment": asdict(found), "warnings": NO_WARNINGS},
        **{"config": {**SETTINGS, "output": "out"}, "host": "node", "made": "2030-01-31"},
    }
    assert (status(report) == "OK") == is_good
    assert ("No action" in verdict(report)) == is_good
    page = page_of(report)
    assert page.is_good == is_good
    assert found.suggestion in " ".join(text_of(page).split())


def test_suggested_flags_differ_from_the_settings_of_the_run() -> None:
    """Only flags that were measured to help are suggested, and none if no column shows the labels."""
    supervised = {"target": "kind", "fit_on": "split == train"}
    for baseline, config, summary, flags in (
        ("columns", {}, {}, ["--output-layer hidden", "--target kind", "--fit-on", "--n-features 16"]),
        ("columns", supervised, {"n_features": 19}, ["--output-layer hidden"]),
        ("columns", supervised, {"n_inputs": 784}, []),
        ("components", {}, {}, ["--hidden none"]),
        ("components", {"hidden": []}, {}, []),
        ("columns", {"model": "features"}, {}, ["--model"]),
    ):
        found = judged(probe_of(0.5, **{baseline: 0.7}), {**SETTINGS, **config}, **summary)
        assert [flag for flag in flags if flag not in found.suggestion] == []
        assert found.suggestion.count("--") == len(flags), (baseline, config)
        assert found.suggestion
    guesses = probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.6)
    assert "--labels" in judged(guesses).suggestion
    assert "--" not in judged(guesses, {**SETTINGS, "target": "kind"}).suggestion


@each("factor, is_worse", [(0.95, False), (1.2, True)])
def test_a_damaged_validation_row_does_not_decide_the_comparison(factor: float, is_worse: bool) -> None:
    rng = np.random.default_rng(0)
    components = rng.uniform(0.5, 1.5, 1000)
    errors = factor * rng.uniform(0.9, 1.1, 1000) * components
    before = Baseline(8, components, 10 * components).comparison(errors)
    assert before["is_worse"] == is_worse
    assert "outlier" not in before
    for of_features, of_components in ((1e8, 1.0), (1e8, 1e7), (1.0, 1e8)):
        all_errors = np.append(errors, of_features)
        baseline = Baseline(8, np.append(components, of_components), np.append(10 * components, 1e8))
        after = baseline.comparison(all_errors)
        assert after["is_worse"] == is_worse
        outlier = after["outlier"]
        assert (outlier["components"], outlier["mean"]) == pytest.approx((before["components"], before["mean"]))
        assert outlier["cost"] == pytest.approx(errors.mean())
        assert after["mean"] > 1e4, "a reported mean includes all rows"
        if of_features > 1:
            assert outlier["position"] == 1000
            assert outlier["share"] > 0.99


@each("i", [500, 501, 502])
def test_a_damaged_row_of_a_sample_changes_no_judgment(tmp_path: Path, i: int) -> None:
    """The damaged row is a training row or a test row of the linear models."""
    rng = np.random.default_rng(0)
    rows = mixture(rng, 1000, 20)
    model = components_model(rows, 8)
    kinds = (rows[:, 3] > np.median(rows[:, 3])).astype(np.int64)
    found = []
    for factor in (1, 1e4):
        rows[i] *= factor
        parts = make_parts(tmp_path, model, rows, len(rows), y=kinds)
        sample = draw_sample(parts, SampleSpec(model))
        assert sample is not None
        found.append(measure(sample, parts, model, LabelChoice()))
    before, after = found
    assert before["outlier"] is None
    outlier = after["outlier"]
    assert (outlier["file"], outlier["row"]) == (str(tmp_path / "rows.h5"), i)
    assert after["mean_error"] > 100 * before["mean_error"], "a reported mean includes all rows"
    assert outlier["cost"] == pytest.approx(before["mean_error"], rel=0.05)
    assert outlier["mean"] == pytest.approx(before["of_mean"], rel=0.05)
    for name in ("features", *BASELINES):
        assert after["probe"][name] == pytest.approx(before["probe"][name], abs=0.03), name
    verdicts = [judge({**SUMMARY, "cost": None, "components": None}, facts, {}) for facts in found]
    assert verdicts[0].is_good == verdicts[1].is_good
    assert verdicts[0].explained == verdicts[1].explained == ""
    assert mentions(verdicts[1].remark, f"file={outlier['file']}", f"row={i}")


def test_features_do_not_seem_dead_next_to_a_damaged_row() -> None:
    features = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
    before = count_units(features, "linear")
    features[5] = [1e6, 1, 1, 1, 1, 1]
    assert count_units(features, "linear") == before


def test_a_target_is_probed_unless_labels_are_named(tmp_path: Path) -> None:
    """Test rows are those that did not train; rows without a value are left out."""
    rng = np.random.default_rng(0)
    rows = rng.random((900, 6)).astype(np.float32)
    numbers = rows.sum(axis=1).astype(np.float64)
    numbers[::5] = np.nan
    has_value = np.arange(900) % 3 > 0
    kinds = (rows[:, 0] > 0.5).astype(np.int64)
    classes = np.where(np.isnan(numbers), np.nan, np.arange(900) % 100)  # too many to be labels without a target
    parts = make_parts(tmp_path, model_of(6, 2), rows, 300, t=numbers, c=classes, has_t=has_value, y=kinds)
    is_trained = np.arange(900) < 600
    parts = [replace(part, trained=is_trained[i * 300 :][:300]) for i, part in enumerate(parts)]
    sample = draw_sample(parts, SampleSpec(model_of(6, 2)))
    assert sample is not None
    usable = np.flatnonzero(~np.isnan(numbers) & has_value)
    choice = LabelChoice(masks={"t": "has_t", "c": "has_t"})

    def probe_of_target(kind: str, choice: LabelChoice) -> tuple[Any, ...]:
        about = {"training": {"target": {"name": "t", "kind": kind, "fit_on": "split == train"}}}
        probe = measure(sample, parts, replace(model_of(6, 2), about=about), choice)["probe"]
        return probe["labels"], probe["score"], probe["n_test"]

    n_test = (usable >= 600).sum()
    assert probe_of_target("numbers", choice) == ("t", "R2", n_test)
    assert probe_of_target("numbers", replace(choice, named="y")) == ("y", "accuracy", 300)
    sample.extras["t"] = sample.extras.pop("c")
    assert probe_of_target("classes", choice) == ("t", "accuracy", n_test)
    del sample.extras["t"]
    assert probe_of_target("classes", choice) == ("y", "accuracy", 300)
