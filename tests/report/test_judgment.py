"""Tests of the judgment: features are good only if no baseline classifies better by more than the error bar."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from shardpress.labels import labels_in
from shardpress.report.baselines import probe_facts
from shardpress.report.judgment import Judgment, judge
from shardpress.report.measures import LabelChoice, measure
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


def probe_of(features: float, commonest: float = 0.3, margin: float = 0.02, **baselines: float) -> dict[str, Any]:
    accuracies = {"components": 0.4, "standardized": 0.4, "columns": 0.4, **baselines}
    names = (*accuracies, "commonest")
    return {
        **{"labels": "kind", "n_train": 600, "n_test": 300, "n_components": 8, "features": features},
        **accuracies,
        "commonest": commonest,
        "margins": dict.fromkeys(names, margin),
    }


def judged(probe: dict[str, Any] | None, config: dict[str, Any] = SETTINGS, **errors: float | None) -> Judgment:
    sample = {"mean_error": 0.2, "of_mean": 1.0, "probe": probe}
    return judge({**SUMMARY, **ERRORS, **errors}, sample, config)


# -- baselines -----------------------------------------------------------------------------------------------------


def sample_of(rows: np.ndarray, features: np.ndarray) -> Sample:
    numbers = np.arange(len(rows))
    return Sample(rows.astype(np.float32), features.astype(np.float32), {}, 0 * numbers, numbers, numbers)


def facts_of(rows: np.ndarray, features: np.ndarray, kinds: np.ndarray, n_components: int) -> dict[str, Any]:
    is_test = np.arange(len(rows)) % 3 == 2
    components = principal_components(rows[~is_test].astype(np.float32), n_components, np.random.default_rng(0))
    labels = labels_in("kind", kinds)
    assert labels is not None
    found = probe_facts(sample_of(rows, features), components, labels, is_test)
    assert found is not None
    return found


def unequal_rows(n_rows: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Return rows whose classes differ in columns of small variance only, and the classes."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, n_rows)
    rows = rng.normal(size=(n_rows, 12))
    rows[:, :3] += 2 * np.eye(3)[kinds]
    rows[:, :6] += rng.normal(size=(n_rows, 1))  # so that the first components hold these columns
    rows[:, 6:] *= 50
    return rows, kinds


def test_baselines_equal_scikit_learn_on_the_same_split() -> None:
    rows, kinds = unequal_rows()
    is_test = np.arange(len(rows)) % 3 == 2
    found = facts_of(rows, rows[:, :1], kinds, 4)
    standard = StandardScaler().fit(rows[~is_test])
    columns = standard.transform(rows)
    representations = {
        "features": rows[:, :1],
        "components": PCA(1).fit(rows[~is_test]).transform(rows),
        "standardized": PCA(1).fit(columns[~is_test]).transform(columns),
        "columns": columns,
    }
    for name, values in representations.items():
        inputs = StandardScaler().fit(values[~is_test]).transform(values)
        classifier = RidgeClassifier(alpha=1e-3).fit(inputs[~is_test], kinds[~is_test])
        expected = classifier.score(inputs[is_test], kinds[is_test])
        assert found[name] == pytest.approx(expected, abs=0.02), name
    assert found["n_components"] == 1


def test_error_bar_is_two_standard_errors_of_paired_differences() -> None:
    rows, kinds = unequal_rows()
    found = facts_of(rows, rows[:, :3], kinds, 3)
    n = found["n_test"]
    assert found["columns"] > found["components"] + found["margins"]["components"]
    for name, margin in found["margins"].items():
        difference = found[name] - found["features"]
        # All differences are -1, 0 or 1, so the variance is the share of unequal rows minus the squared mean.
        share = margin**2 * n / 4 + difference**2
        assert share * n == pytest.approx(round(share * n), abs=1e-6)
        assert abs(difference) <= share + 1e-9
    same = facts_of(rows, rows, kinds, 12)
    assert same["margins"]["columns"] == pytest.approx(0, abs=1e-12)


def test_scaling_of_columns_changes_only_components_of_scaled_columns() -> None:
    rows, kinds = unequal_rows()
    factors = np.linspace(1, 9, rows.shape[1])
    one = facts_of(rows, rows[:, :3], kinds, 3)
    other = facts_of(rows * factors + 5, rows[:, :3], kinds, 3)
    for name in ("standardized", "columns", "features", "commonest"):
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


def test_suggested_flags_differ_from_the_settings_of_the_run() -> None:
    for baseline, config, flags in (
        ("columns", {}, ["--n-features 16", "--target kind", "--fit-on"]),
        ("columns", {"target": "kind", "fit_on": "split == train"}, ["--n-features 16"]),
        ("standardized", {"scale": "std"}, ["--clip-quantile 0.001"]),
        ("standardized", {"scale": "range", "clip_quantile": 0.01}, ["--scale std"]),
        ("components", {}, ["--epochs 40", "--hidden none"]),
        ("components", {"hidden": []}, ["--epochs 40", "--hidden 512"]),
    ):
        found = judged(probe_of(0.5, **{baseline: 0.7}), {**SETTINGS, **config})
        assert [flag for flag in flags if flag not in found.suggestion] == []
        assert found.suggestion.count("--") == len(flags)
    for config in ({"scale": "std", "clip_quantile": 0.001}, {"model": "features"}):
        found = judged(probe_of(0.5, standardized=0.7), {**SETTINGS, **config})
        assert found.suggestion
        assert "--scale" not in found.suggestion
    of_auto = {**SETTINGS, "scale": "auto"}
    for chosen, is_suggested in (("range", True), ("common", True), ("std", False)):
        found = judge({**SUMMARY, **ERRORS}, {"probe": probe_of(0.5, standardized=0.7)}, of_auto, {"scale": chosen})
        assert ("--scale std" in found.suggestion) == is_suggested, chosen
    guesses = probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.6)
    assert "--labels" in judged(guesses).suggestion
    assert (
        "--n-features 16"
        in judged({**guesses, "columns": 0.66, "margins": {**guesses["margins"], "columns": 0.1}}).suggestion
    )
    wide = judge({**SUMMARY, **ERRORS, "n_features": 19}, {"probe": probe_of(0.5, columns=0.7)}, SETTINGS)
    assert "--n-features" not in wide.suggestion


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
        assert measure(sample, parts, model, {}, choice)["probe"]["labels"] == expected
    assert "labels=" not in caplog.text
    assert "probe" not in measure(sample, parts, model, {}, LabelChoice(named="other"))
    assert mentions(caplog.text, "labels=other", "600")
