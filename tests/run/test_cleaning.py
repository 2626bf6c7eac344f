"""Tests of imputation and clipping in whole runs: features are those of rows that the tests clean entry by entry.

The fitted model says what to impute and clip. Sample: each kind of rows is imputed in one way; with TEST_CASES=all in
both ways.
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
from tests.support.bad_shards import NO_LIMITS, Shards, bad_lines, check
from tests.support.cases import cross, each
from tests.support.helpers import csr, write_csr

# Storage dtype of rows, the value for missing entries, and the position of the columns.
KINDS: list[tuple[Any, float, float]] = [
    (np.float32, np.nan, 0),
    (np.float16, -9999, 0),
    (np.float64, np.nan, 1e9),
    (np.float64, -9999, 1e9),
    (np.int32, -9999, 1_600_000_000),
    (np.uint8, 255, 0),
]


def rows_with_gaps(dtype: Any, missing: float, offset: float, n: int = 90) -> np.ndarray:
    """Return rows of four columns with outliers and a fifth of the entries missing; no row misses all."""
    rng = np.random.default_rng(0)
    rows = offset + 100 + 20 * rng.standard_normal((n, 4))
    rows[5, 0] = offset + 250
    rows[6, 3] = offset
    gaps = rng.random((n, 4)) < 0.2
    gaps[np.arange(n), rng.integers(4, size=n)] = False
    rows = rows.astype(dtype)
    rows[gaps] = np.array(missing).astype(dtype)
    return rows


def cleaned_rows(rows: np.ndarray, missing: float, model: Model) -> np.ndarray:
    """Clean rows entry by entry. Return them in the dtype in which they are read, if it holds all values."""
    scaler = model.scaler
    gap = missing if rows.dtype.kind in "iu" else float(np.array(missing).astype(rows.dtype))
    cleaned = np.empty(rows.shape)
    for row, column in np.ndindex(rows.shape):
        value = float(rows[row, column])
        if np.isnan(value) or value == gap:
            value = float(scaler.fill[column])
        low = float(scaler.minimum[column])
        high = float(scaler.maximum[column])
        cleaned[row, column] = min(max(value, low), high)
    dtype = np.dtype(np.float32) if rows.dtype == np.float16 else rows.dtype
    for wider in (dtype, np.result_type(dtype, np.float32)):
        if np.array_equal(cleaned.astype(wider), cleaned):
            return cleaned.astype(wider)
    return cleaned


@pytest.mark.process
@each("kind, impute", cross(KINDS, ["mean", "median"]))
def test_features_are_those_of_cleaned_rows(shards: Shards, kind: tuple[Any, float, float], impute: str) -> None:
    """Also with the model, as a given one."""
    dtype, missing, offset = kind
    rows = rows_with_gaps(dtype, missing, offset)
    these = shards.another(f"{kind}")
    these.add(rows)
    marked = [] if np.isnan(missing) else ["--missing-value", str(missing)]
    assert these.run("--impute", impute, "--clip-quantile", "0.05", *marked) == 0
    model = load_model(these.output)
    again = these.folder.with_name("again")
    assert these.run("--model", str(these.output), *marked, output=again) == 0
    for output in (these.output, again):
        check(output, [cleaned_rows(rows, missing, model)], [], model)


@pytest.mark.process
def test_rows_with_inf_or_without_values_stay_bad(shards: Shards) -> None:
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


def features_of(output: Path) -> bytes:
    return bytes(open_features(output).features.compute().tobytes())


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
    for block_rows, n_threads in ((4, 1), (1000, 2)):
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
