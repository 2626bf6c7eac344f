"""Tests of `--missing-indicator`: results are those of a run over files to which the indicators were appended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.columns import Columns
from shardpress.features import open_features
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from shardpress.settings import replicas
from tests.run.test_cleaning import KINDS, check_resumption, cleaned_rows, features_of, flags_of, rows_with_gaps
from tests.support.bad_shards import Shards, errors
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.logged import mentions

# These settings do not depend on the number of columns.
FLAGS = ["--hidden", "none", "--learning-rate", "0.01", "--scale", "range"]
INDICATING = ["--impute", "median", "--missing-indicator"]


def gaps_in_two_columns(n: int = 90, seed: int = 0) -> np.ndarray:
    """Return rows that miss values in columns 1 and 3."""
    rows = rows_with_gaps(np.float32, np.nan, 0, seed=seed, n=n)
    rows[:, [0, 2]] = np.nan_to_num(rows[:, [0, 2]])
    return rows


def appended(rows: np.ndarray, model: Any) -> np.ndarray:
    """Fill and clip rows in NumPy, and append a column for each indicator of a model."""
    plain = replace(model, scaler=model.scaler.without_indicators())
    is_missing = np.isnan(rows)[:, model.scaler.indicators]
    return np.hstack([cleaned_rows(rows, np.nan, plain), is_missing.astype(rows.dtype)])


@pytest.mark.slow
def test_indicators_equal_a_run_over_appended_columns(shards: Shards) -> None:
    for i, (dtype, missing, offset) in enumerate(KINDS):
        with case(dtype=dtype, missing=missing):
            gaps = shards.another(f"gaps-{i}")
            whole = shards.another(f"whole-{i}")
            rows = rows_with_gaps(dtype, missing, offset)
            rows[:, 2] = rows[5, 0]
            assert gaps.add(rows[:31])
            assert gaps.add(rows[31:])
            assert gaps.run(*INDICATING, *FLAGS, *flags_of(missing)) == 0
            model = load_model(gaps.output)
            assert model.scaler.indicators.tolist() == [0, 1, 3]
            is_missing = np.isnan(rows) if np.isnan(missing) else rows == np.array(missing).astype(dtype)
            plain = replace(model, scaler=model.scaler.without_indicators())
            filled = cleaned_rows(rows, missing, plain)
            extended = np.hstack([filled, is_missing[:, [0, 1, 3]].astype(filled.dtype)])
            whole.add(extended[:31])
            whole.add(extended[31:])
            assert whole.run(*FLAGS) == 0
            assert features_of(gaps.output) == features_of(whole.output)
            assert not verify(str(gaps.output), 1000).faults


@pytest.mark.slow
def test_a_given_model_appends_the_indicators_of_its_training(shards: Shards, tmp_path: Path) -> None:
    shards.add(gaps_in_two_columns())
    for i, flags in enumerate(([], ["--clip-quantile", "0.05"], ["--scale", "std"])):
        with case(flags):
            output = tmp_path / f"trained-{i}"
            assert shards.run(*INDICATING, *flags, output=output) == 0
            model = load_model(output)
            assert model.scaler.indicators.tolist() == [1, 3]
            later = shards.another(f"later-{i}")
            rows = rows_with_gaps(np.float32, np.nan, 0, seed=3)  # values are missing in all columns
            later.add(rows)
            for mode in ("clip", "pass"):
                given = tmp_path / f"{i}-{mode}"
                assert later.run("--model", str(output), "--on-drift", mode, output=given) == 0
                inside = appended(rows, model)
                if mode == "clip":
                    inside = np.clip(inside, model.scaler.minimum, model.scaler.maximum)
                found = open_features(given).features.compute()
                np.testing.assert_allclose(found, model.encode_cleaned(inside), atol=1e-5)
                assert not verify(str(given), 1000).faults


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards.add(gaps_in_two_columns()[:50])
    shards.add(gaps_in_two_columns(seed=1))
    check_resumption(shards, INDICATING, tmp_path, caplog)


@pytest.mark.slow
def test_replicas_and_streamed_rows_have_indicators(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MIN_STEPS", 2), ("_MIN_ROUNDS", 6), ("_MIN_STEPS_PER_ROUND", 1)):
        monkeypatch.setattr(replicas, name, value)
    rows = gaps_in_two_columns(400)
    shards.add(rows[:150])
    shards.add(rows[150:])
    assert shards.run(*INDICATING, *FLAGS) == 0
    whole = shards.another("whole")
    extended = appended(rows, load_model(shards.output))
    whole.add(extended[:150])
    whole.add(extended[150:])
    # A window of 64 rows has room for an indicator of each of the four columns.
    in_windows = [f"shuffle_window={64 * 8 * 4}"], [f"shuffle_window={64 * 6 * 4}"]
    by_replicas = ["--replicas", "2", "--batch-size", "4"]
    for i, (flags, flags_of_whole) in enumerate((in_windows, (by_replicas, by_replicas))):
        output = tmp_path / f"gaps-{i}"
        assert shards.run(*INDICATING, *FLAGS, *flags, output=output) == 0
        assert whole.run(*FLAGS, *flags_of_whole, output=tmp_path / f"whole-{i}") == 0
        assert features_of(output) == features_of(tmp_path / f"whole-{i}")


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_worker_processes_append_indicators(tmp_path: Path) -> None:
    from shardpress import cli

    folder = tmp_path / "shards"
    folder.mkdir()
    rows = gaps_in_two_columns(3000)
    write_shard(folder / "0.h5", rows[:1000])
    write_shard(folder / "1.h5", rows[1000:])
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        settings = ["--n-features", "2", "--epochs", "2", *INDICATING, *flags]
        assert cli.main("", ["--input", str(folder), "--output", str(tmp_path / name), *settings]) == 0
    assert features_of(tmp_path / "alone") == features_of(tmp_path / "workers")
    model = load_model(tmp_path / "alone")
    found = open_features(tmp_path / "alone").features.compute()
    np.testing.assert_allclose(found, model.encode_cleaned(appended(rows, model)), atol=1e-5)


@pytest.mark.process
def test_a_column_without_gaps_changes_nothing(shards: Shards, tmp_path: Path) -> None:
    shards.fill(60)
    assert shards.run("--impute", "mean") == 0
    assert shards.run("--impute", "mean", "--missing-indicator", output=tmp_path / "flagged") == 0
    assert load_model(tmp_path / "flagged").fingerprint == load_model(shards.output).fingerprint
    assert features_of(tmp_path / "flagged") == features_of(shards.output)


def test_indicators_without_imputation_are_refused(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(20)
    assert shards.run("--missing-indicator") == 64
    assert mentions(errors(caplog), "missing_indicator", "impute")


@pytest.mark.process
def test_indicators_that_a_given_model_lacks_are_refused(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.add(gaps_in_two_columns())
    assert shards.run("--impute", "mean") == 0
    flags = ["--model", str(shards.output), "--impute", "mean", "--missing-indicator"]
    assert shards.run(*flags, output=shards.output.with_name("given")) == 78
    assert mentions(errors(caplog), "missing_indicator")


def test_the_report_describes_columns_not_inputs(shards: Shards) -> None:
    rows = gaps_in_two_columns()
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


def test_an_indicator_is_named_after_its_column() -> None:
    columns = Columns(("a", "b", "c"), "columns")
    indicators = np.array([0, 2])
    found = [columns.name_of_input(i, 3, indicators) for i in range(5)]
    assert found == [(0, "a"), (1, "b"), (2, "c"), (0, "a is missing"), (2, "c is missing")]
    assert columns.name_of_input(1, 3, None) == (1, "b")
