"""Tests of requests on a complete result: they change what they name, but no verdict, test row or worst row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from shardpress.cli import main
from shardpress.output.folder import REPORT
from shardpress.report.page.build import is_current
from shardpress.report.summary import report_of
from shardpress.result.finished import Result
from tests.support.cases import each
from tests.support.helpers import write_shard
from tests.support.standin import install

pytestmark = pytest.mark.process

N = 150
SKIP = ("--on-bad-data", "skip", "--max-bad", "50%")


class Cells:
    """Shards whose rows have a kind, a group and a depth, and the output directory of runs over them."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out"
        self.shards = folder / "shards"

    def add(self, number: int, shift: float = 0.0) -> None:
        rng = np.random.default_rng(number)
        kinds = rng.integers(0, 2, N)
        rows = rng.normal(size=(N, 4)) + 6 * kinds[:, None] * [0, 0, 0, 1] + shift
        extras = {"kind": kinds, "group": rng.integers(0, 2, N), "obs/depth": rng.integers(0, 9, N)}
        write_shard(self.shards / f"{number}.h5", rows.astype(np.float32), extras=extras)

    def run(self, *flags: str) -> int:
        settings = ("--epochs", "1", "--n-features", "2", "--hidden", "none", "--batch-size", "20")
        return main("", ["--input", str(self.shards), "--output", str(self.output), *settings, *flags])

    def correct_labels(self) -> None:
        with h5py.File(self.shards / "3.h5", "r+") as file:
            file["kind"][:40] = 1 - file["kind"][:40]

    def damage_part(self) -> None:
        (self.output / Result.open(self.output).ranges[-1][0].file).write_bytes(b"damaged")

    def damage_file(self) -> None:
        (self.shards / "1.h5").write_bytes(b"damaged")

    def facts(self) -> dict[str, Any]:
        """Return what the report states about rows, model and sample."""
        result = Result.open(self.output)
        report = report_of(result).as_json()
        sample = report["sample"]
        of_run = ("n_parts", "seconds", "compiling", "device")
        summary = {name: value for name, value in report["summary"].items() if name not in of_run}
        places = [{**place, "label": None, "file": Path(place["file"]).name} for place in sample["worst"]]
        probe = {name: sample["probe"][name] for name in ("n_train", "n_test", "n_components")}
        found = {name: report[name] for name in ("warnings", "drift", "bad", "scan")}
        return {**found, "summary": summary, "worst": places, "probe": probe, "use": result.use().tolist()}

    def judgment(self) -> dict[str, Any]:
        report = report_of(Result.open(self.output)).as_json()
        return {"labels": report["sample"]["probe"]["labels"], **report["judgment"]}


class Request(NamedTuple):
    """A request on a complete result."""

    flags: tuple[str, ...] = ()
    before: Callable[[Cells], object] = lambda cells: None
    labels: str = "kind"  # of the judgment afterwards
    extras: tuple[str, ...] = ("group", "kind")
    judges: bool = False  # whether the features are judged again
    warns: bool = False  # whether the report lists more warnings
    n_uncompared: int = 0  # rows of files that cannot be read


DEPTH = ("depth", "group", "kind")
REQUESTS = {
    "corrected labels": Request(before=Cells.correct_labels, judges=True),
    "another extra as labels": Request(
        ("--include", "obs/depth", "--labels", "depth"), labels="depth", extras=DEPTH, judges=True
    ),
    "other labels": Request(("--labels", "group"), labels="group", judges=True),
    "part damaged, other labels": Request(("--labels", "group"), Cells.damage_part, "group", judges=True, warns=True),
    "file unreadable": Request(SKIP, Cells.damage_file, warns=True, n_uncompared=N),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a result, to which rows with a verdict were appended, and of its input files."""
    cells = Cells(tmp_path_factory.mktemp("finished"))
    cells.shards.mkdir()
    for number in range(3):
        cells.add(number)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        assert cells.run("--labels", "kind") == 0
        cells.add(3, shift=2.5)
        assert cells.run("--append") == 0
    assert Result.open(cells.output).facts.appends[-1].append.verdict.level == "retrain"
    return cells.output.parent


@each("name", REQUESTS)
def test_a_request_changes_only_what_it_names(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    install(monkeypatch)
    request = REQUESTS[name]
    shutil.rmtree(tmp_path)
    shutil.copytree(finished, tmp_path)
    cells = Cells(tmp_path)
    assert cells.run("--append") == 0  # the report names the files of the copy
    before = cells.facts()
    runs = Result.open(cells.output).facts.runs
    judged = cells.judgment()
    request.before(cells)
    assert cells.run("--append", *request.flags) == 0
    after = cells.facts()
    new = after["warnings"]["n"] - before["warnings"]["n"]
    assert (new > 0) == request.warns
    assert after["bad"].pop("n_uncompared") == request.n_uncompared
    assert before["bad"].pop("n_uncompared") == 0
    assert {**after, "warnings": before["warnings"]} == before
    assert set(before["warnings"]["first"]) <= set(after["warnings"]["first"])
    assert cells.judgment()["labels"] == request.labels
    assert (cells.judgment() != judged) == request.judges
    result = Result.open(cells.output)
    assert result.facts.runs[:-1] == runs
    assert (result.facts.rows.sample_run == len(runs) + 1) == request.judges
    assert tuple(sorted(result.extras())) == request.extras
    assert is_current(cells.output / REPORT, result.digest)
