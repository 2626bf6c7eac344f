"""Tests of ``--row-error``: errors are those of the values before the clipping, and are verified and reported.

`tests/interop/test_same_features.py` compares them with an independent computation, and
`tests/run/test_same_features.py` those of the compiled kernels with the model, bit for bit on all paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.features import open_features
from shardpress.formats import digest
from shardpress.records import Entry
from shardpress.report import sample as sampling
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import INDEX, Result, load_model, result_bytes
from tests.support.bad_shards import NO_LIMITS, Shards
from tests.support.logged import mentions
from tests.support.standin import Workspace

LARGEST = float(np.finfo(np.float32).max)


def errors_of(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).extras["error"].compute())


def rows_with_outliers(size: int = 90, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Return positive rows with two outliers and some missing values."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(4, 5, (size, 4)) + 1
    rows[rng.random(rows.shape) < 0.05] = np.nan
    rows[7, 1] = 1048
    rows[8, 2] = 9e4
    rows[0] = np.nan
    return rows.astype(dtype)


@pytest.mark.process
def test_values_outside_the_range_of_a_model_count_unclipped(shards: Shards, model: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).uniform(-30, 30, (40, 4)).astype(np.float32)
    rows[[3, 30], 1] = [500, -1e30]
    shards.add(rows)
    fitted = load_model(model)
    for on_drift in ("pass", "clip"):
        output = tmp_path / on_drift
        assert shards.run("--row-error", "--model", model, "--on-drift", on_drift, output=output) == 0
        with np.errstate(over="ignore"):
            x = (rows.astype(np.float64) - fitted.scaler.shift) * fitted.scaler.scale
        y = fitted.decode(open_features(output).features.compute())
        expected = np.minimum(np.square(y - x).mean(axis=1), LARGEST)
        assert expected.argmax() == 30
        np.testing.assert_allclose(errors_of(output), expected, rtol=1e-4)
        assert not verify(str(output), len(rows)).faults


def test_a_changed_error_is_a_fault(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--row-error", "--clip-quantile", "0.05") == 0
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


def test_the_report_lists_the_worst_of_all_rows(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MAX_ROWS", 20)
    rows = rows_with_outliers(800)[1:]
    rows[777, 3] = 1e6
    rows[500] = np.nan
    shards.add(rows[:400])
    shards.add(rows[400:])
    flags = ["--clip-quantile", "0.02", "--impute", "mean", "--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags, "--row-error") == 0
    errors = errors_of(shards.output)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(errors)), [500])
    report = Result.open(shards.output).report()
    worst = report["sample"]["worst"]
    order = np.argsort(-np.nan_to_num(errors))[:10]
    assert [each["error"] for each in worst] == errors[order].tolist()
    files = [(str(shards.folder / f"{row // 400}.h5"), row % 400) for row in order]
    assert [(each["file"], each["row"]) for each in worst] == files
    assert [each["column"] for each in worst[:3]] == [3, 2, 1]
    assert report["sample"]["n_rows"] == 20
    assert "Worst rows of all 798 " in text_of(page_of(report))
