"""Tests of features stored in fewer bytes: the rounding error is within its limit, and readers need no change."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.encoding.storage import Storage
from shardpress.hdf5.shard import Block
from shardpress.interop.export import export
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from tests.support.parts import (
    feature_rows,
    finished_parts,
    part_bytes,
    part_paths,
)

RNG = np.random.default_rng(0)
STORAGES = [Storage(*pair) for pair in product(("float32", "float16"), ("none", "lzf", "gzip"))]
PLACES = [(3, 0), (0, 3), (3, 3)]  # rows of a part, and the number of its first row


def store(storage: Storage, features: np.ndarray) -> tuple[np.ndarray, float]:
    out = np.empty(features.shape, storage.dtype)
    return out, storage.store(features, out)


def test_overflow_of_float16_is_clipped_and_reported() -> None:
    features = np.array([[1e6, -1e6, 1], [np.nan] * 3, [0.1, 0.2, 0.3]], np.float32)
    found, error = store(Storage("float16"), features)
    np.testing.assert_array_equal(found[0], [65504, -65504, 1])
    assert error == 1e6 - 65504
    found, error = store(Storage("float16"), features[1:])
    assert error == np.abs(found[1].astype(float) - features[2]).max()


@pytest.mark.process
def test_every_storage_is_valid_in_shards_index_and_export(tmp_path: Path) -> None:
    for i, storage in enumerate((Storage("float32", "lzf"), Storage("float16"), Storage("float16", "gzip"))):
        parts = [(n, part_bytes(feature_rows(n, first), np.ones(n, bool), {}, storage)) for n, first in PLACES]
        output = finished_parts(tmp_path / str(i), parts)
        (shard,) = open_shards([str(part_paths(output)[0])])
        assert shard.dtype == "float32"
        np.testing.assert_array_equal(read(Block(shard, 0, 3)), feature_rows(3))
        export(output, "hdf5")
        for path in (output / "index.h5", output / "features.h5"):
            with h5py.File(path) as file:
                assert file["features"].dtype == storage.dtype
                np.testing.assert_array_equal(file["features"], feature_rows(6))
