"""Tests of a part's file: it is valid input, holds all values, and can be mapped into memory."""

import io
import tracemalloc
from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.encoding import partfile as module
from shardpress.encoding.partfile import Streamed, part_file, row_shapes
from shardpress.features import open_features
from shardpress.hdf5.shard import Block
from shardpress.result import RESERVED, Result, given_name
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import each
from tests.support.helpers import names, numbered, refused, write_shard
from tests.support.parts import (
    EXTRAS,
    assert_same_datasets,
    extras_of,
    feature_rows,
    finished_parts,
    part,
    part_bytes,
    shapes_in,
)

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


@each("seed", range(40))
def test_a_part_holds_all_values(seed):
    rng = np.random.default_rng(seed)
    n_rows = int(rng.choice([0, 1, 3, 100, 5000]))
    extras = {"x" * int(rng.integers(1, 300)): random_values(rng, n_rows) for _ in range(rng.integers(0, 8))}
    features = feature_rows(n_rows)
    valid = rng.random(n_rows) < 0.5
    with h5py.File(io.BytesIO(part_bytes(features, valid, extras))) as file:
        found = {name: item[()] for name, item in file.items()}
        assert_same_datasets(found, {"features": features, "valid": valid, **extras})
        for name, values in extras.items():
            dtype = h5py.string_dtype() if values.dtype == object else values.dtype
            assert file[name].dtype == dtype
            assert h5py.check_string_dtype(file[name].dtype) == h5py.check_string_dtype(dtype)
        assert dict(file.attrs) == {"format": module.FORMAT}


@pytest.mark.process
def test_features_can_be_memory_mapped(tmp_path):
    path = tmp_path / "part.h5"
    for shape in ((1, 1), (3, 2), (1023, 1), (1024, 1), (1025, 1), (3000, 64)):
        path.write_bytes(part(shape[0], n_features=shape[1]))
        with h5py.File(path) as file:
            features = file["features"]
            offset = features.id.get_offset()
            assert (features.dtype.str, features.chunks, features.compression) == ("<f4", None, None), shape
        assert offset % 4096 == 0, shape
        mapped = np.memmap(path, "<f4", "r", offset, shape)
        np.testing.assert_array_equal(mapped, feature_rows(shape[0], n_features=shape[1]), err_msg=str(shape))


@pytest.mark.process
def test_a_part_is_a_valid_shard_with_its_extras(tmp_path):
    path = tmp_path / "part.h5"
    path.write_bytes(part(3, extras=EXTRAS))
    (shard,) = open_shards([str(path)])
    assert (shard.dataset, shard.shape, shard.dtype) == ("features", (3, 2), "float32")
    assert set(names(shard)) == {"valid", *EXTRAS}
    np.testing.assert_array_equal(read(Block(shard, 0, 3)), feature_rows(3))
    assert_same_datasets(read_extras(Block(shard, 0, 3)), {**EXTRAS, "valid": [True, False, True]})


def test_a_streamed_file_equals_one_made_at_once():
    rows = feature_rows(1000)
    valid = np.ones(1000, bool)
    extras = {"y": np.arange(1000), "word": np.arange(1000).astype("S30"), "pair": np.zeros((1000, 2), "f4")}

    def blocks(values):
        return (values[start : start + 300] for start in range(0, 1000, 300))

    streamed = {
        name: values if name == "y" else Streamed(values.shape, values.dtype, partial(blocks, values))
        for name, values in extras.items()
    }
    pieces = part_file(rows, valid, streamed, {})
    content = b"".join(map(bytes, pieces.pieces))
    assert content == part_bytes(rows, valid, extras)
    assert len(content) == len(pieces)


def test_streamed_texts_use_their_memory_once(tmp_path):
    n = 400
    text = b"x" * 10**5  # 40 MB in total
    valid = np.ones(n, bool)
    tracemalloc.start()
    try:
        texts = Streamed((n,), np.dtype("O"), lambda: (np.full(10, text, object) for _ in range(n // 10)))
        pieces = part_file(feature_rows(n), valid, {"text": texts}, {})
        with open(tmp_path / "part.h5", "wb") as file:
            for piece in pieces.pieces:
                file.write(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * n * len(text)
    with h5py.File(tmp_path / "part.h5") as file:
        assert all(found == text for found in file["text"][:])
        np.testing.assert_array_equal(file["features"], feature_rows(n))


def test_the_values_of_numbers_are_not_held():
    """HDF5 stores its metadata after the values far away from the metadata before them."""
    huge = Streamed((2**37,), np.dtype(float), lambda: iter(()))
    tracemalloc.start()
    try:
        n_bytes = len(part_file(feature_rows(3), np.ones(3, bool), {"huge": huge}, {}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes > 2**40
    assert peak < 2**20


def test_an_image_equals_the_written_file():
    rng = np.random.default_rng(0)
    image = module._Image()
    expected = bytearray(400000)
    for _ in range(50):  # some cross the ends of its pages
        start = int(rng.integers(0, 200000))
        data = rng.bytes(int(rng.integers(0, 10 ** rng.integers(1, 6))))
        image.seek(start)
        assert image.write(memoryview(data)) == len(data)
        expected[start : start + len(data)] = data
        assert image.tell() == start + len(data)
    assert b"".join(image.pages(0, image.size)) == bytes(expected[: image.size])
    for _ in range(50):
        start, stop = sorted(map(int, rng.integers(0, image.size, 2)))
        assert b"".join(image.pages(start, stop)) == bytes(expected[start:stop]), (start, stop)
        image.seek(start - image.size, 2)
        assert image.read(stop - start) == expected[start:stop]


def test_equal_content_gives_equal_bytes():
    assert part(3, extras=EXTRAS) == part(3, extras=EXTRAS)


def test_a_text_that_hdf5_cannot_hold_is_an_error():
    with pytest.raises(ValueError, match="NULL"):
        part(3, extras={"text": np.array([b"", b"a\0b", b""], object)})


@pytest.mark.parametrize("n_rows", [0, 3])
def test_shapes_of_a_part_are_known_without_reading_it(n_rows):
    state = h5py.enum_dtype({"on": 1, "off": 0}, "i2")
    dtypes = {"valid": "i8", "wide": np.dtype(("f4", (3, 2))), "state": state, "ascii": ASCII, "text": "O", "is": "?"}
    arrays = {name: np.zeros(n_rows, dtype) for name, dtype in dtypes.items()} | {
        name: values[:n_rows] for name, values in EXTRAS.items()
    }
    arrays["text"][:] = b""
    stored = shapes_in(part(n_rows, extras=arrays))
    found = row_shapes(2, extras_of(arrays))
    assert found == {name: (dims[1:], dtype) for name, (dims, dtype) in stored.items()}
    for name, (_, dtype) in stored.items():
        assert h5py.check_enum_dtype(found[name][1]) == h5py.check_enum_dtype(dtype)
        assert h5py.check_string_dtype(found[name][1]) == h5py.check_string_dtype(dtype)


@pytest.mark.process
def test_declared_extras_of_a_shard_match_its_parts(tmp_path):
    """Otherwise the index, which is built from the declaration alone, would show no values."""
    n = 3
    state = h5py.enum_dtype({"on": 1, "off": 0}, "i2")
    both = {
        "ascii": np.zeros(n, ASCII),
        "utf8": np.zeros(n, h5py.string_dtype("utf-8", 5)),
        "state": np.zeros(n, state),
    }
    one = {"big": np.zeros(n, ">i4"), "column": np.zeros((n, 1)), "row": np.zeros((1, n), "f4"), "is": np.ones(n, bool)}
    for i, part_extras in enumerate(
        ({**both, **one}, {**both, "ascii": np.zeros(n, "S7"), "text": np.full(n, "ö", object)})
    ):
        with h5py.File(write_shard(tmp_path / f"{i}.h5", numbered(n)), "a") as file:
            for name, values in part_extras.items():
                file.create_dataset(name, data=values, dtype=h5py.string_dtype() if name == "text" else None)
            file.create_dataset("array", (n,), np.dtype(("f4", (2, 2))))[...] = np.zeros((n, 2, 2))
    for shard in open_shards([str(tmp_path)]):
        found = read_extras(Block(shard, 0, n))
        declared = row_shapes(2, shard.extras)
        shapes = {name: (dims[1:], dtype) for name, (dims, dtype) in shapes_in(part(n, extras=found)).items()}
        assert {"ascii", "utf8", "state", "big", "big_present", "column", "row", "text", "array"} <= set(declared)
        assert declared == shapes
        for check in (h5py.check_enum_dtype, h5py.check_string_dtype):
            assert {name: check(dtype) for name, (_, dtype) in declared.items()} == {
                name: check(dtype) for name, (_, dtype) in shapes.items()
            }


def test_extras_named_like_our_datasets_are_renamed(tmp_path):
    renamed = [*RESERVED, "source_valid", "source_source_use"]
    kept = ["y", "source_", "source_y", "valid_present"]
    data = part(3, extras={name: np.arange(i, i + 3) for i, name in enumerate([*renamed, *kept])})
    output = finished_parts(tmp_path / "out", [(3, data)] * 2, append_ids=[0, 1])
    found = open_features(output)
    np.testing.assert_array_equal(found.features, np.tile(feature_rows(3), (2, 1)))
    assert found.extras.pop("append_id").compute().tolist() == [0, 0, 0, 1, 1, 1]
    expected = [*(f"source_{name}" for name in renamed), *kept]
    assert {name: values.compute()[0] for name, values in found.extras.items()} == {
        name: i for i, name in enumerate(expected)
    }
    assert [given_name(name) for name in expected] == [*renamed, *kept]
    assert set(Result.open(output).extras()) == set(expected)


@pytest.mark.process
def test_a_requested_extra_with_a_reserved_name_is_refused(tmp_path):
    for name in RESERVED:
        path = write_shard(tmp_path / "x.h5", numbered(3), extras={f"obs/{name}": np.arange(3)})
        assert names(open_shards([path], include=["obs"])[0]) == (name,)
        with refused(65, f"dataset=obs/{name}", f"--include obs/{name}"):
            open_shards([path], include=[f"obs/{name}"])


def test_categories_have_the_name_of_their_codes(tmp_path):
    extras = {"features": np.array([0, 1, -1], "i1"), "source_features": np.arange(3)}
    data = part_bytes(feature_rows(3), np.ones(3, bool), extras, categories={"features": ("a", "b")})
    (tmp_path / "0.h5").write_bytes(data)
    with h5py.File(tmp_path / "0.h5") as file:
        (name,) = (name for name in file if "categories" in file[name].attrs)
        assert file[name][:].tolist() == [0, 1, -1]
        assert file[name].attrs["categories"].tolist() == [b"a", b"b"]


def test_parts_can_be_the_input_of_parts_repeatedly(tmp_path):
    path = tmp_path / "part.h5"
    path.write_bytes(part(3))
    for _ in range(3):
        (shard,) = open_shards([str(path)])
        path.write_bytes(part(3, extras=read_extras(Block(shard, 0, 3))))


@pytest.mark.process
def test_a_part_with_an_extra_named_x_is_a_valid_shard(tmp_path):
    (tmp_path / "part.h5").write_bytes(part(3, extras={"X": np.arange(3)}))
    assert open_shards([str(tmp_path / "part.h5")])[0].dataset == "features"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["ragged", "reference"])
def test_every_extra_dataset_can_be_written(tmp_path, kind):
    """An extra that cannot be written is left out when the shards are checked, before the training."""
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with h5py.File(path, "a") as file:
        dtype = h5py.ref_dtype if kind == "reference" else h5py.vlen_dtype(np.int32)
        dataset = file.create_dataset("odd", (3,), dtype=dtype)
        dataset[:] = [file["X"].ref] * 3 if kind == "reference" else np.array([[1], [2, 3], [4]], dtype=object)
    (shard,) = open_shards([path])
    part(3, extras=read_extras(Block(shard, 0, 3)))
