"""Tests of the dry run: it changes nothing, and its statements match the actual run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from shardpress.commands.plan import _plan_lines
from shardpress.commands.table import main
from shardpress.output.disk import AnonymousDisk, publish
from shardpress.output.lock import locked
from shardpress.result import Result
from shardpress.run import plan
from shardpress.run.plan import Plan
from tests.support.cases import case, each
from tests.support.interruptions import OTHER, STEPS, FullAfter
from tests.support.logged import mentions, resumed_step, resumes_encoding, reuses
from tests.support.soak_protocol import edit
from tests.support.standin import Workspace


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


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
        for flags in ([], OTHER, ["--restart"], ["--overwrite", *OTHER]):
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


def test_a_plan_counts_lost_parts(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    first = Result.open(out).parts[0]
    (out / first.file).unlink()
    planned_run = workspace.plan(out)
    assert planned_run.change["n_kept"] == 55 - first.n_rows
    assert planned_run.change["n_encoded"] == first.n_rows


def test_a_plan_with_other_settings_reuses_the_scan(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    planned_run = workspace.plan(out, "--overwrite", *OTHER)
    assert planned_run.problems == []
    assert {stage.name: stage.seconds for stage in planned_run.stages}["scan"] == 0
    assert planned_run.change["n_encoded"] == 55
    workspace.add_shard("9.h5", np.ones((3, 4), np.float32))
    assert {stage.name: stage.seconds for stage in workspace.plan(out, "--overwrite").stages}["scan"] > 0


@pytest.mark.slow
def test_a_plan_predicts_the_exit_code(workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    occupied = tmp_path / "taken"
    mine = tmp_path / "mine"
    assert workspace.run(occupied) == 0
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    broken = Workspace(tmp_path_of(tmp_path, "broken"), 20)
    broken.add_shard("8.h5", np.full((3, 4), np.nan, np.float32))
    cases: list[tuple[Workspace, Path, list[str]]] = [
        (workspace, tmp_path / "a", ["--n-features", "7"]),
        (workspace, tmp_path / "b", ["--memory-budget", "16MiB", "--hidden", "9999999"]),
        (workspace, occupied, OTHER),
        (workspace, mine, []),
        (workspace, tmp_path / "mine/thesis.txt", []),
        (workspace, tmp_path / "c", ["--input", str(tmp_path / "nowhere")]),
        (broken, tmp_path / "d", []),
        (broken, tmp_path / "e", ["--on-bad-data", "skip"]),
        (broken, tmp_path / "f", ["--on-bad-data", "skip", "--max-bad", "3"]),
        (workspace, tmp_path / "g", []),
    ]
    for its, output, flags in cases:
        with case(output.name, flags):
            planned_run = its.plan(output, *flags)
            caplog.clear()
            expected = its.run(output, *flags)
            assert (planned_run.problems[0]["exit_code"] if planned_run.problems else 0) == expected
            # If a file replaces the directory, the message of the system is shown.
            assert all(
                problem["words"] in caplog.text for problem in planned_run.problems[:1] if output.suffix != ".txt"
            )


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_plan_reports_an_active_run_without_disturbing_it(workspace: Workspace, out: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        assert [problem["exit_code"] for problem in workspace.plan(out).problems] == [75]
    assert workspace.plan(out).problems == []


def test_a_plan_reports_a_full_disk(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    planned_run = workspace.plan(out)
    assert [problem["exit_code"] for problem in planned_run.problems] == [74]
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
    words = "\n".join(problem["words"] for problem in planned_run.problems)
    assert [problem["exit_code"] for problem in planned_run.problems] == [65, 65, 73, 65]
    assert all(place in words for place in ("7.h5: ", "8.h5: "))
    assert mentions(words, f"file={workspace.shards}/9.h5 dataset=X", "nan", 0, 0)
    lenient = workspace.plan(out, "--on-bad-data", "skip", "--max-bad", "50%")
    assert [problem["exit_code"] for problem in lenient.problems] == [73]
    assert [sum(name in warning for warning in lenient.warnings) for name in ("7.h5: ", "8.h5: ")] == [1, 1]


def _n_new_rows(output: Path, earlier: set[str]) -> int:
    """Return the number of rows in the parts of a result that are not among `earlier` files."""
    return sum(part.n_rows for part in Result.open(output).parts if part.file not in earlier)


def _rows(n_rows: int) -> np.ndarray:
    return np.random.default_rng(n_rows).normal(size=(n_rows, 4)).astype(np.float32)


def _swap(folder: Path) -> None:
    (folder / "0.h5").rename(folder / "x")
    (folder / "2.h5").rename(folder / "0.h5")
    (folder / "x").rename(folder / "2.h5")


def _damage(workspace: Workspace) -> None:
    output = workspace.folder / "out"
    (output / Result.open(output).parts[0].file).unlink()


APPEND = ["--append"]
SKIP = ["--on-bad-data", "skip", "--max-bad", "50%"]
# What changes after a run, flags of the next one, and the files that the plan names.
CHANGES: dict[str, tuple[Callable[[Workspace], object], list[str], list[tuple[str | int, ...]]]] = {
    "nothing": (lambda workspace: None, [], []),
    "touched": (lambda workspace: os.utime(workspace.shards / "0.h5"), APPEND, []),
    "new": (lambda workspace: workspace.add_shard("9.h5", _rows(9)), APPEND, [(1, "new", "9.h5")]),
    "changed": (lambda workspace: workspace.add_shard("2.h5", _rows(30)), APPEND, [(1, "changed", "2.h5")]),
    "edited": (lambda workspace: edit(workspace.shards / "2.h5"), APPEND, [(1, "changed", "2.h5")]),
    "moved": (
        lambda workspace: (workspace.shards / "0.h5").rename(workspace.shards / "m.h5"),
        [],
        [(1, "moved", "m.h5")],
    ),
    "swapped": (lambda workspace: _swap(workspace.shards), [], [(2, "moved", "2.h5", "0.h5")]),
    "missing": (
        lambda workspace: (workspace.shards / "0.h5").unlink(),
        [*APPEND, "--drop-missing"],
        [(1, "missing", "0.h5")],
    ),
    "missing and refused": (
        lambda workspace: (workspace.shards / "0.h5").unlink(),
        APPEND,
        [(1, "missing", "0.h5")],
    ),
    "new and refused": (lambda workspace: workspace.add_shard("9.h5", _rows(9)), [], [(1, "new", "9.h5")]),
    "unreadable": (lambda workspace: (workspace.shards / "0.h5").write_bytes(b"no HDF5"), [*APPEND, *SKIP], []),
    "unreadable and refused": (lambda workspace: (workspace.shards / "0.h5").write_bytes(b"no HDF5"), APPEND, []),
    "damaged": (_damage, [], []),
    "more extras": (lambda workspace: None, ["--include", "obs/z"], []),
    "other form": (lambda workspace: None, ["--storage-dtype", "float16", "--overwrite"], []),
    "other model": (lambda workspace: None, ["--seed", "1", "--overwrite"], []),
    "new generation": (
        lambda workspace: workspace.add_shard("9.h5", _rows(9)),
        ["--retrain", "--seed", "1"],
        [(1, "new", "9.h5")],
    ),
    "new start": (lambda workspace: workspace.add_shard("9.h5", _rows(9)), ["--restart"], []),
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
    assert [problem["exit_code"] for problem in planned_run.problems] == ([exit_code] if exit_code else [])
    assert bool(exit_code) == ("refused" in kind)
    assert [mentions(words, *facts) for words, facts in zip(planned_run.change["files"], files, strict=True)] == [
        True
    ] * len(files)
    if exit_code:
        return
    after = Result.open(out)
    n_encoded = _n_new_rows(out, {part.file for part in result.parts})
    seconds = {stage.name: stage.seconds for stage in planned_run.stages}
    assert (seconds.get("training", 0) > 0) == (after.encoder != result.encoder or kind == "new start")
    assert (seconds.get("encoding", 0) > 0) == (n_encoded > 0)
    planned_change = planned_run.change
    assert (planned_change["n_kept"], planned_change["n_encoded"]) == (after.n_rows - n_encoded, n_encoded)
    assert planned_change["n_removed"] == N_REMOVED.get(kind, 0)
    assert workspace.plan(out, *(flag for flag in flags if flag not in ("--retrain", "--restart"))).seconds == 0


def test_a_plan_counts_the_bad_rows_of_an_append(workspace: Workspace, out: Path) -> None:
    skip = ["--on-bad-data", "skip", "--max-bad"]
    assert workspace.run(out, *skip, "50%") == 0
    rows = _rows(9)
    rows[3] = np.nan
    workspace.add_shard("9.h5", rows)
    for most, exit_codes in (("0", [65]), ("1", [])):
        flags = ["--append", *skip, most]
        with case(most):
            assert [problem["exit_code"] for problem in workspace.plan(out, *flags).problems] == exit_codes
            assert workspace.run(out, *flags) == (exit_codes or [0])[0]


def test_a_plan_counts_the_epochs_that_fit(workspace: Workspace, out: Path) -> None:
    many = ["--epochs", "1000000"]
    for hours, fits in ((1e-7, 0), (1 / 60, None)):
        planned_run = workspace.plan(out, *many, "--finish-by", f"+{hours!r}h")
        training = next(stage for stage in planned_run.stages if stage.name == "training")
        with case(hours, training):
            assert f"of {many[1]} epochs" in training.what
            assert training.seconds < 60  # the estimate is not for a million rows
            assert fits is None or training.what.startswith(f"{fits} of")


def _text(found: Plan) -> str:
    return " ".join(" ".join(_plan_lines(found)).split())


def test_a_plan_lists_the_errors_of_components(workspace: Workspace, out: Path) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 3)) @ rng.normal(size=(3, 20))).astype(np.float32)
    rows += 0.1 * rng.normal(size=rows.shape).astype(np.float32)
    for path in workspace.shards.iterdir():
        path.unlink()
    workspace.add_shard("0.h5", rows)
    found = workspace.plan(out, "--n-features", "10", "--validation-fraction", "0")
    scaled = (rows - rows.min(axis=0)) / (rows.max(axis=0) - rows.min(axis=0))
    values = np.linalg.svd(scaled - scaled.mean(axis=0), compute_uv=False) ** 2
    expected = [[n, values[n:].sum() / rows.size] for n in (0, 8, 10)]
    np.testing.assert_allclose(found.components, expected, rtol=1e-4)
    assert mentions(_text(found), "components", f"{expected[1][1]:.3g} with 8")


def test_the_command_prints_text_or_json(workspace: Workspace, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", *workspace.arguments(out)]) == 0
    page = capsys.readouterr().out
    assert all(word in page for word in ("3 shards, 55 rows", "scan", "training", "encoding"))
    assert main(["plan", "--json", *workspace.arguments(out, "--n-features", "7")]) == 78
    planned_run = json.loads(capsys.readouterr().out)
    assert planned_run["problems"][0]["kind"] == "ConfigError"
    assert planned_run["seconds"] == 0
    assert "PROBLEM" in _text(Plan(problems=planned_run["problems"]))


@each("named", [True, False])
def test_an_anonymous_file_accepts_data_and_disappears(tmp_path: Path, named: bool) -> None:
    disk = AnonymousDisk(tmp_path if named else None)
    publish(disk, tmp_path / "parts" / "there.h5", bytes(300_000), name_is_synced=False)
    assert list(tmp_path.iterdir()) == []
