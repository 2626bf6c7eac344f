"""Tests of judgments of rows of which one is damaged: it is reported, and does not decide."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.labels import LabelChoice
from shardpress.report.baselines import BASELINES
from shardpress.report.judgment import judge
from shardpress.report.measures import measure
from shardpress.report.sample import SampleSpec, draw_sample
from shardpress.run.summary import Summary
from shardpress.training.components import Baseline
from shardpress.training.verdict import count_units
from tests.report.test_newrows import Mixture, components_model
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import make_parts

SUMMARY = Summary("out", 1000, 20, 8, 0, 1, "cpu", None, {})


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
        summary = {**asdict(SUMMARY), **after, "cost": float(all_errors.mean())}
        found = judge({**summary, "outlier": {**outlier, "file": "a.h5", "row": 7}}, None, {})
        expected = judge({**asdict(SUMMARY), **before, "cost": float(errors.mean())}, None, {})
        assert found.is_good == expected.is_good
        assert found.error.startswith(expected.error)
        assert mentions(found.error, "file=a.h5", "row=7") == (of_features > 1)


def test_the_last_line_names_the_row_that_has_most_of_the_error() -> None:
    outlier = {"file": "a.h5", "row": 7, "share": 0.97, "cost": 1e-3, "components": 2e-3, "mean": 0.1}
    summary = replace(SUMMARY, cost=0.0172, components=0.0168, mean=0.5, outlier=outlier)
    assert mentions(str(summary), "0.0172", "0.0168", "file=a.h5", "row=7", "97", "0.001", "0.002")
    assert "a.h5" not in str(replace(summary, outlier={**outlier, "share": 0.4}))


def measured(folder: Path, rows: np.ndarray, model: Any, **extras: np.ndarray) -> dict[str, Any]:
    folder.mkdir(parents=True)
    parts = make_parts(folder, model, rows, len(rows), **extras)
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    return measure(sample, parts, model, LabelChoice())


@each("i", [500, 501, 502])
def test_a_damaged_row_of_a_sample_changes_no_judgment(tmp_path: Path, i: int) -> None:
    """The damaged row of 1,000 is a training row or a test row of the linear models."""
    rng = np.random.default_rng(0)
    rows = Mixture.of(rng, 20, has_heavy_tails=False).draw(rng, 1000)
    model = components_model(rows, 8)
    kinds = (rows[:, 3] > np.median(rows[:, 3])).astype(np.int64)
    before = measured(tmp_path / str(i) / "before", rows, model, y=kinds)
    rows[i] *= 1e4
    after = measured(tmp_path / str(i) / "after", rows, model, y=kinds)
    assert before["outlier"] is None
    outlier = after["outlier"]
    assert (outlier["file"], outlier["row"]) == (str(tmp_path / str(i) / "after" / "rows.h5"), i)
    assert outlier["share"] > 0.99
    assert after["mean_error"] > 100 * before["mean_error"], "a reported mean includes all rows"
    assert outlier["cost"] == pytest.approx(before["mean_error"], rel=0.05)
    assert outlier["mean"] == pytest.approx(before["of_mean"], rel=0.05)
    for name in ("features", *BASELINES):
        assert after["probe"][name] == pytest.approx(before["probe"][name], abs=0.03), name
    verdicts = [judge(asdict(SUMMARY), sample, {}) for sample in (before, after)]
    assert verdicts[0].is_good == verdicts[1].is_good
    assert verdicts[0].explained == verdicts[1].explained == ""
    assert mentions(verdicts[1].error, f"file={outlier['file']}", f"row={i}")
    assert mentions(verdicts[1].remark, f"file={outlier['file']}", f"row={i}")


def test_features_do_not_seem_dead_next_to_a_damaged_row() -> None:
    features = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
    before = count_units(features, "linear")
    features[5] = [1e6, 1, 1, 1, 1, 1]
    assert count_units(features, "linear") == before
