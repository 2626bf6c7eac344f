"""Tests of features stored in fewer bytes: the rounding error is within its limit, and readers need no change."""

from __future__ import annotations

import io
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
from tests.support.cases import case
from tests.support.parts import (
    assert_same_datasets,
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


def test_rounding_errors_are_reported() -> None:
    features = (RNG.normal(size=(5000, 3)) * 100).astype(np.float32)
    valid = RNG.random(5000) < 0.9
    features[~valid] = np.nan
    for dtype in ("float32", "float16"):
        found, error = store(Storage(dtype), features)
        np.testing.assert_array_equal(found, features.astype(dtype))
        assert error == np.abs(found[valid].astype(float) - features[valid]).max()


def test_overflow_of_float16_is_clipped_and_reported() -> None:
    features = np.array([[1e6, -1e6, 1]], np.float32)
    found, error = store(Storage("float16"), features)
    np.testing.assert_array_equal(found, [[65504, -65504, 1]])
    assert error == 1e6 - 65504


def test_a_part_holds_all_values_in_every_storage() -> None:
    for storage in STORAGES:
        for size in (70000, 5, 0, 2048, 2049):
            features = RNG.random((size, 2), np.float32)
            valid = RNG.random(size) < 0.5
            data = part_bytes(features, valid, {}, storage)
            assert data == part_bytes(features, valid, {}, storage)
            with case(storage, size), h5py.File(io.BytesIO(data)) as file:
                stored = file["features"]
                assert stored.dtype == storage.dtype
                assert (stored.compression or "none") == (storage.compression if size else "none")
                assert stored.chunks is not None or not size or stored.id.get_offset() % 4096 == 0
                assert_same_datasets(
                    {name: file[name][()] for name in file},
                    {"features": features.astype(storage.dtype), "valid": valid},
                )


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
