"""Tests of the dry run: its statements match the actual run.

`tests/run/test_sequences.py` compares the plans of random runs with what these runs encode, and checks that
planning changes nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shardpress.output.lock import locked
from shardpress.run import plan
from tests.support.cases import case
from tests.support.interruptions import OTHER, STEPS, FullAfter
from tests.support.logged import mentions, resumed_step, resumes_encoding, reuses
from tests.support.processes import LAST_LINE
from tests.support.standin import Workspace


def exit_codes(planned_run: plan.Plan) -> list[int]:
    return [problem.exit_code for problem in planned_run.problems]


@pytest.mark.parametrize(("kind", "n_named"), [("checkpoint", 4), ("part", 2)])
def test_a_plan_predicts_what_an_unfinished_run_reuses(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str, n_named: int
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter(kind, n_named)) == 74
    planned_run = workspace.plan(out, *STEPS)
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    seconds = {stage.name: stage.seconds for stage in planned_run.stages}
    assert seconds["scan"] == 0
    assert reuses(caplog.text, "scan")
    assert reuses(caplog.text, "training") == ("training" not in seconds) == (kind == "part")
    step = resumed_step(caplog.text)
    assert mentions(planned_run.facts["model"], step) == (kind == "checkpoint")
    assert resumes_encoding(caplog.text) == (planned_run.change["n_kept"] > 0)
    assert workspace.plan(out, *STEPS).seconds == 0


@pytest.mark.slow
def test_a_plan_predicts_the_exit_code(workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last line of a run that has begun its work says what to do."""
    occupied = tmp_path / "taken"
    assert workspace.run(occupied) == 0
    (tmp_path / "broken").mkdir()
    broken = Workspace(tmp_path / "broken", 20)
    broken.add_shard("8.h5", np.full((3, 4), np.nan, np.float32))
    cases: list[tuple[Workspace, Path, list[str], int]] = [
        (workspace, tmp_path / "b", ["--memory-budget", "16MiB", "--hidden", "9999999"], 78),
        (workspace, occupied, OTHER, 78),
        (workspace, tmp_path / "c", ["--input", str(tmp_path / "nowhere")], 66),
        (broken, tmp_path / "e", ["--on-bad-data", "skip"], 65),
        (broken, tmp_path / "f", ["--on-bad-data", "skip", "--max-bad", "3"], 0),
    ]
    for its, output, flags, expected in cases:
        with case(output.name, flags):
            planned_run = its.plan(output, *flags)
            caplog.clear()
            assert its.run(output, *flags) == expected
            assert exit_codes(planned_run)[:1] == ([expected] if expected else [])
            assert all(problem.words in caplog.text for problem in planned_run.problems[:1])
            has_one_line = expected in (0, 78)
            assert has_one_line or LAST_LINE.search(f" ERROR {caplog.messages[-1]}")


def test_a_plan_checks_the_lock_the_disk_and_the_memory(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(out):
        assert exit_codes(workspace.plan(out)) == [75]
    monkeypatch.setattr(plan, "available_bytes", lambda: 10**6)
    assert any("--memory-budget" in words for words in workspace.plan(out).warnings)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert exit_codes(workspace.plan(out)) == [74]
    assert workspace.run(out) == 74


def test_a_plan_reports_every_problem(workspace: Workspace, out: Path) -> None:
    for name in ("7.h5", "8.h5"):
        (workspace.shards / name).write_text("no HDF5")
    workspace.add_shard("9.h5", np.full((3, 4), np.nan, np.float32))
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    planned_run = workspace.plan(out)
    assert exit_codes(planned_run) == [65, 65, 73, 65]
    assert workspace.run(out) == 65
    words = "\n".join(problem.words for problem in planned_run.problems)
    assert all(place in words for place in ("7.h5: ", "8.h5: ", f"file={workspace.shards}/9.h5 dataset=X"))
    lenient = workspace.plan(out, "--on-bad-data", "skip", "--max-bad", "50%")
    assert exit_codes(lenient) == [73]
    assert [sum(name in warning for warning in lenient.warnings) for name in ("7.h5: ", "8.h5: ")] == [1, 1]


def test_a_plan_lists_all_files_that_cannot_be_used(workspace: Workspace, out: Path) -> None:
    for i in range(60):
        (workspace.shards / f"{i}.txt.h5").write_text("no HDF5")
    assert exit_codes(workspace.plan(out)) == [65] * 60
    lenient = workspace.plan(out, "--on-bad-data", "skip", "--max-bad", "99%")
    assert exit_codes(lenient) == []
    assert sum(".txt.h5: " in words for words in lenient.warnings) == 60


def test_a_plan_lists_all_files_if_none_can_be_used(empty: Workspace, out: Path) -> None:
    for i in range(60):
        (empty.shards / f"{i}.h5").write_text("no HDF5")
    assert exit_codes(empty.plan(out)) == [65] * 60


def test_a_plan_counts_the_epochs_that_fit(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "seconds_compiling", lambda: 1000.0)  # of earlier work, which is no time of this run
    for hours, start in ((1e-7, "0 of 1000000 epochs"), (1 / 60, "")):
        planned_run = workspace.plan(out, "--epochs", "1000000", "--finish-by", f"+{hours!r}h")
        training = next(stage for stage in planned_run.stages if stage.name == "training")
        with case(hours, training):
            assert training.what.startswith(start)
            assert training.seconds < 60  # the estimate is not for a million epochs
