"""Tests of the preparation of rows: it equals plain NumPy, row by row."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.choices import ROW_SCALES, TRANSFORMS
from pipeline.preparation import Preparation
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, with_preparation
from tests.support.cases import case, each
from tests.support.helpers import csr, write_csr, write_shard

PREPARATIONS = [Preparation(*values) for values in product((None, *ROW_SCALES), (None, *TRANSFORMS))][1:]
DTYPES = ("u1", "?", "i2", "i4", "f2", "f4", "f8")


def slow_row(preparation: Preparation, row: np.ndarray) -> np.ndarray:
    """Prepare one row in float64."""
    values = row.astype(np.float64)
    present = np.abs(values[~np.isnan(values)])
    sizes = {
        None: 1.0,
        "total": present.sum() / 10_000,
        "median": abs(np.median(values[~np.isnan(values)])) if len(present) else 0.0,
        "norm": np.sqrt((present**2).sum()),
        "max": present.max(initial=0),
    }
    size = sizes[preparation.row_scale]
    if np.isfinite(size) and size > 0:
        values = values / size
    if preparation.transform == "log1p":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def rows_of(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.gamma(0.5, 20, (60, 7)).clip(0, 200)
    if np.dtype(dtype).kind in "if":
        rows *= rng.choice([-1, 1, 1, 1], rows.shape)
    rows[5] = 0
    rows = rows.astype(dtype)
    if rows.dtype.kind == "f":
        rows[7, 3] = np.nan
        rows[8, 2] = np.inf
        rows[9] = np.nan
    return rows


@each("preparation", PREPARATIONS)
def test_preparation_equals_numpy(preparation: Preparation) -> None:
    for dtype in DTYPES:
        rows = rows_of(dtype)
        found = preparation.apply(rows)
        expected = np.array([slow_row(preparation, row) for row in rows])
        with case(dtype):
            assert found.dtype == (np.float64 if dtype in ("i4", "f8") else np.float32)
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@each("preparation", PREPARATIONS)
def test_each_row_is_prepared_by_itself(preparation: Preparation) -> None:
    rows = np.random.default_rng(0).gamma(0.5, 20, (301, 97)).astype(np.float32)
    expected = preparation.apply(rows)
    for n in (1, 2, 64):
        found = np.concatenate([preparation.apply(rows[i : i + n]) for i in range(0, len(rows), n)])
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    turned = preparation.apply(np.asfortranarray(rows))
    np.testing.assert_array_equal(turned.view(np.uint32), expected.view(np.uint32))
    assert preparation.apply(rows[:0]).shape == (0, 97)


def test_the_transformation_is_undone() -> None:
    rows = np.random.default_rng(0).normal(0, 100, (50, 4))
    preparation = Preparation(None, "log1p")
    np.testing.assert_allclose(preparation.restore(preparation.apply(rows)), rows, rtol=1e-12)


@pytest.mark.process
@each("preparation", PREPARATIONS)
def test_rows_are_prepared_on_reading(tmp_path: Path, preparation: Preparation) -> None:
    for dtype in ("u1", "f2", "f4", "f8"):
        rows = np.random.default_rng(1).integers(0, 5, (50, 6)).astype(dtype)
        write_shard(tmp_path / "dense.h5", rows)
        with h5py.File(tmp_path / "turned.h5", "w") as file:
            file["X"] = rows.T
        write_csr(tmp_path / "sparse.h5", csr(rows), rows.shape)
        for name in ("dense", "turned", "sparse"):
            orientation = "columns" if name == "turned" else None
            (shard,) = open_shards([tmp_path / f"{name}.h5"], orientation=orientation)
            shard = with_preparation(shard, preparation)
            with case(dtype, name):
                found = read(Block(shard, 3, 41))
                assert found.dtype == shard.dtype
                np.testing.assert_array_equal(found, preparation.apply(rows[3:41]))
