"""Tests of a run with one damaged row in 1,000: it is named, and does not decide what the run says about features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.cli import main
from shardpress.result import Result, Use
from tests.support.helpers import write_shard
from tests.support.logged import mentions

pytestmark = [pytest.mark.compiler, pytest.mark.process]

N = 1000
FLAGS = ("--n-features", "3", "--hidden", "none", "--epochs", "2")


def rows_of_rank_three(seed: int) -> np.ndarray:
    mixing = np.random.default_rng(0).normal(size=(3, 8))
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(N, 3)) @ mixing + 0.1 * rng.normal(size=(N, 8))
    return (rows / 4).astype(np.float32)


def write(folder: Path, rows: np.ndarray) -> None:
    for number, some in enumerate(np.split(rows, 2)):
        write_shard(folder / f"{number}.h5", some)


def run(folder: Path, output: Path, *flags: str) -> int:
    return main("", ["--input", str(folder), "--output", str(output), *FLAGS, *flags])


def report_of(output: Path) -> dict[str, Any]:
    return Result.open(output).report()


def test_a_damaged_validation_row_is_named_and_left_out_of_judgments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = rows_of_rank_three(0)
    write(shards, rows)
    assert run(shards, tmp_path / "clean") == 0
    before = report_of(tmp_path / "clean")
    assert before["summary"]["outlier"] is None
    damaged = int(np.flatnonzero(Result.open(tmp_path / "clean").use() == Use.VALIDATION)[-1])
    rows[damaged] = 1e4 * np.abs(rows[damaged])
    write(shards, rows)
    caplog.clear()
    capsys.readouterr()
    assert run(shards, tmp_path / "out") == 0
    after = report_of(tmp_path / "out")
    path = str(shards / "1.h5")
    for outlier in (after["summary"]["outlier"], after["sample"]["outlier"]):
        assert (outlier["file"], outlier["row"]) == (path, damaged - N // 2)
        assert outlier["share"] > 0.9
    assert after["judgment"]["is_good"] == before["judgment"]["is_good"]
    assert after["judgment"]["explained"] == ""
    place = (f"file={path}", f"row={damaged - N // 2}")
    assert mentions(caplog.text, *place)
    assert mentions(capsys.readouterr().out, "Mean squared error", *place)
    assert mentions(after["judgment"]["error"], *place)


def test_a_damaged_new_row_does_not_call_for_another_model(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards, rows_of_rank_three(0))
    assert run(shards, tmp_path / "out") == 0
    rows = rows_of_rank_three(1)
    rows[123] *= 1e4
    path = write_shard(shards / "2.h5", rows)
    assert run(shards, tmp_path / "out", "--append") == 0
    (append,) = Result.open(tmp_path / "out").facts.appends
    assert append["drift"]["verdict"] == "keep"
    assert append["drift"]["error_ratio"] == pytest.approx(1, abs=0.3)
    assert mentions(" ".join(append["drift"]["reasons"]), f"file={path}", "row=123")
