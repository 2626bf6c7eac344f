"""Tests of the dry run: it changes nothing, and its statements match the actual run.

`tests/run/test_sequences.py` compares the plans of random runs with what these runs encode.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.output.lock import locked
from shardpress.run import plan
from tests.support.cases import case
from tests.support.interruptions import OTHER, STEPS, FullAfter
from tests.support.logged import mentions, resumed_step, resumes_encoding, reuses
from tests.support.processes import LAST_LINE
from tests.support.standin import Workspace


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def exit_codes(planned_run: plan.Plan) -> list[int]:
    return [problem["exit_code"] for problem in planned_run.problems]


# What an earlier run has done before its disk was full.
STOPS = [("scan", 1), ("checkpoint", 4), ("model", 1), ("part", 2), ("part", 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_named"), STOPS)
def test_a_plan_predicts_which_results_are_reused(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str, n_named: int
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter(kind, n_named)) == 74
    if kind == "part":
        (out / "parts/part-000000-000000000000-0123456789abcdef0123456789abcdef.h5").write_text("uncommitted")
    elif kind == "scan":  # a run would begin by removing it
        next((out / "work").glob("scan-*")).write_text("no scan")
    before = content(workspace.folder)
    planned_run = workspace.plan(out, *STEPS)
    assert "55 rows" in planned_run.facts["input"]
    for flags in (["--restart"], ["--overwrite", *OTHER]):
        workspace.plan(out, *flags)
    assert content(workspace.folder) == before
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    seconds = {stage.name: stage.seconds for stage in planned_run.stages}
    assert reuses(caplog.text, "scan") == (seconds["scan"] == 0)
    assert reuses(caplog.text, "training") == ("training" not in seconds)
    step = resumed_step(caplog.text)
    assert mentions(planned_run.facts["model"], step) == (step is not None)
    is_resumed = resumes_encoding(caplog.text) or (kind, n_named) == STOPS[-1]
    assert is_resumed == (planned_run.change["n_kept"] > 0)
    assert workspace.plan(out, *STEPS).seconds == 0


# -- problems --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_predicts_the_exit_code(workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last line of a run that has begun its work says what to do."""
    occupied = tmp_path / "taken"
    mine = tmp_path / "mine"
    assert workspace.run(occupied) == 0
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    (tmp_path / "broken").mkdir()
    broken = Workspace(tmp_path / "broken", 20)
    broken.add_shard("8.h5", np.full((3, 4), np.nan, np.float32))
    cases: list[tuple[Workspace, Path, list[str], int]] = [
        (workspace, tmp_path / "a", ["--n-features", "7"], 78),
        (workspace, tmp_path / "b", ["--memory-budget", "16MiB", "--hidden", "9999999"], 78),
        (workspace, workspace.shards, [], 78),
        (workspace, occupied, OTHER, 78),
        (workspace, mine, [], 73),
        (workspace, tmp_path / "mine/thesis.txt", [], 73),
        (workspace, tmp_path / "c", ["--input", str(tmp_path / "nowhere")], 66),
        (broken, tmp_path / "d", [], 65),
        (broken, tmp_path / "e", ["--on-bad-data", "skip"], 65),
        (broken, tmp_path / "f", ["--on-bad-data", "skip", "--max-bad", "3"], 0),
        (workspace, tmp_path / "g", [], 0),
    ]
    for its, output, flags, expected in cases:
        with case(output.name, flags):
            existed = output.exists()
            planned_run = its.plan(output, *flags)
            assert output.exists() == existed
            caplog.clear()
            assert its.run(output, *flags) == expected
            assert exit_codes(planned_run)[:1] == ([expected] if expected else [])
            # If a file replaces the directory, the message of the system is shown.
            problems = [] if output.suffix == ".txt" else planned_run.problems[:1]
            assert all(problem["words"] in caplog.text for problem in problems)
            has_one_line = expected in (0, 78)
            assert has_one_line or LAST_LINE.search(f" ERROR {caplog.messages[-1]}")
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_a_plan_checks_the_lock_the_disk_and_the_memory(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(out):
        assert exit_codes(workspace.plan(out)) == [75]
    for available, n_warnings in ((10**6, 1), (10**15, 0), (0, 0)):
        monkeypatch.setattr(plan, "available_bytes", lambda available=available: available)
        planned_run = workspace.plan(out)
        with case(available):
            assert sum("--memory-budget" in words for words in planned_run.warnings) == n_warnings
            assert planned_run.problems == []
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
    words = "\n".join(problem["words"] for problem in planned_run.problems)
    assert all(place in words for place in ("7.h5: ", "8.h5: ", f"file={workspace.shards}/9.h5 dataset=X"))
    lenient = workspace.plan(out, "--on-bad-data", "skip", "--max-bad", "50%")
    assert exit_codes(lenient) == [73]
    assert [sum(name in warning for warning in lenient.warnings) for name in ("7.h5: ", "8.h5: ")] == [1, 1]


# -- estimates -------------------------------------------------------------------------------------------------------


def test_a_plan_counts_the_epochs_that_fit(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "seconds_compiling", lambda: 1000.0)  # of earlier work, which is no time of this run
    for hours, start in ((1e-7, "0 of 1000000 epochs"), (1 / 60, "")):
        planned_run = workspace.plan(out, "--epochs", "1000000", "--finish-by", f"+{hours!r}h")
        training = next(stage for stage in planned_run.stages if stage.name == "training")
        with case(hours, training):
            assert training.what.startswith(start)
            assert training.seconds < 60  # the estimate is not for a million epochs


def test_the_command_prints_text_or_json(workspace: Workspace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", *workspace.arguments(out)]) == 0
    page = capsys.readouterr().out
    assert all(word in page for word in ("3 shards, 55 rows", "components", "scan", "training", "encoding"))
    wrong = workspace.arguments(out, "--n-features", "7")
    assert main(["plan", "--json", *wrong]) == 78
    planned_run = json.loads(capsys.readouterr().out)
    assert planned_run["problems"][0]["kind"] == "ConfigError"
    assert planned_run["seconds"] == 0
    assert main(["plan", *wrong]) == 78
    assert "PROBLEM" in capsys.readouterr().out
