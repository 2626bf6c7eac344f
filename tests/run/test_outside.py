"""Tests of rows outside the range of a given model: counted, clipped or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.report.summary import report_of
from shardpress.result.finished import Result, load_model
from tests.support.bad_shards import SKIP, Shards, bad_lines, check, errors
from tests.support.logged import mentions

pytestmark = pytest.mark.process


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_rows_outside_the_range_are_counted_and_clipped_or_kept(
    shards: Shards, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: Any
) -> None:
    rng = np.random.default_rng(2)
    for size in (30, 0, 21, 40):
        rows = rng.uniform(-25, 25, (size, 4))
        rows[rng.random(size) < 0.3, rng.integers(4)] = rng.choice([-1e3, 31, 1e30 if dtype == np.float32 else 120])
        shards.add(rows.astype(dtype))
    fitted = load_model(model)
    low = fitted.scaler.minimum
    high = fitted.scaler.maximum
    n_outside = sum(int(((rows < low) | (rows > high)).any(axis=1).sum()) for rows in shards.arrays)
    assert n_outside > 5
    wide = np.result_type(dtype, np.float32)  # holds the limits, which have fractions
    expected = {"pass": shards.arrays, "clip": [np.clip(rows, low, high).astype(wide) for rows in shards.arrays]}
    for on_drift, arrays in expected.items():
        output = tmp_path / on_drift
        assert shards.run("--model", model, "--on-drift", on_drift, output=output) == 0
        assert mentions(capsys.readouterr().out, f"{n_outside} rows outside")
        assert report_of(Result.open(output)).summary.n_outside == n_outside
        check(output, arrays, [], fitted)


def test_a_row_outside_the_range_stops_the_run_on_request(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bad rows are not outside the range."""
    rows = np.random.default_rng(0).uniform(-20, 20, (30, 4)).astype(np.float32)
    rows[[3, 17]] = [[np.inf, 1, 1, 1], [np.nan, 99, 99, 99]]
    shards.add(rows)
    flags = ["--model", model, "--on-drift", "raise", *SKIP]
    assert shards.run(*flags) == 0
    check(shards.output, [rows], [3, 17], load_model(model))
    assert report_of(Result.open(shards.output)).summary.n_outside == 0
    rows[13, 2] = 31.5
    shards.rewrite(0, rows)
    assert shards.run(*flags, "--overwrite") == 65
    assert mentions(errors(caplog), f"file={shards.folder}/0.h5 dataset=X", "31.5", 13, 2)


def test_a_column_that_was_constant_in_the_training_is_named_after_others(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    training = shards.another("constant")
    rows = np.random.default_rng(9).uniform(0, 1, (60, 4)).astype(np.float32)
    rows[:, 2] = 7.25
    training.add(rows)
    assert training.run() == 0
    rows[13, 2] = 8.5  # the scaler sets this column to 0
    rows[20, 0] = 3
    shards.add(rows)
    caplog.clear()
    assert shards.run("--model", str(training.output)) == 0
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert mentions(warning, "2 of 60 rows", "column 0", 3, "column 2", 8.5, 7.25)
    assert report_of(Result.open(shards.output)).summary.n_outside == 2


def test_rows_that_overflow_float32_are_bad_rows(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    training = shards.another("narrow")
    training.add(np.random.default_rng(9).uniform(0, 1e-10, (60, 4)).astype(np.float32))
    assert training.run() == 0
    rows = np.random.default_rng(0).uniform(0, 1e-10, (30, 4)).astype(np.float32)
    rows[5] = [3e38, -3e38, 3e38, -3e38]
    shards.add(rows)
    flags = ["--model", str(training.output)]
    assert shards.run(*flags) == 65
    assert mentions(errors(caplog), f"file={shards.folder}/0.h5", "row 5", 0)
    assert shards.run(*flags, *SKIP) == 0
    check(shards.output, [rows], [5], load_model(training.output))
    assert [(line["row"], line["reason"]) for line in bad_lines(shards.output)] == [(5, "overflows float32")]
    assert shards.run(*flags, "--on-bad-data", "skip", "--max-bad", "0") == 65
