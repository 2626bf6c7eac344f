"""Tests of ``--row-error``: errors are those of the values before the clipping, and are verified and reported.

`tests/interop/test_same_features.py` compares them with an independent computation, and
`tests/run/test_same_features.py` compares their bits on all paths.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.base.formats import digest
from shardpress.report import sampling as sampling
from shardpress.report.page.build import page_of, text_of
from shardpress.report.summary import report_of
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import INDEX, Result, result_bytes
from shardpress.result.records import Entry
from tests.support.bad_shards import SKIP, Shards
from tests.support.damage import damage
from tests.support.logged import mentions
from tests.support.standin import Workspace


def test_errors_can_be_added_and_a_changed_error_is_a_fault(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--clip-quantile", "0.05") == 0
    assert workspace.run(out, "--clip-quantile", "0.05", "--row-error") == 0
    assert not verify(str(out), 1000).faults
    result = Result.open(out)
    part = result.parts[1]
    with h5py.File(out / part.file, "r+") as file:
        file["error"][2] *= 1.001
    data = (out / part.file).read_bytes()
    entry = Entry(part.file, len(data), digest([data]))
    parts = [replace(each, entry=entry) if each is part else each for each in result.parts]
    (out / INDEX).write_bytes(result_bytes(lambda file: None, result.model, result.facts, parts, {}, {}))
    (fault,) = verify(str(out), 1000).faults
    assert fault.file == part.file
    assert mentions(fault.fault, "row 2", "error is")


def test_an_append_adds_errors_to_all_rows(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    workspace.add_shard("3.h5", np.arange(24, dtype=np.float32).reshape(6, 4))
    assert workspace.run(out, "--append") == 0
    before = open_features(out)
    features = before.features.compute()
    appends = before.extras["append_id"].compute()

    assert workspace.run(out, "--append", "--row-error") == 0

    after = open_features(out)
    assert not verify(str(out), 1000).faults
    assert np.isfinite(after.extras["error"].compute()).all()
    np.testing.assert_array_equal(after.features, features)
    np.testing.assert_array_equal(after.extras["append_id"], appends)
    assert workspace.run(out, "--append") == 0, "errors that are stored stay"
    assert "error" in open_features(out).extras


def test_the_report_lists_the_worst_of_all_rows(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MAX_ROWS", 20)
    rng = np.random.default_rng(0)
    rows = (rng.gamma(4, 5, (799, 4)) + 1).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    rows[[6, 7, 777], [1, 2, 3]] = [1048, 9e4, 1e6]
    rows[500] = np.nan
    shards.add(rows[:400])
    shards.add(rows[400:])
    shards.add(rows[:9], fletcher32=True)
    damage(shards.folder / "2.h5")
    flags = ["--clip-quantile", "0.02", "--impute", "mean", *SKIP]
    assert shards.run(*flags, "--row-error") == 0
    errors = open_features(shards.output).extras["error"].compute()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(errors)), [500, *range(799, 808)])
    report = report_of(Result.open(shards.output))
    sample = report.facts.rows.sample
    worst = sample.worst
    order = np.argsort(-np.nan_to_num(errors))[:10]
    assert [row.error for row in worst] == errors[order].tolist()
    files = [(str(shards.folder / f"{row // 400}.h5"), row % 400) for row in order]
    assert [(row.file, row.row) for row in worst] == files
    assert [row.column for row in worst[:3]] == [3, 2, 1]
    assert sample.n_rows == 20
    assert "Worst rows of all 798 " in text_of(page_of(report))
