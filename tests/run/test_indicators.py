"""Tests of `--missing-indicator`: results are those of a run over files to which the indicators were appended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from tests.support.bad_shards import Shards
from tests.support.cases import case

FLAGS = ["--learning-rate", "0.01", "--scale", "range"]
INDICATING = ["--impute", "median", "--missing-indicator"]


def rows_with_gaps(*columns: int, dtype: Any = np.float32, missing: float = np.nan, n: int = 400) -> np.ndarray:
    """Return rows of four columns; a fifth of the values of some columns is missing."""
    rng = np.random.default_rng(0)
    rows = (100 + 20 * rng.standard_normal((n, 4))).astype(dtype)
    for column in columns:
        rows[rng.random(n) < 0.2, column] = missing
    return rows


def extended(rows: np.ndarray, is_missing: np.ndarray, model: Any) -> np.ndarray:
    """Fill rows in NumPy, and append a column for each indicator, in the narrowest dtype."""
    values = np.where(is_missing, model.scaler.fill, rows.astype(np.float64))
    values = np.hstack([values, is_missing[:, is_missing.any(axis=0)]])
    for dtype in (rows.dtype, np.dtype(np.float32)):
        if np.array_equal(values.astype(dtype), values):
            return values.astype(dtype)
    return values


def features_of(output: Path) -> bytes:
    return bytes(open_features(output).features.compute().tobytes())


@pytest.mark.slow
def test_indicators_equal_a_run_over_appended_columns(shards: Shards, replicas_of_few_rows: None) -> None:
    # A window of 64 rows has room for an indicator of each of the four columns.
    in_windows = [f"shuffle_window={64 * 8 * 4}"]
    by_replicas = ["--replicas", "2", "--batch-size", "4"]
    columns = [0, 1, 3]
    cases: list[tuple[Any, float, list[int], list[str], list[str]]] = [
        (np.float32, np.nan, columns, [], []),
        (np.float32, np.nan, [], [], []),  # without gaps, the flags change nothing
        (np.float64, -9999, columns, [], []),
        (np.uint8, 255, columns, [], []),
        (np.float32, np.nan, columns, in_windows, [f"shuffle_window={64 * 7 * 4}"]),
        (np.float32, np.nan, columns, by_replicas, by_replicas),
    ]
    for i, (dtype, missing, with_gaps, flags, flags_of_whole) in enumerate(cases):
        with case(dtype=dtype, with_gaps=with_gaps, flags=flags):
            gaps = shards.another(f"gaps-{i}")
            whole = shards.another(f"whole-{i}")
            rows = rows_with_gaps(*with_gaps, dtype=dtype, missing=missing)
            gaps.add(rows[:150])
            gaps.add(rows[150:])
            marked = [] if np.isnan(missing) else [f"--missing-value={missing}"]
            assert gaps.run(*INDICATING, *FLAGS, *marked, *flags) == 0
            model = load_model(gaps.output)
            is_missing = np.isnan(rows) if np.isnan(missing) else rows == missing
            filled = extended(rows, is_missing, model)
            whole.add(filled[:150])
            whole.add(filled[150:])
            assert whole.run(*FLAGS, *flags_of_whole) == 0
            assert features_of(gaps.output) == features_of(whole.output)
            assert not verify(str(gaps.output), 1000).faults


def test_the_report_describes_columns_not_inputs(shards: Shards) -> None:
    rows = rows_with_gaps(n=90)
    rows[:, 1:] = 3
    rows[::9, 1] = np.nan
    rows[1::9, 3] = np.nan
    shards.add(rows)
    assert shards.run(*INDICATING, "--n-features", "1") == 0
    report = Result.open(shards.output).report()
    assert report["summary"]["n_inputs"] == 4
    worst = report["sample"]["worst"]
    assert {line["column"] for line in worst} <= {0, 1, 3}
    assert all(line["name"] == (None if line["column"] == 0 else "is missing") for line in worst)
    assert "is missing" in [line["name"] for line in worst]
    assert {len(pair["input"]) for pair in report["sample"]["pairs"]["rows"]} == {4}
