"""Tests of columns in another order: refused or reordered, in a run and with a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardpress.cli import main
from shardpress.columns import NO_COLUMNS
from shardpress.features import open_features
from shardpress.report.verify import verify
from shardpress.result import INDEX, load_model
from tests.support import named_columns
from tests.support.logged import mentions
from tests.support.standin import install

pytestmark = pytest.mark.process

NAMES = ("ACTB", "GAPDH", "größer", "MT-CO1", "TP53", "XIST")
ORDER = (3, 0, 5, 1, 4, 2)
FLAGS = ("--epochs", "1", "--n-features", "2", "--hidden", "none")


class Cells:
    """Files of cells; the second one has its genes in the same order or in another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = np.random.default_rng(0).uniform(0, 9, (80, 6)).astype(np.float32)
        shuffled = [NAMES[place] for place in ORDER]
        for name in ("same", "other"):
            (folder / name).mkdir()
            named_columns.anndata(folder / name / "0.h5ad", self.rows[:50], NAMES)
        named_columns.anndata(folder / "same" / "1.h5ad", self.rows[50:], NAMES)
        named_columns.anndata(folder / "other" / "1.h5ad", self.rows[50:, ORDER], shuffled)

    def run(self, shards: str, output: str, *flags: str) -> int:
        where = ["--input", str(self.folder / shards), "--output", str(self.folder / output)]
        return main("", [*where, *flags])

    def features(self, output: str) -> bytes:
        return bytes(open_features(self.folder / output).features.compute().tobytes())


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cells:
    install(monkeypatch)
    return Cells(tmp_path)


def test_another_order_is_refused_and_matching_gives_equal_bits(cells: Cells, caplog: pytest.LogCaptureFixture) -> None:
    """Also with a given model."""
    assert cells.run("other", "out", *FLAGS) == 65
    assert mentions(caplog.text, f"file={cells.folder}/other/1.h5ad", 0, "MT-CO1", "ACTB")
    assert not (cells.folder / "out" / INDEX).exists()
    assert cells.run("same", "expected", *FLAGS) == 0
    assert cells.run("other", "out", *FLAGS, "--match-columns", "name") == 0
    assert cells.features("out") == cells.features("expected")
    assert not verify(str(cells.folder / "out")).faults

    model = ("--model", str(cells.folder / "out"))
    assert cells.run("other/1.h5ad", "other-encoded", *model) == 65
    assert cells.run("other/1.h5ad", "other-encoded", *model, "--match-columns", "name") == 0
    assert cells.run("same/1.h5ad", "encoded", *model) == 0
    assert cells.features("other-encoded") == cells.features("encoded")
    path = cells.folder / "unnamed.h5"
    path.write_bytes(replace(load_model(cells.folder / "out"), columns=NO_COLUMNS).to_hdf5())
    assert cells.run("other/1.h5ad", "unnamed", "--model", str(path), "--match-columns", "name") == 65


def test_columns_of_bad_rows_are_named(cells: Cells, caplog: pytest.LogCaptureFixture) -> None:
    assert cells.run("same", "trained", *FLAGS) == 0
    rows = cells.rows.copy()
    rows[3, 1] = np.nan
    named_columns.anndata(cells.folder / "bad.h5ad", rows, NAMES)
    model = ("--model", str(cells.folder / "trained"))
    assert cells.run("bad.h5ad", "out", *model) == 65
    assert "column 1 (GAPDH)" in caplog.text
    assert cells.run("bad.h5ad", "out", *model, "--on-bad-data", "skip", "--max-bad", "1") == 0
    (line,) = (cells.folder / "out" / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["names"] == ["GAPDH"]
