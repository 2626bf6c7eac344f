"""Tests of `--missing-indicator`: results are those of a run over files to which the indicators were appended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from tests.support.bad_shards import Shards, errors
from tests.support.cases import case
from tests.support.logged import mentions

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
    values = np.hstack([values, is_missing[:, model.scaler.indicators]])
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
    cases: list[tuple[Any, float, list[str], list[str]]] = [
        (np.float32, np.nan, [], []),
        (np.float64, -9999, [], []),
        (np.uint8, 255, [], []),
        (np.float32, np.nan, in_windows, [f"shuffle_window={64 * 7 * 4}"]),
        (np.float32, np.nan, by_replicas, by_replicas),
    ]
    for i, (dtype, missing, flags, flags_of_whole) in enumerate(cases):
        with case(dtype=dtype, flags=flags):
            gaps = shards.another(f"gaps-{i}")
            whole = shards.another(f"whole-{i}")
            rows = rows_with_gaps(0, 1, 3, dtype=dtype, missing=missing)
            gaps.add(rows[:150])
            gaps.add(rows[150:])
            marked = [] if np.isnan(missing) else [f"--missing-value={missing}"]
            assert gaps.run(*INDICATING, *FLAGS, *marked, *flags) == 0
            model = load_model(gaps.output)
            assert model.scaler.indicators.tolist() == [0, 1, 3]
            is_missing = np.isnan(rows) if np.isnan(missing) else rows == missing
            filled = extended(rows, is_missing, model)
            whole.add(filled[:150])
            whole.add(filled[150:])
            assert whole.run(*FLAGS, *flags_of_whole) == 0
            assert features_of(gaps.output) == features_of(whole.output)
            assert not verify(str(gaps.output), 1000).faults


@pytest.mark.process
def test_a_column_without_gaps_changes_nothing(shards: Shards, tmp_path: Path) -> None:
    shards.fill(60)
    assert shards.run("--impute", "mean") == 0
    assert shards.run("--impute", "mean", "--missing-indicator", output=tmp_path / "flagged") == 0
    assert load_model(tmp_path / "flagged").fingerprint == load_model(shards.output).fingerprint
    assert features_of(tmp_path / "flagged") == features_of(shards.output)


@pytest.mark.process
def test_useless_indicators_are_refused(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards.add(rows_with_gaps(1, 3))
    assert shards.run("--impute", "mean") == 0
    given = ["--model", str(shards.output), "--impute", "mean"]  # this model has no indicators
    for flags, code in (([], 64), (given, 78)):
        assert shards.run("--missing-indicator", *flags, output=tmp_path / "new") == code
        assert mentions(errors(caplog), "missing_indicator")


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
