"""Tests of the single file, which contains the same datasets as the index."""

import os
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest

from shardpress.encoding import whole as module
from shardpress.encoding.whole import single_file
from shardpress.features import open_features
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block
from tests.support.helpers import numbered, refused
from tests.support.parts import index_of, part_bytes

SIZES = (3, 0, 4, 1)


def extras(n_rows, first):
    rows = np.arange(first, first + n_rows)
    return {
        "y": rows.astype(np.uint8),
        "weight": np.where(rows % 2, np.nan, rows).astype(">f8"),
        "is": rows % 3 == 0,
        "code": np.array([f"{row:03d}".encode() for row in rows], "S3"),
        "name": np.array(["ö" * row for row in rows], object),
    }


@pytest.fixture
def parts(tmp_path):
    """Write feature files into a directory and return their names."""
    names = []
    for i, size in enumerate(SIZES):
        first = sum(SIZES[:i])
        features = numbered(size, 3, first, np.float32)
        names.append(f"part-{i}.h5")
        valid = np.arange(first, first + size) % 5 != 1
        (tmp_path / names[-1]).write_bytes(part_bytes(features, valid, extras(size, first), {}))
    return names


def write_whole(folder, names, about=None):
    pieces = single_file(folder, names, about or {})
    path = folder / "elsewhere" / "single.h5"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(bytes(piece) for piece in pieces.pieces))
    assert path.stat().st_size == len(pieces)
    return path


@pytest.mark.process
def test_the_single_file_equals_the_index(tmp_path, parts):
    (tmp_path / "index.h5").write_bytes(index_of(tmp_path, parts, {"a": 1}))
    path = write_whole(tmp_path, parts, {"a": 1, "nested": {"b": [2]}, "long": "x" * 10**5})
    with h5py.File(path) as file, h5py.File(tmp_path / "index.h5") as index:
        assert set(file) == set(index) == {"features", "valid", *extras(0, 0)}
        for name, item in index.items():
            texts = h5py.check_string_dtype(item.dtype)
            found, expected = ((each.asstr("utf-8") if texts else each)[:] for each in (file[name], item))
            np.testing.assert_array_equal(found, expected)
            assert file[name].dtype == item.dtype or name == "name"
        assert dict(file.attrs) == {
            **{"a": 1, "nested": '{"b": [2]}', "long": "x" * 10**5},
            "format": "shardpress-features/1",
        }
        assert file["features"].id.get_offset() % 4096 == 0


@pytest.mark.process
def test_the_single_file_is_readable_with_h5py_alone(tmp_path, parts):
    path = write_whole(tmp_path, parts)
    for name in parts:
        (tmp_path / name).unlink()
    program = "import h5py, sys; file = h5py.File(sys.argv[1]); print(file['features'][:].sum(), *file['y'][:])"
    result = subprocess.run([sys.executable, "-c", program, path], cwd="/", capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(numbered(8, 3, 0, np.float32).sum()), *map(str, range(8))]


def test_the_single_file_is_a_valid_shard(tmp_path, parts):
    (shard,) = open_shards([str(write_whole(tmp_path, parts))])
    np.testing.assert_array_equal(read(Block(shard, 0, 8)), numbered(8, 3, 0, np.float32))
    found = read_extras(Block(shard, 0, 8))
    expected = extras(8, 0)
    assert [text.decode() for text in found.pop("name")] == list(expected.pop("name"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_open_features_accepts_the_single_file(tmp_path, parts):
    path = write_whole(tmp_path, parts, {"n_bad": 2})
    for block_rows in (1, 3, 100):
        found = open_features(path, block_rows)
        np.testing.assert_array_equal(found.features, numbered(8, 3, 0, np.float32), err_msg=f"blocks of {block_rows}")
        np.testing.assert_array_equal(found.valid, np.arange(8) % 5 != 1)
        assert set(found.extras) == set(extras(0, 0))
        assert found.extras["name"].compute().tolist() == extras(8, 0)["name"].tolist()
        assert found.extras["code"].compute().tolist() == [f"{row:03d}" for row in range(8)]
        assert (found.manifest["n_rows"], found.manifest["n_bad"]) == (8, 2)


def test_pieces_of_the_single_file_are_small(tmp_path, parts, monkeypatch):
    whole = write_whole(tmp_path, parts).read_bytes()
    monkeypatch.setattr(module, "_PIECE_TEXTS", 1)
    for n_bytes in (1, 7, 12, 1000):
        monkeypatch.setattr(module, "_PIECE", n_bytes)
        pieces = [bytes(piece) for piece in single_file(tmp_path, parts, {}).pieces]
        assert b"".join(pieces) == whole, f"pieces of {n_bytes}"
        bookkeeping = len(whole) - sum(size for size in map(len, pieces) if size <= n_bytes)
        assert max(map(len, pieces)) <= max(n_bytes, bookkeeping), f"pieces of {n_bytes}"


def test_the_longest_text_of_all_parts_determines_the_width(tmp_path):
    names = []
    for i, texts in enumerate([["a", ""], [], ["größer", "\udcff"]]):
        part_extras = {"t": np.array([text.encode("utf-8", "surrogateescape") for text in texts], object)}
        names.append(f"{i}.h5")
        features = np.zeros((len(texts), 1), np.float32)
        valid = np.ones(len(texts), bool)
        (tmp_path / names[-1]).write_bytes(part_bytes(features, valid, part_extras, {}))
    path = write_whole(tmp_path, names)
    with h5py.File(path) as file:
        assert file["t"].dtype == np.dtype("S8")
    assert open_features(path).extras["t"].compute().tolist() == ["a", "", "größer", "\udcff"]


@pytest.mark.parametrize("damage", ["gone", "cut", "text"])
def test_an_unreadable_part_is_named(tmp_path, parts, damage):
    path = tmp_path / parts[2]
    pieces = single_file(tmp_path, parts, {})
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 100)
    with refused(74, f"file={path}: "):
        list((single_file(tmp_path, parts, {}) if damage == "text" else pieces).pieces)


def test_a_feature_shard_needs_the_dataset_valid(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.zeros((3, 2))
    with refused(65, f"file={tmp_path / 'x.h5'}: ", "'valid'"):
        open_features(tmp_path / "x.h5")


def test_long_texts_are_copied_in_small_groups(tmp_path):
    n = 1000
    text = b"x" * 40_000  # 40 MB in total
    texts = np.array([b"%d" % i + text for i in range(n)], object)
    (tmp_path / "part.h5").write_bytes(part_bytes(numbered(n, 2, 0, np.float32), np.ones(n, bool), {"text": texts}, {}))
    del texts
    tracemalloc.start()
    try:
        pieces = single_file(tmp_path, ["part.h5"], {})
        with open(tmp_path / "single.h5", "wb") as out:
            for piece in pieces.pieces:
                out.write(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
    with h5py.File(tmp_path / "single.h5") as file:
        assert all(found == b"%d" % i + text for i, found in enumerate(file["text"][:]))
