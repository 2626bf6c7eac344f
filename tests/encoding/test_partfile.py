"""Tests of a part's file: it is valid input, can be mapped into memory, and equals the file that HDF5 writes."""

import io
import json
import os
import tracemalloc
from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.encoding import partfile as module
from shardpress.encoding.partfile import PartMemory, part_shapes
from shardpress.encoding.template import Streamed, lay_out
from shardpress.features import open_features
from shardpress.result import RESERVED, Result, given_name
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block, Extra
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
    written_by_hdf5,
)


@pytest.mark.process
def test_features_can_be_memory_mapped(tmp_path):
    path = tmp_path / "part.h5"
    for shape in ((1, 1), (3, 2), (1023, 1), (1024, 1), (1025, 1), (3000, 64)):
        path.write_bytes(part(shape[0], n_features=shape[1], attributes={"long": "x" * 5000}))
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

    memory = PartMemory(*rows.shape, extras_of(extras))
    memory.features(1000)[:] = rows
    streamed = {
        name: values if name == "y" else Streamed(values.shape, values.dtype, partial(blocks, values))
        for name, values in extras.items()
    }
    pieces = memory.stream(valid, streamed, {"a": 1}, {"file": "x"})
    content = b"".join(map(bytes, pieces.pieces))
    assert content == part_bytes(rows, valid, extras, {"a": 1}, {"file": "x"})
    assert len(content) == len(pieces)


def test_streamed_texts_use_their_memory_once(tmp_path):
    n = 400
    text = b"x" * 10**5  # 40 MB in total
    valid = np.ones(n, bool)
    memory = PartMemory(n, 2)
    memory.features(n)[:] = feature_rows(n)
    tracemalloc.start()
    try:
        texts = Streamed((n,), np.dtype("O"), lambda: (np.full(10, text, object) for _ in range(n // 10)))
        pieces = memory.stream(valid, {"text": texts}, {}, {})
        with open(tmp_path / "part.h5", "wb") as file:
            for piece in pieces.pieces:
                file.write(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * n * len(text)
    with h5py.File(tmp_path / "part.h5") as part_file:
        assert all(found == text for found in part_file["text"][:])
        np.testing.assert_array_equal(part_file["features"], feature_rows(n))


def test_big_endian_and_strided_features_are_stored_equally():
    rows = feature_rows(4)
    expected = part_bytes(rows, np.ones(4, bool), {}, {})
    assert part_bytes(rows.astype(">f4"), np.ones(4, bool), {}, {}) == expected
    assert part_bytes(np.repeat(rows, 2, axis=1)[:, ::2], np.ones(4, bool), {}, {}) == expected


def test_equal_content_gives_equal_bytes():
    assert part(3, extras=EXTRAS, attributes={"a": 1}) == part(3, extras=EXTRAS, attributes={"a": 1})


def test_attributes_describe_how_a_part_was_made(tmp_path):
    attributes = {"text": "größe\n", "number": 3, "share": 0.5, "nested": {"a": [1, None]}, "long": "x" * 10**6}
    (tmp_path / "part.h5").write_bytes(part(3, attributes=attributes))
    with h5py.File(tmp_path / "part.h5") as file:
        found = dict(file.attrs)
    assert json.loads(found.pop("source")) == {}
    assert found == {**attributes, "nested": '{"a": [1, null]}', "format": "shardpress-features/1"}


def test_an_attribute_names_the_source_of_a_part():
    name = os.fsdecode(b"\xff")
    sources = [
        {"path": "größe/0.h5", "n_rows": 3, "share": 0.5, "none": None, "is": True, "nested": {"a": [1, 2, 3]}},
        {"path": name + "\\udcff.h5", "dataset": "a\0b"},
        {"path": name * 4096, "dataset": name * 4096},
        *({"path": "x" * n} for n in range(240, 260)),  # lengths around the padded length
    ]
    for source in sources:
        with h5py.File(io.BytesIO(part_bytes(feature_rows(3), np.ones(3, bool), {}, {}, source))) as file:
            assert json.loads(file.attrs["source"]) == source
            kind = h5py.h5a.open(file.id, b"source").get_type()
        assert (kind.get_strpad(), kind.get_cset()) == (h5py.h5t.STR_NULLTERM, h5py.h5t.CSET_UTF8)


def test_a_long_source_name_is_reduced_to_its_end():
    names = {"dataset": "x" * 10**6 + "end", "path": "0.h5"}
    with h5py.File(io.BytesIO(part_bytes(feature_rows(3), np.ones(3, bool), {}, {}, names))) as file:
        found = json.loads(file.attrs["source"])
    assert names["dataset"].endswith(found["dataset"])
    assert found["dataset"].endswith("end")
    assert found["path"] == "0.h5"


def test_reused_memory_gives_the_same_file_as_fresh_memory():
    """The result does not depend on what earlier parts left in memory, or how much their extras needed."""
    for sizes in ((100, 7), (7, 100), (100, 100), (1, 100, 0, 3)):
        memory = PartMemory(max(sizes), 2)
        for i, size in enumerate(sizes):
            features = feature_rows(size, first=i)
            valid = np.arange(size) % 3 > 0
            extras = {"y": valid}
            if i == 0:
                extras = {"y": np.arange(size), "text": np.array([b"x" * 5000] * size, object)}
            memory.features(size)[:] = features
            found = bytes(memory.file(valid, extras, {}, {"i": i}))
            assert found == part_bytes(features, valid, extras, {}, {"i": i}), f"part {i} of {sizes}"
            with h5py.File(io.BytesIO(found)) as file:
                assert_same_datasets(
                    {key: file[key][()] for key in ("features", "valid")}, {"features": features, "valid": valid}
                )
                assert set(file) == {"features", "valid", *extras}
                assert size == 0 or file["features"].id.get_offset() % 4096 == 0


NUMBERS = {name: values for name, values in EXTRAS.items() if values.dtype != object}
ASCII = np.dtype("S2", metadata={"h5py_encoding": "ascii"})


@pytest.mark.parametrize(
    "extras",
    [{}, NUMBERS, EXTRAS, {"source": np.arange(3), "format": np.ones(3)}, {"wide": np.arange(6.0).reshape(3, 2)}],
    ids=["no extras", "numbers", "texts", "called like attributes", "arrays"],
)
def test_parts_equal_the_files_that_hdf5_writes(extras):
    attributes = {"share": 0.5, "is": True, "nested": {"a": [1, 2, 3]}}
    memory = PartMemory(4, 2)
    sources = [{"path": path, "n_rows": n} for path in ("größe/0.h5", "x" * 300, "b") for n in (3, -(2**63), 2**64)]
    for i, source in enumerate(sources):
        part_extras = {name: np.roll(values, i, axis=0) for name, values in extras.items()}
        if i == 3 and "code" in part_extras:
            part_extras["code"] = part_extras["code"].astype(ASCII)
        features = feature_rows(3, first=i)
        valid = np.arange(3) % 2 == i % 2
        memory.features(3)[:] = features
        text = json.dumps(source, ensure_ascii=False).encode()
        padded = text.ljust(256 * (len(text) // 256 + 1), b"\0")
        numbers, texts = ({n: v for n, v in part_extras.items() if v.dtype.hasobject == has} for has in (False, True))
        expected = written_by_hdf5({"features": features, "valid": valid, **numbers}, texts, attributes, padded)
        found = bytes(memory.file(valid, part_extras, attributes, source))
        assert found == expected, f"part {i}"
        with h5py.File(io.BytesIO(found)) as file:
            assert_same_datasets({name: file[name][()] for name in part_extras}, part_extras)


def test_unsupported_text_is_an_error_in_every_part():
    memory = PartMemory(3, 2)
    for _ in range(2):
        memory.file(np.ones(3, bool), {}, {}, {})
        with pytest.raises(ValueError, match="NULL"):
            memory.file(np.ones(3, bool), {"text": np.array([b"", b"a\0b", b""], object)}, {}, {})


def test_only_the_first_of_similar_parts_is_laid_out_by_hdf5(monkeypatch):
    layouts = []
    memory = PartMemory(4, 2)  # created first, because it can be the first of the process, which causes one more layout
    monkeypatch.setattr(module, "lay_out", lambda *arguments: layouts.append(1) or lay_out(*arguments))
    for i in range(5):
        memory.file(np.ones(3, bool), {"y": np.arange(3)}, {}, {"n_rows": 10**i, "path": f"größe/{'x' * i}.h5"})
    assert len(layouts) == 1


def test_layouts_of_a_few_sizes_are_kept(monkeypatch):
    expected = {n: part_bytes(feature_rows(n), np.arange(n) > 0, {}, {}, {}) for n in (1, 3, 4)}
    layouts = []
    monkeypatch.setattr(module, "_MOST_TEMPLATES", 2)
    memory = PartMemory(4, 2)
    monkeypatch.setattr(module, "lay_out", lambda *arguments: layouts.append(1) or lay_out(*arguments))
    for sizes, n_layouts in (((3, 4, 3, 4), 2), ((1,), 3), ((1, 3), 4), ((4, 3), 6)):
        for n_rows in sizes:
            memory.features(n_rows)[:] = feature_rows(n_rows)
            assert bytes(memory.file(np.arange(n_rows) > 0, {}, {}, {})) == expected[n_rows]
        assert len(layouts) == n_layouts, sizes


def test_texts_are_copied_rarely_and_never_kept():
    texts = {"text": np.array([b"x" * 10000] * 1000, object)}
    memory = PartMemory(1000, 2)
    tracemalloc.start()
    try:
        n_bytes = len(memory.file(np.ones(1000, bool), texts, {}, {}))
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 1.1 * n_bytes, current
    assert peak < 3.2 * n_bytes, peak


@pytest.mark.parametrize("n_rows", [0, 3])
def test_shapes_of_a_part_are_known_without_reading_it(n_rows):
    state = h5py.enum_dtype({"on": 1, "off": 0}, "i2")
    dtypes = {"valid": "i8", "wide": np.dtype(("f4", (3, 2))), "state": state, "ascii": ASCII, "text": "O", "is": "?"}
    arrays = {name: np.zeros(n_rows, dtype) for name, dtype in dtypes.items()} | {
        name: values[:n_rows] for name, values in EXTRAS.items()
    }
    arrays["text"][:] = b""
    stored = shapes_in(part(n_rows, extras=arrays))
    found = part_shapes(n_rows, 2, extras_of(arrays))
    assert found == stored
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
        declared = part_shapes(n, 2, shard.extras)
        shapes = shapes_in(part(n, extras=found))
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
    codes = Extra("features", np.dtype("i1"), categories=("a", "b"))
    memory = PartMemory(3, 2, [codes, Extra("source_features", np.dtype(int))])
    memory.features(3)[:] = 0
    extras = {"features": np.array([0, 1, -1], "i1"), "source_features": np.arange(3)}
    (tmp_path / "0.h5").write_bytes(memory.file(np.ones(3, bool), extras, {}, {}))
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
