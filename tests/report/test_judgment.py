"""Tests of the judgment: features are good only if no baseline predicts better by more than the error bar."""

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
from shardpress.model import Model
from shardpress.report.baselines import BASELINES, prediction_of, probe_facts
from shardpress.report.judgment import Judgment, judge
from shardpress.report.measures import measure
from shardpress.report.page.build import page_of, text_of
from shardpress.report.page.verdict import status, verdict
from shardpress.report.sample import Sample, SampleSpec, draw_sample
from shardpress.settings.config import Config
from shardpress.training.components import principal_components
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import make_parts, model_of

NO_WARNINGS = {"n": 0, "first": []}
SUMMARY = {"n_rows": 900, "n_inputs": 20, "n_features": 8, "seconds": {"scan": 1.0}}
ERRORS = {"cost": 0.2, "components": 0.8, "mean": 1.0}
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


def judged(probe: dict[str, Any] | None, config: dict[str, Any] = SETTINGS, **errors: float | None) -> Judgment:
    sample = {"mean_error": 0.2, "of_mean": 1.0, "probe": probe}
    return judge({**SUMMARY, **ERRORS, **errors}, sample, config)


# -- baselines -----------------------------------------------------------------------------------------------------


def sample_of(rows: np.ndarray, features: np.ndarray) -> Sample:
    numbers = np.arange(len(rows))
    return Sample(rows.astype(np.float32), features.astype(np.float32), {}, 0 * numbers, numbers, numbers, numbers >= 0)


def facts_of(
    rows: np.ndarray, features: np.ndarray, wanted: Labels | Numbers | None, n_components: int
) -> dict[str, Any]:
    is_test = np.arange(len(rows)) % 3 == 2
    components = principal_components(rows[~is_test].astype(np.float32), n_components, np.random.default_rng(0))
    assert wanted is not None
    prediction = prediction_of(wanted, is_test, np.ones(len(rows), dtype=bool))
    assert prediction is not None
    return probe_facts(sample_of(rows, features), components, prediction)


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


def test_units_missing_values_and_outliers_change_no_r2() -> None:
    rows, _, _ = unequal_rows()
    numbers = rows[:, 0] + rows[:, 2]
    before = facts_of(rows, rows[:, :1], Numbers("t", numbers), 4)
    scaled = facts_of(rows, rows[:, :1], Numbers("t", 1e200 * numbers + 1e201), 4)
    for name in ("features", *BASELINES, "constant"):
        assert scaled[name] == pytest.approx(before[name], abs=1e-6)
    numbers[[3, 5]] = np.nan
    numbers[[7, 8]] = (1e9, -1e12)  # in a training row, and in a test row
    after = facts_of(rows, rows[:, :1], Numbers("t", numbers), 4)
    assert before["n_train"] + before["n_test"] - after["n_train"] - after["n_test"] == 4
    for name in ("features", *BASELINES):
        assert after[name] == pytest.approx(before[name], abs=0.02), name


def test_a_column_that_hardly_varies_makes_no_huge_error() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=900)
    features = np.stack([numbers + rng.normal(size=900), np.zeros(900)], axis=1)
    features[4, 1] = 1e-6
    features[5, 1] = 1.0
    found = facts_of(unequal_rows()[0], features, Numbers("t", numbers), 4)
    assert found["features"] > 0.3


def test_error_bar_is_two_standard_errors_of_paired_differences() -> None:
    rows, _, labels = unequal_rows()
    found = facts_of(rows, rows[:, :3], labels, 3)
    n = found["n_test"]
    assert found["columns"] > found["components"] + found["margins"]["components"]
    for name, margin in found["margins"].items():
        difference = found[name] - found["features"]
        # All differences are -1, 0 or 1, so the variance is the share of unequal rows minus the squared mean.
        share = margin**2 * n / 4 + difference**2
        assert share * n == pytest.approx(round(share * n), abs=1e-6)
        assert abs(difference) <= share + 1e-9
    same = facts_of(rows, rows, labels, 12)
    assert same["margins"]["columns"] == pytest.approx(0, abs=1e-12)


def test_scaling_of_columns_changes_only_components_of_scaled_columns() -> None:
    rows, _, labels = unequal_rows()
    factors = np.linspace(1, 9, rows.shape[1])
    one = facts_of(rows, rows[:, :3], labels, 3)
    other = facts_of(rows * factors + 5, rows[:, :3], labels, 3)
    for name in ("standardized", "columns", "features", "constant"):
        assert other[name] == pytest.approx(one[name], abs=0.01), name


# -- judgment ------------------------------------------------------------------------------------------------------


@each(
    "probe, errors, is_good",
    [
        (None, {}, True),
        (probe_of(0.6), {}, True),
        (probe_of(0.6, components=0.61), {}, True),
        (probe_of(0.6, components=0.63), {}, False),
        (probe_of(0.6, standardized=0.63), {}, False),
        (probe_of(0.6, columns=0.63), {}, False),
        (probe_of(0.6, columns=0.63, margin=0.04), {}, True),
        (probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.59), {}, False),
        (None, {"cost": 0.97}, False),
        (None, {"cost": 1.2, "components": 1.3}, False),
        (probe_of(0.6), {"cost": 0.97}, False),
        (None, {"cost": None, "components": None, "mean": None}, True),
    ],
)
def test_features_are_good_unless_a_baseline_is_better(
    probe: dict[str, Any] | None, errors: dict[str, float | None], is_good: bool
) -> None:
    found = judged(probe, **errors)
    assert found.is_good == is_good
    assert (found.suggestion == "") == is_good
    sample = {"mean_error": 0.2, "of_mean": 1.0, "probe": probe}
    summary = {**SUMMARY, **ERRORS, **errors}
    report = {"summary": summary, "sample": sample, "judgment": asdict(found), "warnings": NO_WARNINGS}
    assert (status(report) == "OK") == is_good
    assert ("No action" in verdict(report)) == is_good


def test_text_names_the_better_baseline_and_its_numbers() -> None:
    found = judged(probe_of(0.59, components=0.61, standardized=0.63, columns=0.66, margin=0.03))
    assert mentions(found.classifier, "kind", "59.0", 300, "66.0", 20, "3.0", "30.0")
    assert mentions(found.error, "75", 8)
    for probe, numbers in (
        (probe_of(0.59, standardized=0.63), ("59.0", 300, "63.0", 8, "standardized", "2.0")),
        (probe_of(0.59, 0.58, components=0.59), ("59.0", 300, "59.0", 8, "58.0")),
        (probe_of(0.80, components=0.61), ("80.0", 300, "61.0", 8, "2.0")),
    ):
        assert mentions(judged(probe).classifier, "kind", *numbers)
    assert mentions(judged(None, cost=0.98).explained, "2.0")
    of_number = judged(probe_of(0.912, -0.01, 0.025, "R2", columns=0.951))
    assert mentions(of_number.classifier, "kind", 300, "R2", "0.912", "0.951", 20, "0.025")
    assert not of_number.is_good


def test_suggested_flags_differ_from_the_settings_of_the_run() -> None:
    """Only flags that were measured to help are suggested."""
    supervised = {"target": "kind", "fit_on": "split == train"}
    for baseline, config, flags in (
        ("columns", {}, ["--output-layer hidden", "--target kind", "--fit-on", "--n-features 16"]),
        ("columns", {"hidden": []}, ["--target kind", "--fit-on", "--n-features 16"]),
        ("columns", {"output_layer": "hidden"}, ["--target kind", "--fit-on", "--n-features 16"]),
        ("columns", supervised, ["--output-layer hidden", "--n-features 16"]),
        ("standardized", {}, ["--hidden none"]),
        ("components", {}, ["--hidden none"]),
        ("components", supervised, []),
        ("components", {"hidden": []}, []),
        ("columns", {"model": "features"}, ["--model"]),
    ):
        found = judged(probe_of(0.5, **{baseline: 0.7}), {**SETTINGS, **config})
        assert [flag for flag in flags if flag not in found.suggestion] == []
        assert found.suggestion.count("--") == len(flags), (baseline, config)
        assert found.suggestion
    wide = judge({**SUMMARY, **ERRORS, "n_inputs": 784}, {"probe": probe_of(0.5, columns=0.7)}, SETTINGS)
    assert "--output-layer" not in wide.suggestion
    assert "--n-features" in wide.suggestion
    sample = {"probe": probe_of(0.5, columns=0.7)}
    wide = judge({**SUMMARY, **ERRORS, "n_inputs": 784}, sample, {**SETTINGS, **supervised})
    assert wide.suggestion.count("--") == 0
    many = judge({**SUMMARY, **ERRORS, "n_features": 19}, {"probe": probe_of(0.5, columns=0.7)}, SETTINGS)
    assert "--n-features" not in many.suggestion


def test_values_that_no_column_shows_need_no_other_features() -> None:
    guesses = probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.6)
    assert "--labels" in judged(guesses).suggestion
    for probe, config in ((guesses, {**SETTINGS, "target": "kind"}), ({**guesses, "score": "R2"}, SETTINGS)):
        found = judged(probe, config)
        assert not found.is_good
        assert "--" not in found.suggestion
    better = {**guesses, "columns": 0.66, "margins": {**guesses["margins"], "columns": 0.1}}
    assert "--n-features 16" in judged(better).suggestion


def test_page_and_text_contain_status_and_suggestion() -> None:
    summary = {**SUMMARY, **ERRORS, "device": "cpu"}
    config = {**SETTINGS, "output": "out"}
    useless = {**summary, "cost": 0.99}
    facts = {"sample": None, "config": config, "warnings": NO_WARNINGS, "host": "node", "made": "2030-01-31"}
    judgments = [judge(each, None, config) for each in (summary, useless)]
    good, bad = (page_of({**facts, "summary": summary, "judgment": asdict(each)}) for each in judgments)
    assert (good.is_good, bad.is_good) == (True, False)
    assert judgments[1].suggestion in " ".join(text_of(bad).split())


# -- labels --------------------------------------------------------------------------------------------------------


def test_labels_of_the_probe_are_chosen_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(6, 2)
    rows = np.random.default_rng(0).random((600, 6)).astype(np.float32)
    kinds = np.arange(600) % 3
    parts = make_parts(tmp_path, model, rows, 200, batch=kinds, y=kinds, kind=kinds)
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    for choice, expected in (
        (LabelChoice(), "y"),
        (LabelChoice(("obs/batch", "obs/kind")), "kind"),
        (LabelChoice(("obs/kind",), "batch"), "batch"),
    ):
        assert measure(sample, parts, model, choice)["probe"]["labels"] == expected
    assert "labels=" not in caplog.text
    assert "probe" not in measure(sample, parts, model, LabelChoice(named="other"))
    assert mentions(caplog.text, "labels=other", "600")


def target_model(kind: str) -> Model:
    about = {"training": {"target": {"name": "t", "kind": kind, "fit_on": "split == train"}}}
    return replace(model_of(6, 2), about=about)


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
    probe = measure(sample, parts, target_model("numbers"), choice)["probe"]
    assert (probe["labels"], probe["score"]) == ("t", "R2")
    assert (probe["n_train"], probe["n_test"]) == ((usable < 600).sum(), (usable >= 600).sum())
    named = replace(choice, named="y")
    probe = measure(sample, parts, target_model("numbers"), named)["probe"]
    assert (probe["labels"], probe["score"], probe["n_test"]) == ("y", "accuracy", 300)
    sample.extras["t"] = sample.extras.pop("c")
    probe = measure(sample, parts, target_model("classes"), choice)["probe"]
    assert (probe["labels"], probe["score"]) == ("t", "accuracy")
    assert probe["n_test"] == (usable >= 600).sum()
    del sample.extras["t"]
    assert measure(sample, parts, target_model("classes"), choice)["probe"]["labels"] == "y"


@pytest.mark.parametrize("n_left_out", [0, 29, 30])
def test_too_few_rows_that_did_not_train_test_nothing(tmp_path: Path, n_left_out: int) -> None:
    rows = np.random.default_rng(0).random((900, 6)).astype(np.float32)
    (part,) = make_parts(tmp_path, model_of(6, 2), rows, 900, t=rows[:, 0].astype(np.float64))
    parts = [replace(part, trained=np.arange(900) >= n_left_out)]
    sample = draw_sample(parts, SampleSpec(model_of(6, 2)))
    assert sample is not None
    facts = measure(sample, parts, target_model("numbers"), LabelChoice())
    assert ("no_test" in facts["probe"]) == (n_left_out < 30)
    judgment = judge({**SUMMARY, **ERRORS}, facts, SETTINGS)
    assert mentions(judgment.classifier, "--fit-on") == (n_left_out < 30)
    assert judgment.is_good or n_left_out == 30
