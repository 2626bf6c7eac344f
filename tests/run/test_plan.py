"""Tests of the dry run: it changes nothing, and its statements match the actual run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.output.lock import locked
from shardpress.result import Result
from shardpress.run import plan
from tests.support.cases import case
from tests.support.interruptions import OTHER, STEPS, FullAfter
from tests.support.logged import mentions, resumed_step, resumes_encoding, reuses
from tests.support.processes import LAST_LINE
from tests.support.soak_protocol import edit
from tests.support.standin import Workspace


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def exit_codes(planned_run: plan.Plan) -> list[int]:
    return [problem["exit_code"] for problem in planned_run.problems]


def rows_of_seed(n_rows: int) -> np.ndarray:
    return np.random.default_rng(n_rows).normal(size=(n_rows, 4)).astype(np.float32)


@pytest.mark.slow
def test_a_plan_changes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for state in ("nothing yet", "unfinished", "damaged", "finished"):
        if state == "unfinished":
            assert workspace.run(out, *STEPS, disk=FullAfter("part", 2)) == 74
            (out / "parts/part-000000-000000000000-0123456789abcdef0123456789abcdef.h5").write_text("uncommitted")
        elif state == "damaged":  # a run would begin by removing it
            next((out / "work").glob("scan-*")).write_text("no scan")
        elif state == "finished":
            assert workspace.run(out) == 0
        before = content(tmp_path)
        for flags in ([], ["--restart"], ["--overwrite", *OTHER]):
            with case(state, flags):
                assert "55 rows" in workspace.plan(out, *flags).facts["input"]
                assert content(tmp_path) == before
                assert out.exists() == (state != "nothing yet")


@pytest.mark.slow
def test_a_plan_predicts_which_results_are_reused(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stops = [("scan", 1), ("checkpoint", 4), ("model", 1), ("part", 2), ("part", 4)]
    for number, (kind, n_named) in enumerate(stops):
        out = tmp_path / f"out{number}"
        assert workspace.run(out, *STEPS, disk=FullAfter(kind, n_named)) == 74
        planned_run = workspace.plan(out, *STEPS)
        caplog.clear()
        assert workspace.run(out, *STEPS) == 0
        with case(kind, planned_run=planned_run.change, log=caplog.text):
            seconds = {stage.name: stage.seconds for stage in planned_run.stages}
            assert reuses(caplog.text, "scan") == (seconds["scan"] == 0)
            assert reuses(caplog.text, "training") == ("training" not in seconds)
            step = resumed_step(caplog.text)
            assert mentions(planned_run.facts["model"], step) == (step is not None)
            is_resumed = resumes_encoding(caplog.text) or (kind, n_named) == stops[-1]
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
            planned_run = its.plan(output, *flags)
            caplog.clear()
            assert its.run(output, *flags) == expected
            assert exit_codes(planned_run)[:1] == ([expected] if expected else [])
            # If a file replaces the directory, the message of the system is shown.
            problems = [] if output.suffix == ".txt" else planned_run.problems[:1]
            assert all(problem["words"] in caplog.text for problem in problems)
            has_one_line = expected in (0, 78)
            assert has_one_line or LAST_LINE.search(f" ERROR {caplog.messages[-1]}")
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_a_plan_reports_an_active_run_without_disturbing_it(workspace: Workspace, out: Path) -> None:
    with locked(out):
        assert exit_codes(workspace.plan(out)) == [75]
    assert workspace.plan(out).problems == []


def test_a_plan_reports_a_full_disk(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert exit_codes(workspace.plan(out)) == [74]
    assert not out.exists()
    assert workspace.run(out) == 74


def test_a_plan_warns_of_insufficient_memory(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for available, n_warnings in ((10**6, 1), (10**15, 0), (0, 0)):
        monkeypatch.setattr(plan, "available_bytes", lambda available=available: available)
        planned_run = workspace.plan(out)
        with case(available):
            assert sum("--memory-budget" in words for words in planned_run.warnings) == n_warnings
            assert planned_run.problems == []


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


# -- changes ---------------------------------------------------------------------------------------------------------


def swap(workspace: Workspace) -> None:
    folder = workspace.shards
    (folder / "0.h5").rename(folder / "x")
    (folder / "2.h5").rename(folder / "0.h5")
    (folder / "x").rename(folder / "2.h5")


def add(workspace: Workspace) -> None:
    workspace.add_shard("9.h5", rows_of_seed(9))


def remove(workspace: Workspace) -> None:
    (workspace.shards / "0.h5").unlink()


def spoil(workspace: Workspace) -> None:
    (workspace.shards / "0.h5").write_bytes(b"no HDF5")


def lose_a_part(workspace: Workspace) -> None:
    output = workspace.folder / "out"
    (output / Result.open(output).parts[0].file).unlink()


def do_nothing(workspace: Workspace) -> None:
    pass


APPEND = ["--append"]
SKIP = ["--on-bad-data", "skip", "--max-bad", "50%"]
# What changes after a run, flags of the next one, and the files that the plan names.
CHANGES: dict[str, tuple[Callable[[Workspace], object], list[str], list[tuple[str | int, ...]]]] = {
    "nothing": (do_nothing, [], []),
    "touched": (lambda workspace: os.utime(workspace.shards / "0.h5"), APPEND, []),
    "new": (add, APPEND, [(1, "new", "9.h5")]),
    "changed": (lambda workspace: workspace.add_shard("2.h5", rows_of_seed(30)), APPEND, [(1, "changed", "2.h5")]),
    "edited": (lambda workspace: edit(workspace.shards / "2.h5"), APPEND, [(1, "changed", "2.h5")]),
    "swapped": (swap, [], [(2, "moved", "2.h5", "0.h5")]),
    "missing": (remove, [*APPEND, "--drop-missing"], [(1, "missing", "0.h5")]),
    "missing and refused": (remove, APPEND, [(1, "missing", "0.h5")]),
    "new and refused": (add, [], [(1, "new", "9.h5")]),
    "unreadable": (spoil, [*APPEND, *SKIP], []),
    "unreadable and refused": (spoil, APPEND, []),
    "damaged": (lose_a_part, [], []),
    "more extras": (do_nothing, ["--include", "obs/z"], []),
    "other form": (do_nothing, ["--storage-dtype", "float16", "--overwrite"], []),
    "other model": (do_nothing, ["--seed", "1", "--overwrite"], []),
    "new generation": (add, ["--retrain", "--seed", "1"], [(1, "new", "9.h5")]),
    "new start": (add, ["--restart"], []),
}
N_REMOVED = {"changed": 35, "edited": 35, "missing": 20}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_a_plan_tells_what_a_run_does_with_each_change(workspace: Workspace, out: Path, kind: str) -> None:
    change, flags, files = CHANGES[kind]
    for path in workspace.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["obs/z"] = np.arange(len(file["X"]))
    assert workspace.run(out) == 0
    change(workspace)
    before = content(workspace.folder)
    result = Result.open(out)
    planned_run = workspace.plan(out, *flags)
    assert content(workspace.folder) == before
    exit_code = workspace.run(out, *flags)
    assert exit_codes(planned_run) == ([exit_code] if exit_code else [])
    assert bool(exit_code) == ("refused" in kind)
    named = planned_run.change["files"]
    assert all(mentions(words, *facts) for words, facts in zip(named, files, strict=True)), named
    if exit_code:
        return
    after = Result.open(out)
    earlier_parts = {part.file for part in result.parts}
    n_encoded = sum(part.n_rows for part in after.parts if part.file not in earlier_parts)
    seconds = {stage.name: stage.seconds for stage in planned_run.stages}
    assert (seconds.get("training", 0) > 0) == (after.encoder != result.encoder or kind == "new start")
    assert (seconds.get("encoding", 0) > 0) == (n_encoded > 0)
    planned_change = planned_run.change
    assert (planned_change["n_kept"], planned_change["n_encoded"]) == (after.n_rows - n_encoded, n_encoded)
    assert planned_change["n_removed"] == N_REMOVED.get(kind, 0)
    assert workspace.plan(out, *(flag for flag in flags if flag not in ("--retrain", "--restart"))).seconds == 0


# -- estimates -------------------------------------------------------------------------------------------------------


def test_a_plan_counts_the_epochs_that_fit(workspace: Workspace, out: Path) -> None:
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
