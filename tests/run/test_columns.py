"""Tests of columns in another order, and of the columns of tables, in a run, with a model and in an append."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.columns import NO_COLUMNS
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from tests.support import named_columns
from tests.support.helpers import features_in, write_shard
from tests.support.logged import mentions
from tests.support.standin import Workspace

NAMES = ("ACTB", "GAPDH", "größer", "MT-CO1", "TP53", "XIST")
ORDER = (3, 0, 5, 1, 4, 2)
MATCH = ("--match-columns", "name")


@pytest.mark.process
def test_another_order_is_refused_and_matching_gives_equal_bits(
    empty: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits are compared between two runs with a given model. The columns of bad rows are named."""
    folder = empty.folder
    rows = np.random.default_rng(0).uniform(0, 9, (80, 6)).astype(np.float32)
    first = folder / "first.h5ad"
    same = folder / "same.h5ad"
    other = folder / "other.h5ad"
    named_columns.anndata(first, rows[:50], NAMES)
    named_columns.anndata(same, rows[50:], NAMES)
    named_columns.anndata(other, rows[50:, ORDER], [NAMES[place] for place in ORDER])
    assert empty.run_on([first, other], folder / "out") == 65
    assert mentions(caplog.text, f"file={other}", 0, "MT-CO1", "ACTB")
    assert empty.run_on([first, other], folder / "out", *MATCH) == 0

    model = ("--model", str(folder / "out"))
    assert empty.run_on([other], folder / "other", *model) == 65
    assert empty.run_on([other], folder / "other", *model, *MATCH) == 0
    assert empty.run_on([same], folder / "same", *model) == 0
    assert features_in(folder / "other").tobytes() == features_in(folder / "same").tobytes()
    unnamed = folder / "unnamed.h5"
    unnamed.write_bytes(replace(load_model(folder / "out"), columns=NO_COLUMNS).to_hdf5())
    assert empty.run_on([other], folder / "unnamed", "--model", str(unnamed), *MATCH) == 65
    rows[53, 1] = np.nan
    named_columns.anndata(same, rows[50:], NAMES)
    assert empty.run_on([same], folder / "bad", *model, "--on-bad-data", "skip", "--max-bad", "1") == 0
    (line,) = (folder / "bad" / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["names"] == ["GAPDH"]


def table(folder: Path, name: str, rows: np.ndarray, names: Sequence[str]) -> Path:
    """Write records with columns in an order, and with labels, ids and texts."""
    fields = [("class", "i8"), *((column, "f4" if column != "TP53" else "i2") for column in names), ("text", "S3")]
    records = np.zeros(len(rows), fields)
    for column in names:
        records[column] = rows[:, NAMES.index(column)]
    records["class"] = np.arange(len(rows)) % 3
    records["text"] = b"abc"
    return Path(write_shard(folder / name, records, name="rows"))


@pytest.mark.process
def test_columns_of_a_table_are_those_of_the_first_file_and_of_the_model(
    empty: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    folder = empty.folder
    rows = np.random.default_rng(0).integers(0, 99, (80, 6)).astype(np.float32)
    first = table(folder, "first.h5", rows[:50], NAMES)
    other = table(folder, "other.h5", rows[50:], [NAMES[place] for place in ORDER])
    matrix = folder / "matrix.h5"
    named_columns.attribute(matrix, rows, NAMES)
    out = folder / "out"
    assert empty.run_on([first], out) == 0
    assert mentions(caplog.text, "6 columns: ACTB", "extras: class")
    assert empty.run_on([first, other], out, "--append") == 0
    assert {"class", "text"} <= open_features(out).extras.keys()
    assert empty.run_on([matrix], folder / "matrix", "--model", str(out)) == 0
    assert features_in(out).tobytes() == features_in(folder / "matrix").tobytes()
    found = verify(str(out), 80)
    assert (found.faults, found.unchecked) == ([], [])

    few = ("--columns", "*T*", "!XIST")
    assert empty.run_on([first, other], out, "--append", *few) == 78
    assert empty.run_on([first], folder / "few", *few) == 0
    assert load_model(folder / "few").columns.names == ("ACTB", "MT-CO1", "TP53")


@pytest.mark.process
def test_labels_that_are_columns_are_refused_with_the_columns_to_choose(
    empty: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    folder = empty.folder
    rows = np.random.default_rng(0).integers(0, 3, (80, 6)).astype(np.float32)
    path = table(folder, "x.h5", rows, NAMES)
    assert empty.run_on([path], folder / "out", "--labels", "TP53") == 78
    assert mentions(caplog.text, "--columns '!TP53'", "--include TP53")
    assert empty.run_on([path], folder / "out", "--labels", "TP53", "--columns", "!TP53") == 0
    assert empty.run_on([path], folder / "copied", "--labels", "TP53", "--include", "TP53") == 0
    assert [load_model(folder / name).n_columns for name in ("out", "copied")] == [5, 6]
    for name in ("out", "copied"):
        assert open_features(folder / name).extras["TP53"].compute().tolist() == rows[:, 4].tolist()
    assert empty.run_on([path], folder / "target", "--target", "TP53") == 0
    assert load_model(folder / "target").n_columns == 5


@pytest.mark.process
def test_datasets_that_can_be_columns_or_samples_are_those_of_the_model(empty: Workspace) -> None:
    folder = empty.folder
    values = np.random.default_rng(0).uniform(0, 9, (30, 30)).astype(np.float32)
    with h5py.File(folder / "a.h5", "w") as file:
        for i, own in enumerate(values):
            file[f"d{i}"] = own
    out = folder / "out"
    assert empty.run_on([folder / "a.h5"], out) == 65
    assert empty.run_on([folder / "a.h5"], out, "--orientation", "columns") == 0
    assert empty.run_on([folder / "a.h5"], folder / "same", "--model", str(out)) == 0
    assert features_in(folder / "same").tobytes() == features_in(out).tobytes()
    assert empty.run_on([folder / "a.h5"], folder / "other", "--model", str(out), "--orientation", "rows") == 0
    assert features_in(folder / "other").tobytes() != features_in(out).tobytes()
