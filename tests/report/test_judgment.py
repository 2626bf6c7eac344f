"""Tests of the judgment: features are good only if no baseline predicts better, and a damaged row does not decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shardpress.model.about import About, TargetFacts, TrainingFacts, Units
from shardpress.model.labels import LabelChoice, Labels, Numbers
from shardpress.report.baselines import FittedComponents, linear_probe, prediction_of
from shardpress.report.judgment import judge
from shardpress.report.measures import measure
from shardpress.report.page.build import page_of, text_of
from shardpress.report.sampling import Sample, SampleSpec, draw_sample
from shardpress.report.summary import Report
from shardpress.result.facts import BaselineScore, Judgment, LinearProbe, SampleFacts, ScoreName
from shardpress.settings.config import Config
from shardpress.training.components import Baseline
from tests.report.test_newrows import components_model, mixture
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import make_parts, measured, model_of
from tests.support.runfacts import SUMMARY, run_facts

SETTINGS = Config().changed(epochs=20, hidden=(16,), n_features=8)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleFacts:
    """Return measurements without a linear model, whose errors say nothing about the features."""
    folder = tmp_path_factory.mktemp("sample")
    _, facts = measured(
        model_of(6, 2), make_parts(folder, model_of(6, 2), np.random.default_rng(0).random((60, 6)), 60)
    )
    return structs.replace(facts, mean_error=0.2, of_mean=1.0)


def probe_of(
    features: float, constant: float = 0.3, margin: float = 0.02, score: ScoreName = "accuracy", **baselines: float
) -> LinearProbe:
    scores = {"components": 0.4, "standardized": 0.4, "columns": 0.4, "constant": constant, **baselines}
    of_baselines = {name: BaselineScore(value, margin) for name, value in scores.items()}
    return LinearProbe("kind", score, 600, 300, n_components=8, n_fitted=600, features=features, **of_baselines)


def judged(
    sample: SampleFacts, probe: LinearProbe | None, config: Config = SETTINGS, **summary: float | None
) -> Judgment:
    return judge(structs.replace(SUMMARY, **summary), structs.replace(sample, probe=probe), config)


UNITS = Units(1, 1, 0, 0, 0, 0.0)
IS_TEST = np.arange(900) % 3 == 2


def rows_of_kinds() -> tuple[np.ndarray, np.ndarray]:
    """Return rows whose classes differ in columns of small variance only, and the classes."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 900)
    rows = rng.normal(size=(900, 12))
    rows[:, :3] += 2 * np.eye(3)[kinds]
    rows[:, :6] += rng.normal(size=(900, 1))  # so that the first components hold these columns
    rows[:, 6:] *= 50
    return rows, kinds


def probe_on(rows: np.ndarray, wanted: Labels | Numbers | None) -> LinearProbe:
    """Return the scores of a feature, the first column, and of the baselines."""
    scaled = rows.astype(np.float32)
    components = FittedComponents.of(scaled[~IS_TEST], 4)
    assert wanted is not None
    prediction = prediction_of(wanted, IS_TEST, np.ones(len(rows), dtype=bool))
    assert prediction is not None
    numbers = np.arange(len(rows))
    sample = Sample(scaled, scaled[:, :1], {}, 0 * numbers, numbers, numbers, numbers >= 0, numbers >= 0)
    return linear_probe(sample, components, prediction)


def score_on(name: str, probe: LinearProbe) -> float:
    return probe.features if name == "features" else probe.baselines[name].score


def representations_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    training_rows = rows[~IS_TEST]
    return {
        "features": rows[:, :1],
        "components": PCA(1).fit(training_rows).transform(rows),
        "standardized": make_pipeline(StandardScaler(), PCA(1)).fit(training_rows).transform(rows),
        "columns": rows,
    }


def test_baselines_equal_scikit_learn_on_the_same_split() -> None:
    """The margin is two standard errors of the difference from the features on the same rows."""
    rows, kinds = rows_of_kinds()
    found = probe_on(rows, LabelChoice().find({"kind": kinds}, {}))
    assert (found.score_name, found.n_components) == ("accuracy", 1)
    are_correct = {}
    for name, values in representations_of(rows).items():
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e-3)).fit(values[~IS_TEST], kinds[~IS_TEST])
        are_correct[name] = classifier.predict(values[IS_TEST]) == kinds[IS_TEST]
        assert score_on(name, found) == pytest.approx(are_correct[name].mean(), abs=0.02), name
    for name, baseline in found.baselines.items():
        differences = are_correct[name].astype(float) - are_correct["features"]
        margin = 2 * differences.std() / np.sqrt(IS_TEST.sum())
        assert baseline.margin == pytest.approx(margin, rel=0.1), name


def test_baselines_of_numbers_equal_scikit_learn_on_the_same_split() -> None:
    rows, _ = rows_of_kinds()
    numbers = 3 + rows[:, 0] + rows[:, 2] ** 2
    found = probe_on(rows, Numbers("t", numbers))
    assert (found.score_name, found.n_components) == ("R2", 1)
    for name, values in representations_of(rows).items():
        regression = make_pipeline(StandardScaler(), Ridge(alpha=1e-3)).fit(values[~IS_TEST], numbers[~IS_TEST])
        assert score_on(name, found) == pytest.approx(regression.score(values[IS_TEST], numbers[IS_TEST]), abs=0.01), (
            name
        )
    constant = np.full(IS_TEST.sum(), numbers[~IS_TEST].mean())
    assert found.constant.score == pytest.approx(r2_score(numbers[IS_TEST], constant))
    assert found.columns.score > found.components.score + found.components.margin


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
    sample: SampleFacts, probe: LinearProbe | None, errors: dict[str, float | None], is_good: bool
) -> None:
    found = judged(sample, probe, **errors)
    assert found.is_good == is_good
    assert (found.suggestion == "") == is_good
    summary = structs.replace(SUMMARY, **errors)
    page = page_of(Report(run_facts(), "0" * 64, None, None, summary, found))
    assert page.is_good == is_good
    assert found.suggestion in " ".join(text_of(page).split())


def test_suggested_flags_differ_from_the_settings_of_the_run(sample: SampleFacts) -> None:
    """Only flags that were measured to help are suggested, and none if no column shows the labels."""
    supervised = {"target": "kind"}
    for baseline, config, summary, flags in (
        ("columns", {}, {}, ["--output-layer hidden", "--target kind", "--fit-on", "--n-features 16"]),
        ("columns", supervised, {"n_components": 19}, ["--output-layer hidden"]),
        ("columns", supervised, {"n_inputs": 784}, []),
        ("components", {}, {}, ["--hidden none"]),
        ("columns", {"model": "features"}, {}, ["--model"]),
    ):
        found = judged(sample, probe_of(0.5, **{baseline: 0.7}), SETTINGS.changed(**config), **summary)
        assert [flag for flag in flags if flag not in found.suggestion] == []
        assert found.suggestion.count("--") == len(flags), (baseline, config)
        assert found.suggestion
    guesses = probe_of(0.59, 0.59, components=0.59, standardized=0.59, columns=0.6)
    assert "--labels" in judged(sample, guesses).suggestion
    assert "--" not in judged(sample, guesses, SETTINGS.changed(target="kind")).suggestion


@each("factor, is_worse", [(0.95, False), (1.2, True)])
def test_a_damaged_validation_row_does_not_decide_the_comparison(factor: float, is_worse: bool) -> None:
    rng = np.random.default_rng(0)
    components = rng.uniform(0.5, 1.5, 1000)
    errors = factor * rng.uniform(0.9, 1.1, 1000) * components
    before = Baseline(8, 1000, components, 10 * components).comparison(errors)
    assert before.is_worse == is_worse
    assert before.outlier is None
    for of_features, of_components in ((1e8, 1.0), (1e8, 1e7), (1.0, 1e8)):
        all_errors = np.append(errors, of_features)
        baseline = Baseline(8, 1000, np.append(components, of_components), np.append(10 * components, 1e8))
        after = baseline.comparison(all_errors)
        assert after.is_worse == is_worse
        outlier = after.outlier
        assert outlier is not None
        assert (outlier.components, outlier.mean) == pytest.approx((before.components, before.mean))
        assert outlier.cost == pytest.approx(errors.mean())
        assert after.mean > 1e4, "a reported mean includes all rows"


@each("i", [500, 501])
def test_a_damaged_row_of_a_sample_changes_no_judgment(tmp_path: Path, i: int) -> None:
    """The damaged row is a training row or a test row of the linear models."""
    rng = np.random.default_rng(0)
    rows = mixture(rng, 1000, 20)
    model = components_model(rows, 8)
    kinds = (rows[:, 3] > np.median(rows[:, 3])).astype(np.int64)
    found = []
    for factor in (1, 1e4):
        rows[i] *= factor
        _, facts = measured(model, make_parts(tmp_path, model, rows, len(rows), y=kinds))
        found.append(facts)
    before, after = found
    assert before.outlier is None
    assert after.outlier.cost == pytest.approx(before.mean_error, rel=0.05)
    assert after.outlier.mean == pytest.approx(before.of_mean, rel=0.05)
    assert before.probe is not None
    assert after.probe is not None
    for name in ("features", *before.probe.baselines):
        assert score_on(name, after.probe) == pytest.approx(score_on(name, before.probe), abs=0.03), name
    summary = structs.replace(SUMMARY, cost=None, components=None)
    verdicts = [judge(summary, facts, Config()) for facts in found]
    assert verdicts[0].is_good == verdicts[1].is_good
    assert verdicts[0].explained == verdicts[1].explained == ""
    assert mentions(verdicts[1].remark, f"file={tmp_path / 'rows.h5'}", f"row={i}")


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
        target = TargetFacts("t", kind, n_classes=0, share=1.0, fit_on="split == train")
        about = About(training=TrainingFacts(0, [], None, UNITS, target=target))
        spec = SampleSpec(replace(model_of(6, 2), about=about))
        probe = measure(sample, parts, spec, choice).probe
        assert probe is not None
        return probe.labels, probe.score_name, probe.n_test

    n_test = (usable >= 600).sum()
    assert probe_of_target("numbers", choice) == ("t", "R2", n_test)
    assert probe_of_target("numbers", replace(choice, named="y")) == ("y", "accuracy", 300)
    sample.extras["t"] = sample.extras.pop("c")
    assert probe_of_target("classes", choice) == ("t", "accuracy", n_test)
