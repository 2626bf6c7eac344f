"""Tests of the preview: statistics of all rows equal NumPy's, and a preview of some rows has a bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardpress.scan.blocks import ScanSettings
from shardpress.scan.preview import Preview, preview_rows, smaller_dtypes
from shardpress.shards.open import open_shards
from tests.support.cases import case
from tests.support.helpers import write_shard

ROWS = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
ROWS[:, 2] = 7
ROWS[[3, 500], [0, 1]] = np.nan, np.inf


def preview(folder: Path, n_bytes: int | None, seed: int = 0) -> Preview:
    paths = [write_shard(folder / f"{i}.h5", part) for i, part in enumerate(np.split(ROWS, [300, 310]))]
    return preview_rows(open_shards(paths), ScanSettings(16), 2, n_bytes, seed)


def test_preview_of_all_rows_equals_numpy(tmp_path: Path) -> None:
    found = preview(tmp_path, None)
    good = np.delete(ROWS, [3, 500], axis=0)
    assert found.has_all_rows
    assert found.scan.bad_rows.tolist() == [3, 500]
    assert found.scan.constant.tolist() == [False, False, True, False]
    np.testing.assert_array_equal(found.scan.minimum, good.min(axis=0))
    np.testing.assert_array_equal(found.scan.maximum, good.max(axis=0))


def test_preview_of_some_rows_is_bounded_and_reproducible(tmp_path: Path) -> None:
    found = preview(tmp_path, 16 * 100)
    assert found.n_rows == 1000
    assert not found.has_all_rows
    assert 0 < found.scan.n_rows <= 100
    again = preview(tmp_path, 16 * 100)
    other = preview(tmp_path, 16 * 100, seed=1)
    np.testing.assert_array_equal(found.scan.minimum, again.scan.minimum)
    assert (found.scan.minimum != other.scan.minimum).any()


def test_smaller_dtypes_are_all_that_hold_every_value() -> None:
    names = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
    for low, high in ((0, 255), (-1, 100), (0, 256), (-(2**31), 2**31 - 1), (0, 2**40)):
        for dtype in ("int64", "int32", "float64", "float32"):
            if dtype == "int32" and high > 2**31:
                continue
            rows = np.array([[low, high]], dtype)
            with case(low, high, dtype):
                fewer = [name for name in names if np.dtype(name).itemsize < rows.dtype.itemsize]
                fewer = [name for name in fewer if name != "float32" or rows.dtype.kind == "f"]
                with np.errstate(invalid="ignore"):
                    exact = {name for name in fewer if (rows.astype(name).astype(dtype) == rows).all()}
                assert smaller_dtypes(rows) == exact
    assert smaller_dtypes(np.array([[0.5, 1e300]])) == set()
    assert smaller_dtypes(np.array([[0.5, np.nan]])) == {"float32"}
    assert smaller_dtypes(np.array([[0.1]])) == set()


def test_the_error_of_float32_is_estimated(tmp_path: Path) -> None:
    for offset, is_fine in ((0.0, True), (1e9, False)):
        rows = offset + np.random.default_rng(0).random((100, 2))
        shards = open_shards([write_shard(tmp_path / f"{offset}.h5", rows)])
        found = preview_rows(shards, ScanSettings(64), 1, None)
        with case(offset):
            error = abs(rows.astype(np.float32) - rows).max() / np.ptp(rows, axis=0).min()
            assert error <= found.float32_error
            assert (found.float32_error < 1e-5) == is_fine
