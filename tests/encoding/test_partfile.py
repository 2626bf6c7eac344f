"""Tests of a part's file: it is valid input, holds all values, and can be mapped into memory."""

import io
from itertools import product

import h5py
import numpy as np

from shardpress.encoding.partfile import FORMAT
from shardpress.encoding.storage import Storage
from shardpress.interop.export import export
from shardpress.result.features import categories_of, open_features
from shardpress.result.finished import RESERVED, given_name, stored_name
from shardpress.shards.open import open_shards
from tests.support.cases import each
from tests.support.parts import (
    assert_same_datasets,
    feature_rows,
    finished_parts,
    part,
    part_bytes,
    part_paths,
)

SIZES = [0, 1, 3, 100, 2049, 70_000]
STORAGES = [Storage(*pair) for pair in product(("float32", "float16"), ("none", "lzf", "gzip"))]
CASES = list(zip(range(12), 2 * SIZES, STORAGES + STORAGES[::-1], strict=True))
ASCII = np.dtype("S2", metadata={"h5py_encoding": "ascii"})
DTYPES = ["u1", "<i2", ">i4", "<f4", ">f8", "?", "S3", "<c8", "O", ASCII]


def random_values(rng, n_rows):
    """Return values of any dtype and number of axes. Some are not contiguous."""
    dtype = np.dtype(DTYPES[rng.integers(0, len(DTYPES))])
    if dtype.hasobject:
        texts = [b"x" * int(n) for n in rng.integers(0, 3000, 2 * n_rows)]
        return np.array(texts, object)[::2]
    shape = (n_rows, 2, *rng.integers(0, 5, rng.integers(0, 3)))
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(0, 2, n_bytes).astype(np.uint8).view(dtype).reshape(shape)[:, 0]


@each("seed, n_rows, storage", CASES)
def test_a_part_holds_all_values_in_every_storage(seed, n_rows, storage):
    rng = np.random.default_rng(seed)
    extras = {"x" * int(rng.integers(1, 300)): random_values(rng, n_rows) for _ in range(rng.integers(0, 8))}
    features = rng.random((n_rows, 2), np.float32)
    valid = rng.random(n_rows) < 0.5
    with h5py.File(io.BytesIO(part_bytes(features, valid, extras, storage))) as file:
        found = {name: item[()] for name, item in file.items()}
        assert_same_datasets(found, {"features": features.astype(storage.dtype), "valid": valid, **extras})
        stored = file["features"]
        assert (stored.compression or "none") == (storage.compression if n_rows else "none")
        assert stored.chunks is not None or not n_rows or stored.id.get_offset() % 4096 == 0
        for name, values in extras.items():
            dtype = h5py.string_dtype() if values.dtype == object else values.dtype
            assert file[name].dtype == dtype
            assert h5py.check_string_dtype(file[name].dtype) == h5py.check_string_dtype(dtype)
        assert dict(file.attrs) == {"format": FORMAT}


def test_overflow_of_float16_is_clipped_and_reported():
    features = np.array([[1e6, -1e6, 1], [np.nan] * 3, [0.1, 0.2, 0.3]], np.float32)
    stored = np.empty((3, 3), np.float16)
    assert Storage("float16").store(features, stored) == 1e6 - 65504
    np.testing.assert_array_equal(stored[0], [65504, -65504, 1])
    error = Storage("float16").store(features[1:], stored[1:])
    assert error == np.abs(stored[2].astype(float) - features[2]).max()


def test_extras_named_like_our_datasets_are_renamed(tmp_path):
    renamed = [*RESERVED, "source_valid", "source_source_use"]
    kept = ["y", "source_", "source_y", "valid_present"]
    data = part(3, extras={name: np.arange(i, i + 3) for i, name in enumerate([*renamed, *kept])})
    output = finished_parts(tmp_path / "out", [(3, data)] * 2, append_ids=[0, 1])
    found = open_features(output)
    np.testing.assert_array_equal(found.features, np.tile(feature_rows(3), (2, 1)))
    assert found.extras.pop("append_id").compute().tolist() == [0, 0, 0, 1, 1, 1]
    expected = [*(f"source_{name}" for name in renamed), *kept]
    assert set(found.extras) == set(expected)
    assert [found.extras[name].compute()[0] for name in expected] == list(range(len(expected)))
    assert [given_name(name) for name in expected] == [*renamed, *kept]


def datasets_in(path):
    with h5py.File(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(item))
        return [item[()] for item in found if isinstance(item, h5py.Dataset)]


def test_parts_and_exported_files_have_one_value_for_each_row(tmp_path):
    """`datasets.load_dataset("hdf5")` of Hugging Face requires that. Categories are attributes of their codes."""
    categories = {"kind": ("T cell", "ß"), "number": (3, 5), "empty": (), "features": ("a", "b")}
    codes = np.array([0, -1, 1, 0], "i2")
    extras = {name: codes if values else codes * 0 - 1 for name, values in categories.items()}
    data = part_bytes(feature_rows(4), np.ones(4, bool), extras, categories=categories)
    output = finished_parts(tmp_path / "out", [(4, data)] * 2)
    export(output, "hdf5")
    stored = {stored_name(name): list(values) for name, values in categories.items()}
    for path, n_rows in ((part_paths(output)[0], 4), (output / "features.h5", 8)):
        assert {name: values.tolist() for name, values in categories_of(path).items()} == stored
        assert {len(item) for item in datasets_in(path)} == {n_rows}
    (shard,) = open_shards([str(part_paths(output)[0])], dataset="features")
    assert {extra.name: list(extra.categories) for extra in shard.extras if extra.categories is not None} == stored
