"""Tests of `--labels` for a run and its report: the same labels are used, and unknown ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.cli import main
from shardpress.result import Result
from tests.support.helpers import write_shard
from tests.support.logged import COMPLETE, mentions
from tests.support.standin import install

pytestmark = pytest.mark.process

N = 240
FLAGS = ("--epochs", "1", "--n-features", "2", "--hidden", "none", "--batch-size", "20")


class Cells:
    """Two shards whose rows have a kind, which their columns show, a batch and a random group."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.output = folder / "out"
        self.shards = folder / "shards"
        self.shards.mkdir()
        for i in range(2):
            kinds = rng.integers(0, 2, N)
            rows = rng.normal(size=(N, 4)) + 6 * kinds[:, None] * [0, 0, 0, 1]
            extras = {"batch": np.full(N, i), "obs/kind": kinds, "obs/batch": np.full(N, i), "obs/score": rows[:, 0]}
            extras["group"] = rng.integers(0, 2, N)
            write_shard(self.shards / f"{i}.h5", rows.astype(np.float32), extras=extras)

    def run(self, *flags: str) -> int:
        return main("", ["--input", str(self.shards), "--output", str(self.output), *FLAGS, *flags])

    def report(self) -> dict[str, Any]:
        return Result.open(self.output).report()

    def labels(self) -> str:
        found: str = self.report()["sample"]["probe"]["labels"]
        return found


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cells:
    install(monkeypatch)
    return Cells(tmp_path)


def test_run_and_report_use_the_first_included_labels_or_the_named_ones(cells: Cells, capsys: Any) -> None:
    include = ["--include", "obs/batch", "obs/score", "obs/kind"]
    assert cells.run(*include) == 0
    assert cells.labels() == "kind"
    judgment = cells.report()["judgment"]
    # The two features of one epoch lose the column that the four columns show.
    assert mentions(judgment["classifier"], "kind")
    assert judgment["classifier"] in capsys.readouterr().out
    parts = {path: path.stat().st_mtime_ns for path in (cells.output / "parts").iterdir()}
    assert cells.run(*include, "--labels", "group") == 0
    assert cells.labels() == "group"
    assert {path: path.stat().st_mtime_ns for path in (cells.output / "parts").iterdir()} == parts
    capsys.readouterr()
    for flags in ([], ["--labels", "group"]):
        assert cells.run(*include, *flags) == 0
        out = capsys.readouterr().out
        assert COMPLETE in out
        assert mentions(out, "group")
    assert cells.labels() == "group"


def test_unknown_labels_are_refused_before_the_output_is_created(
    cells: Cells, caplog: pytest.LogCaptureFixture
) -> None:
    assert cells.run("--labels", "obs/kind") == 78
    assert mentions(caplog.text, "labels", "obs/kind", "batch", "group", "--include obs/kind")
    assert not cells.output.exists()


def test_unusable_labels_of_a_run_cause_a_warning(cells: Cells) -> None:
    assert cells.run("--include", "obs/score", "--labels", "score") == 0
    assert any(mentions(line, "labels=score") for line in cells.report()["warnings"]["first"])
    assert "probe" not in cells.report()["sample"]
