"""Test of columns in another order: refused or reordered, in a run and with a model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from shardpress.hdf5.columns import NO_COLUMNS
from shardpress.result.finished import load_model
from tests.support import named_columns
from tests.support.helpers import features_in
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
