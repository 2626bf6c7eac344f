"""Tests of the end of a run: what it says about the features, the time, and its result."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from shardpress.result import Result
from shardpress.run.context import RunState
from tests.support.logged import COMPLETE, mentions
from tests.support.standin import Workspace


def last_line(output: Path) -> str:
    return (output / "run.log").read_text().splitlines()[-1]


@pytest.mark.process
def test_the_errors_of_baselines_are_reported(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    report = Result.open(out).report()
    baseline = report["training"]["baseline"]
    summary = report["summary"]
    assert 0 < baseline["components"] < baseline["mean"]
    assert (summary["components"], summary["mean"]) == (baseline["components"], baseline["mean"])
    assert summary["cost"] == report["training"]["history"][-1]["validation_cost"]
    errors = [f"{summary[name]:.3g}" for name in ("cost", "components", "mean")]
    assert mentions(last_line(out), "Done", "55 rows", 4, "2 features", out, *errors)
    assert workspace.run(out) == 0
    assert mentions(last_line(out), COMPLETE, *errors)
    assert workspace.run(out, "--validation-fraction", "0", "--overwrite") == 0
    assert Result.open(out).report()["training"]["baseline"] is None
    assert "principal component" not in last_line(out)


@pytest.mark.parametrize(("max_files", "has_warning"), [(35, True), (36, False)])
def test_more_parts_than_open_files_cause_a_warning(
    workspace: Workspace,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    max_files: int,
    has_warning: bool,
) -> None:
    """HDF5 returns fill values for files that it cannot open, without an error."""
    getrlimit = resource.getrlimit
    limits = {resource.RLIMIT_NOFILE: (max_files, max_files)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which) or getrlimit(which))
    assert workspace.run(out) == 0
    assert mentions(caplog.text, "index.h5", 4, max_files, "export") is has_warning


def test_compilation_time_is_not_part_of_any_stage() -> None:
    """Three stages take 10 s each; the compiler runs before the first one and during the second."""
    now = [100.0]
    compiled = [7.0]
    state = RunState(clock=lambda: now[0], compiler_clock=lambda: compiled[0])
    for stage, seconds in (("scan", 0), ("training", 4), ("encoding", 0)):
        now[0] += 10 + seconds
        compiled[0] += seconds
        state.end_stage(stage)
    assert state.seconds == dict.fromkeys(("scan", "training", "encoding"), 10.0)
    assert (state.seconds_compiling, state.total_seconds) == (4.0, 34.0)
