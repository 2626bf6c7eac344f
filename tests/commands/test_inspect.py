"""Tests of `shardpress inspect`: a page, the same facts as JSON, an exit code, and files with equal rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardpress.commands import inspect
from shardpress.commands.registry import main
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

pytestmark = pytest.mark.process


def test_the_page_and_the_json_have_equal_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.arange(60, dtype=np.float64).reshape(20, 3)
    rows[:, 1] = 5
    rows[4, 2] = np.nan
    write_shard(tmp_path / "a.h5", rows, extras={"y": np.arange(20), "w": np.arange(7)})
    assert main(["inspect", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert mentions(page, "* X", "20 x 3", "float64")
    assert mentions(page, "nan", 4, 2, "1 of 20")
    assert main(["inspect", "--json", "--all", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"]["n_bad"], report["rows"]["constant_columns"], report["rows"]["n_looked_at"]) == (1, [1], 20)
    assert report["files"][0]["extras"] == ["y"]


def test_settings_of_a_run_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(60, dtype=np.float64).reshape(20, 3)
    rows[4, 2] = -9
    write_shard(tmp_path / "a.h5", rows, "left", extras={"right": rows[:, :2]})
    (tmp_path / "settings.yaml").write_text("missing_value: -9\n")
    monkeypatch.setenv("SHARDPRESS_DATASET", "left")
    flags = ["--input", str(tmp_path), "--config", str(tmp_path / "settings.yaml"), "--n-features", "2", "--json"]
    assert main(["inspect", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"][0]["taken"], found["rows"]["n_bad"]) == ("left", 1)
    assert main(["inspect", *flags[:-1]]) == 0
    page = capsys.readouterr().out
    assert mentions(page, "-9.0", "row 4")
    assert mentions(page, "--impute median")
    assert main(["inspect", *flags, "--dataset", "right", str(tmp_path / "a.h5")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["n_inputs"] == 2


def test_a_refused_file_is_listed_with_its_contents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the first ones are listed with their reasons."""
    for i in range(8):
        write_shard(tmp_path / f"{i}.h5", np.zeros((5 + i, 2)), "this", extras={"that": np.zeros((5 + i, 3))})
    assert main(["inspect", str(tmp_path)]) == 65
    page = capsys.readouterr().out
    assert "that     5 x 3" in page
    assert (page.count("REFUSED"), page.count("--dataset")) == (4, 3)
    assert mentions(page, 5, "3.h5", "7.h5")
    assert main(["inspect", str(tmp_path / "b.h5")]) == 66
    assert f"{tmp_path / 'b.h5'}" in capsys.readouterr().err


ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def equal(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the names of equal files, in pairs."""
    assert main(["inspect", "--all", "--json", str(folder)]) == 0
    return [[Path(path).stem for path in pair] for pair in json.loads(capsys.readouterr().out)["equal"]]


def test_equal_rows_under_other_names_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_BLOCK_BYTES", 84)
    for row in (0, 24, 49):
        changed = ROWS.copy()
        changed[row, 1] += 1
        write_shard(tmp_path / f"changed-{row}.h5", changed)
    others = {"b": ROWS[::-1], "d": ROWS[:49], "e": ROWS.astype(np.float64), "g": ROWS[:0], "h": ROWS[:0]}
    for name, rows in {"a": ROWS, "c": ROWS, "f": ROWS, **others}.items():
        write_shard(tmp_path / f"{name}.h5", rows)
    assert equal(tmp_path, capsys) == [["a", "c"], ["a", "f"]]
    assert main(["inspect", "--all", str(tmp_path)]) == 0
    assert mentions(capsys.readouterr().out, "EQUAL ROWS", "a.h5", "c.h5")


def test_an_unreadable_file_is_equal_to_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_shard(tmp_path / f"{name}.h5", ROWS, chunks=(50, 3), fletcher32=True)
    damage(tmp_path / "b.h5")
    assert equal(tmp_path, capsys) == []
