"""Tests of the value of features: reported at the end of a run, when it is repeated, and in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.result import Result
from shardpress.training import verdict
from tests.support.interruptions import FullAfter
from tests.support.logged import COMPLETE, mentions, reuses
from tests.support.standin import Workspace


def report_of(output: Path) -> dict[str, Any]:
    return Result.open(output).report()


def last_line(output: Path) -> str:
    return (output / "run.log").read_text().splitlines()[-1]


@pytest.mark.process
def test_the_errors_of_baselines_are_reported(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    report = report_of(out)
    baseline = report["training"]["baseline"]
    summary = report["summary"]
    assert 0 < baseline["components"] < baseline["mean"]
    assert (summary["components"], summary["mean"]) == (baseline["components"], baseline["mean"])
    assert summary["cost"] == report["training"]["history"][-1]["validation_cost"]
    errors = [f"{summary[name]:.3g}" for name in ("cost", "components", "mean")]
    assert mentions(last_line(out), *errors)
    assert report["training"]["units"]["n_features"] == 2
    assert workspace.run(out) == 0
    assert mentions(last_line(out), COMPLETE, *errors)


@pytest.mark.process
def test_no_baseline_without_validation_rows(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--validation-fraction", "0") == 0
    assert report_of(out)["training"]["baseline"] is None
    assert "principal component" not in last_line(out)


@pytest.mark.process
def test_warnings_about_a_reused_model_are_repeated(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "_MANY", -np.inf)  # every kind of unit is reported if there is one
    assert workspace.run(out, disk=FullAfter("part", 1)) == 74
    caplog.clear()
    assert workspace.run(out) == 0
    assert reuses(caplog.text, "training")
    assert mentions(caplog.text, "0 of 2 features")
