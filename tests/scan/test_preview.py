"""Tests of the preview: statistics of all rows equal NumPy's, and a preview of some rows has a bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardpress.scan.blocks import ScanSettings
from shardpress.scan.preview import preview_rows
from shardpress.scan.ranges import Scan
from shardpress.shards.open import open_shards
from tests.support.helpers import write_shard

ROWS = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
ROWS[:, 2] = 7
ROWS[[3, 500], [0, 1]] = np.nan, np.inf


def preview(folder: Path, n_bytes: int | None) -> Scan:
    paths = [write_shard(folder / f"{i}.h5", part) for i, part in enumerate(np.split(ROWS, [300, 310]))]
    return preview_rows(open_shards(paths), ScanSettings(16), 2, n_bytes)


def test_preview_of_all_rows_equals_numpy(tmp_path: Path) -> None:
    found = preview(tmp_path, None)
    good = np.delete(ROWS, [3, 500], axis=0)
    assert found.n_rows == 1000
    assert found.bad_rows.tolist() == [3, 500]
    assert found.constant.tolist() == [False, False, True, False]
    np.testing.assert_array_equal(found.minimum, good.min(axis=0))
    np.testing.assert_array_equal(found.maximum, good.max(axis=0))


def test_preview_of_some_rows_is_bounded_and_reproducible(tmp_path: Path) -> None:
    found = preview(tmp_path, 16 * 100)
    assert 0 < found.n_rows <= 100
    again = preview(tmp_path, 16 * 100)
    np.testing.assert_array_equal(found.minimum, again.minimum)
