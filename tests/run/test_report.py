"""Tests of the report page: it covers all runs, is derived from the result, and never makes a run fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.commands.registry import main
from shardpress.report import overview
from shardpress.report.page import build
from shardpress.report.summary import report_of
from shardpress.result.finished import Result, Use
from tests.support.bad_shards import Shards
from tests.support.helpers import write_shard
from tests.support.logged import COMPLETE, mentions
from tests.support.pages import Parsed
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process


def test_the_page_can_be_made_again_from_the_result(
    workspace: Workspace, out: Path, tmp_path: Path, capsys: Any
) -> None:
    assert workspace.run(out) == 0
    page = (out / "report.html").read_text()
    Parsed(page)
    (out / "report.html").write_bytes(b"of another result")
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    assert main(["report", str(out), "--html", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page
    capsys.readouterr()
    assert main(["report", str(out), "--json"]) == 0
    report = report_of(Result.open(out)).as_json()
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report))
    n_fitted = report["training"]["baseline"]["n_fitted"]
    assert 0 < n_fitted < report["summary"]["n_rows"]
    assert f"principal components of {n_fitted} training rows" in page
    assert main(["report", str(out), "--text"]) == 0
    assert mentions(" ".join(capsys.readouterr().out.split()), 55, 4, 2)


def test_a_failure_of_the_report_does_not_fail_the_run(
    workspace: Workspace, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(tmp_path / "expected") == 0

    def broken(*_arguments: object) -> None:
        raise ValueError("broken")

    for module, name in ((overview, "draw_sample"), (overview, "measure"), (build, "page_of")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, broken)
            assert workspace.run(out, "--restart") == 0, name
        assert features_of(out) == features_of(tmp_path / "expected")
        page = (out / "report.html").read_text()
        Parsed(page)
        assert "ValueError" in page
        assert "report: " in caplog.text
        caplog.clear()
        assert workspace.run(out) == 0
        assert COMPLETE in (out / "run.log").read_text().splitlines()[-1]


def test_another_missing_label_only_changes_the_report(shards: Shards) -> None:
    """Results are those of a new run with the same flags."""
    shards.fill(300, 300)
    for number, rows in enumerate(shards.arrays):
        labels = np.where(np.arange(300) % 3, -1, np.arange(300) % 2)
        write_shard(shards.folder / f"{number}.h5", rows, extras={"y": labels})
    flags = ("--missing-label", "-1")
    assert shards.run() == 0
    before = Result.open(shards.output)
    for name in ("run.log", "report.html"):
        assert mentions((shards.output / name).read_text(), "66.7", "labels", "--missing-label -1")
    for settings, names in ((flags, ["0", "1"]), ((), ["-1", "0", "1"])):
        other = shards.output.with_name(f"other-{len(settings)}")
        assert shards.run(*settings) == 0
        assert shards.run(*settings, output=other) == 0
        result = Result.open(shards.output)
        assert result.facts.rows.sample == Result.open(other).facts.rows.sample
        assert result.facts.rows.sample.points.names == names
        assert result.parts == before.parts
        assert ("looks like" in report_of(result).judgment.classifier) == (not settings)
    assert shards.run(*flags) == 0
    shards.add(shards.arrays[0][:40])
    write_shard(shards.folder / "2.h5", shards.arrays[0][:40], extras={"y": np.arange(40) % 2})
    assert shards.run("--append") == 0
    assert Result.open(shards.output).facts.rows.sample.points.names == ["0", "1"]
    assert shards.run("--append", "--missing-label", "0") == 0
    assert Result.open(shards.output).facts.rows.sample.points.names == ["-1", "1"]


def test_a_repair_keeps_bad_rows_and_the_comparison(shards: Shards) -> None:
    """A run that repairs the result reads only the files whose parts are damaged."""
    shards.fill(30, 30)
    rows = shards.arrays[1].copy()
    rows[[3, 17], 2] = np.nan
    shards.rewrite(1, rows)
    flags = ("--on-bad-data", "skip", "--max-bad", "2")
    assert shards.run(*flags) == 0
    assert shards.run(*flags, "--overwrite", "--seed", "1") == 0
    report = report_of(Result.open(shards.output)).as_json()
    assert [run["source"] for run in report["runs"]] == ["trained", "trained"]
    assert report["runs"][1]["changed"] == {"seed": ("0", "1")}
    assert mentions((shards.output / "report.html").read_text(), "seed"), "the changed setting"
    path = str(shards.folder / "1.h5")
    found = [(each["file"], each["row"], each["column"], each["value"]) for each in report["bad"]["rows"]["first"]]
    assert found == [(path, 3, 2, "nan"), (path, 17, 2, "nan")]
    assert any(mentions(line, "2 of 60") for line in report["warnings"]["first"])
    (shards.output / Result.open(shards.output).parts[-1].file).unlink()
    assert shards.run(*flags, "--seed", "1") == 0
    repaired = report_of(Result.open(shards.output)).as_json()
    for name in ("bad", "scan", "sample", "sample_run", "training"):
        assert repaired[name] == report[name], name
    assert repaired["runs"][:2] == report["runs"]
    assert (repaired["runs"][2]["source"], repaired["verification_run"]) == ("kept", 3)
    assert repaired["runs"][2]["changed"] == {}


def test_drift_is_reported_by_column_and_shard_after_resuming(shards: Shards, model: str) -> None:
    """The parts may have been encoded by different runs."""
    shards.add(np.random.default_rng(0).uniform(-20, 20, (40, 4)).astype(np.float32))
    rows = shards.arrays[0][:30].copy()
    rows[[3, 17], 2] = 900
    rows[17, 0] = -500
    shards.add(rows)
    flags = ["--model", model, "--on-drift", "clip"]
    assert shards.run(*flags) == 0
    drift = Result.open(shards.output).facts.rows.drift
    assert (drift.n_rows, drift.n_outside, drift.on_drift) == (70, 2, "clip")
    columns = [(column.column, column.n_values, column.value) for column in drift.columns]
    assert columns == [(2, 2, 900), (0, 1, -500)]
    assert [(Path(shard.file).name, shard.n_outside) for shard in drift.shards] == [("1.h5", 2)]
    (shards.output / Result.open(shards.output).parts[0].file).unlink()
    assert shards.run(*flags) == 0
    assert Result.open(shards.output).facts.rows.drift == drift


def test_a_damaged_validation_row_is_named(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(500, 500)
    assert shards.run() == 0
    assert report_of(Result.open(shards.output)).summary.outlier is None
    damaged = int(np.flatnonzero(Result.open(shards.output).use() == Use.VALIDATION)[-1]) - 500
    rows = shards.arrays[1].copy()
    rows[damaged] = 1e4 * np.abs(rows[damaged])
    shards.rewrite(1, rows)
    assert shards.run("--overwrite") == 0
    report = report_of(Result.open(shards.output)).as_json()
    path = str(shards.folder / "1.h5")
    for outlier in (report["summary"]["outlier"], report["sample"]["outlier"]):
        assert (outlier["file"], outlier["row"]) == (path, damaged)
    assert mentions(caplog.text, f"file={path}", f"row={damaged}")
