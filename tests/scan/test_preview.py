"""Tests of the preview: statistics of all rows equal NumPy's, and a preview of some rows has a bounded size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from shardpress.scan.blocks import ScanSettings
from shardpress.scan.preview import preview_rows
from shardpress.shards.open import open_shards
from tests.support.helpers import write_shard

ROWS = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
ROWS[:, 2] = 7
ROWS[[3, 500], [0, 1]] = np.nan, np.inf


def test_previews_of_all_and_some_rows_equal_numpy(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{i}.h5", part) for i, part in enumerate(np.split(ROWS, [300, 310]))]
    preview = partial(preview_rows, open_shards(paths), ScanSettings(16), 2)
    found = preview(None)
    good = np.delete(ROWS, [3, 500], axis=0)
    assert found.n_rows == 1000
    assert found.bad_rows.tolist() == [3, 500]
    assert found.constant.tolist() == [False, False, True, False]
    np.testing.assert_array_equal(found.minimum, good.min(axis=0))
    np.testing.assert_array_equal(found.maximum, good.max(axis=0))
    some = preview(16 * 100)
    assert 0 < some.n_rows <= 100
    np.testing.assert_array_equal(some.minimum, preview(16 * 100).minimum)
