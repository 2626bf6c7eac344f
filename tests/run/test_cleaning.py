"""Tests of imputation and clipping: results are those of a run over files with imputed and clipped values.

The fitted model says what to impute and clip; the tests clean the rows in NumPy, entry by entry, and a run over them
must give the same bits.

Sample: each kind of rows is imputed in one way; with TEST_CASES=all in every way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.model import Model
from shardpress.result import Result, load_model
from tests.support.bad_shards import NO_LIMITS, Shards, bad_lines, check, errors
from tests.support.cases import ALL_CASES, case, sample
from tests.support.helpers import csr, write_csr
from tests.support.logged import mentions

# Storage dtype of rows, the value for missing entries, and the position of the columns.
KINDS: list[tuple[Any, float, float]] = [
    (np.float32, np.nan, 0),
    (np.float16, -9999, 0),
    (np.float64, np.nan, 1e9),
    (np.float64, -9999, 1e9),
    (np.int32, -9999, 1_600_000_000),
    (np.uint8, 255, 0),
]


def rows_with_gaps(dtype: Any, missing: float, offset: float, seed: int = 0, n: int = 90) -> np.ndarray:
    """Return rows of four columns with outliers and a fifth of the entries missing; no row misses all."""
    rng = np.random.default_rng(seed)
    rows = offset + 100 + 20 * rng.standard_normal((n, 4))
    rows[5, 0] = offset + 250
    rows[6, 3] = offset
    gaps = rng.random((n, 4)) < 0.2
    gaps[np.arange(n), rng.integers(4, size=n)] = False
    rows = rows.astype(dtype)
    rows[gaps] = np.array(missing).astype(dtype)
    return rows


def as_read(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float32) if rows.dtype == np.float16 else rows


def cleaned_rows(rows: np.ndarray, missing: float, model: Model) -> np.ndarray:
    """Clean rows entry by entry. Return them in the dtype in which they are read, if it holds all values."""
    scaler = model.scaler
    gap = missing if rows.dtype.kind in "iu" else float(np.array(missing).astype(rows.dtype))
    cleaned = np.empty(rows.shape)
    for row, column in np.ndindex(rows.shape):
        value = float(rows[row, column])
        if scaler.fill is not None and (np.isnan(value) or value == gap):
            value = float(scaler.fill[column])
        if scaler.clips:
            low = float(scaler.minimum[column])
            high = float(scaler.maximum[column])
            value = min(max(value, low), high)
        cleaned[row, column] = value
    dtype = as_read(rows).dtype
    for wider in (dtype, np.result_type(dtype, np.float32)):
        if np.array_equal(cleaned.astype(wider), cleaned):
            return cleaned.astype(wider)
    return cleaned


def features_of(output: Path) -> bytes:
    return bytes(open_features(output).features.compute().tobytes())


def flags_of(missing: float) -> list[str]:
    return [] if np.isnan(missing) else ["--missing-value", str(missing)]


@pytest.mark.slow
@pytest.mark.parametrize("impute", ["mean", "median"])
def test_imputation_equals_a_run_over_imputed_rows(shards: Shards, impute: str) -> None:
    for i, (dtype, missing, offset) in enumerate(KINDS if ALL_CASES else KINDS[impute == "mean" :: 2]):
        with case(dtype=dtype, missing=missing):
            gaps = shards.another(f"gaps-{i}")
            filled = shards.another(f"filled-{i}")
            rows = rows_with_gaps(dtype, missing, offset)
            gaps.add(rows[:31])
            gaps.add(rows[31:])
            assert gaps.run("--impute", impute, *flags_of(missing)) == 0
            model = load_model(gaps.output)
            whole = cleaned_rows(rows, missing, model)
            read = np.where(rows == np.array(missing).astype(dtype), np.nan, rows.astype(np.float64))
            expected = (np.nanmean if impute == "mean" else np.nanmedian)(read, axis=0)
            step = 1 if np.dtype(dtype).kind in "iu" else float(np.finfo(dtype).eps) * 256
            np.testing.assert_allclose(model.scaler.fill, expected, rtol=1e-6, atol=step)
            np.testing.assert_array_equal(model.scaler.minimum, np.nanmin(read, axis=0))
            filled.add(whole[:31])
            filled.add(whole[31:])
            assert filled.run() == 0
            assert features_of(gaps.output) == features_of(filled.output)
            assert Result.open(gaps.output).n_bad == 0


@pytest.mark.slow
def test_clipping_equals_a_run_over_clipped_rows(shards: Shards) -> None:
    for i, (dtype, _, offset) in enumerate(sample(KINDS, 4)):
        with case(dtype=dtype):
            clipped_by_run = shards.another(f"wild-{i}")
            clipped_before = shards.another(f"tame-{i}")
            rows = rows_with_gaps(dtype, 7, offset)
            clipped_by_run.add(rows)
            assert clipped_by_run.run("--clip-quantile", "0.05") == 0
            model = load_model(clipped_by_run.output)
            wide = np.sort(rows.astype(np.float64), axis=0)
            np.testing.assert_array_equal((model.scaler.minimum, model.scaler.maximum), (wide[4], wide[-5]))
            clipped_before.add(cleaned_rows(rows, np.nan, model))
            assert clipped_before.run() == 0
            assert features_of(clipped_by_run.output) == features_of(clipped_before.output)


@pytest.mark.process
@pytest.mark.parametrize(
    "flags",
    [
        ["--impute", "mean", "--row-scale", "total", "--transform", "log1p", "--scale", "std"],
        ["--impute", "median", "--row-scale", "norm", "--scale", "common"],
        ["--impute", "mean", "--missing-indicator", "--clip-quantile", "0.02", "--scale", "std"],
    ],
    ids=lambda flags: flags[1],
)
def test_blocks_threads_and_the_form_of_files_change_no_bit(shards: Shards, tmp_path: Path, flags: list[str]) -> None:
    rows = rows_with_gaps(np.float32, np.nan, 0, n=300)
    rows[np.random.default_rng(1).random(rows.shape) < 0.3] = 0
    shards.add(rows[:120])
    shards.add(rows[120:])
    assert shards.run(*flags) == 0
    for block_rows, n_threads in ((4, 1), (64, 3), (1000, 2)):
        output = tmp_path / f"{block_rows}"
        assert shards.run(*flags, f"block_rows={block_rows}", "--threads", str(n_threads), output=output) == 0
        assert features_of(output) == features_of(shards.output)
    turned = shards.another("turned")
    sparse = shards.another("sparse")
    for i, part in enumerate((rows[:120], rows[120:])):
        with h5py.File(turned.folder / f"{i}.h5", "w") as file:
            file["X"] = part.T
        write_csr(sparse.folder / f"{i}.h5", csr(part), part.shape)
    assert turned.run(*flags, "--orientation", "columns") == 0
    assert sparse.run(*flags) == 0
    assert features_of(turned.output) == features_of(sparse.output) == features_of(shards.output)


# -- rows that stay bad ------------------------------------------------------------------------------------------


@pytest.mark.process
def test_imputation_keeps_rows_with_inf_or_without_values_bad(shards: Shards) -> None:
    rows = rows_with_gaps(np.float32, -7, 0)
    rows[11] = [-7, np.nan, np.nan, -7]
    rows[3, 1] = np.inf
    rows[40, [0, 2]] = [np.nan, -np.inf]
    shards.add(rows)
    flags = ["--missing-value", "-7", "--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags, "--impute", "mean", "--clip-quantile", "0.01") == 0
    model = load_model(shards.output)
    again = shards.folder.with_name("again")
    assert shards.run(*flags, "--model", str(shards.output), output=again) == 0
    for output in (shards.output, again):
        check(output, [cleaned_rows(rows, -7, model)], [3, 11, 40], model)
        assert Result.open(output).facts.summary["n_outside"] == 0
        lines = [(line["row"], line["columns"]) for line in bad_lines(output)]
        assert lines == [(3, [1]), (11, [0, 1, 2, 3]), (40, [2])]


def test_imputation_is_advised_only_if_it_helps(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 4))
    rows[np.arange(40), np.arange(40) % 4] = np.nan
    shards.add(rows)
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 65
    assert "--impute median" in errors(caplog)
    assert shards.run("--impute", "median", "--overwrite") == 0
    rows[20, 2] = -np.inf
    shards.rewrite(0, rows)
    assert shards.run("--impute", "median", "--overwrite") == 65
    assert mentions(errors(caplog), "-inf", 20, 2, "1 of 40")
    assert "--impute" not in errors(caplog)
