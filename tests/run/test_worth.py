"""A run says what its features are worth: at its end, when it is typed again, and in its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.training import verdict
from tests.support.standin import Night

BESIDE = "in scaled units (2 principal components: "


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())


def last_line(output: Path) -> str:
    return (output / "run.log").read_text().splitlines()[-1]


@pytest.mark.process
def test_the_last_line_and_the_report_hold_the_errors_against_those_of_components_and_mean(
    night: Night, out: Path
) -> None:
    assert night.run(out) == 0
    report = report_of(out)
    baseline, summary = report["training"]["baseline"], report["summary"]
    assert 0 < baseline["components"] < baseline["mean"]
    assert (summary["components"], summary["mean"]) == (baseline["components"], baseline["mean"])
    assert summary["cost"] == report["training"]["history"][-1]["validation_cost"]
    said = f"{summary['cost']:.3g} {BESIDE}{summary['components']:.3g}, the mean: {summary['mean']:.3g})."
    assert said in last_line(out)
    assert report["training"]["units"]["n_features"] == 2
    assert night.run(out) == 0
    assert "Already complete" in last_line(out)
    assert said in last_line(out)


@pytest.mark.process
def test_nothing_is_said_where_it_is_not_asked_for_or_nothing_is_watched(night: Night, out: Path) -> None:
    for flags in (["--baseline", "no"], ["--validation-fraction", "0"]):
        assert night.run(out, "--restart", *flags) == 0
        assert report_of(out)["training"]["baseline"] is None
        assert "in scaled units. " in last_line(out)


@pytest.mark.process
def test_whether_it_is_asked_for_changes_no_result(night: Night, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert night.run(out, "--baseline", "no") == night.run(other) == 0
    one, two = (json.loads((folder / "manifest.json").read_text()) for folder in (out, other))
    assert (one["model"], one["fingerprint"]) == (two["model"], two["fingerprint"])


@pytest.mark.process
def test_a_model_that_is_taken_over_is_complained_of_again(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "_MANY", -np.inf)  # every kind of units is one too many
    assert night.run(out) == 0
    caplog.clear()
    (out / "index.h5").unlink()
    assert night.run(out) == 0
    assert "training: an earlier run has finished it" in caplog.text
    assert "0 of 2 features repeat another one" in caplog.text
