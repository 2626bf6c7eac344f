"""A part's file: valid input again, ready to be mapped, and the one that HDF5 itself would write."""

import io
import os

import h5py
import numpy as np
import pytest

from pipeline.encoding import partfile as module
from pipeline.encoding.partfile import PartMemory, part_bytes
from pipeline.encoding.template import Skeleton
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read, read_riders
from pipeline.shards.shard import Block
from tests.support.helpers import names, numbered, write_shard
from tests.support.parts import RIDERS, feature_rows, part, same


@pytest.mark.parametrize(("n_rows", "n_features"), [(1, 1), (3, 2), (1023, 1), (1024, 1), (1025, 1), (3000, 64)])
def test_features_can_be_mapped_from_the_file(tmp_path, n_rows, n_features):
    path = tmp_path / "part.h5"
    path.write_bytes(part(n_rows, n_features=n_features, about={"long": "x" * 5000}))
    with h5py.File(path) as file:
        features = file["features"]
        offset = features.id.get_offset()
        assert (features.dtype.str, features.chunks, features.compression) == ("<f4", None, None)
    assert offset % 4096 == 0
    mapped = np.memmap(path, "<f4", "r", offset, (n_rows, n_features))
    np.testing.assert_array_equal(mapped, feature_rows(n_rows, n_features=n_features))


def test_a_part_is_a_valid_input_shard_and_its_riders_ride_on(tmp_path):
    path = tmp_path / "part.h5"
    path.write_bytes(part(3, riders=RIDERS))
    (shard,) = open_shards([str(path)])
    assert (shard.dataset, shard.shape, shard.dtype) == ("features", (3, 2), "float32")
    assert set(names(shard)) == {"valid", *RIDERS}
    np.testing.assert_array_equal(read(Block(shard, 0, 3)), feature_rows(3))
    same(read_riders(Block(shard, 0, 3)), {**RIDERS, "valid": [True, False, True]})


def test_big_endian_and_strided_features_are_stored_alike():
    rows = feature_rows(4)
    expected = part_bytes(rows, np.ones(4, bool), {}, {})
    assert part_bytes(rows.astype(">f4"), np.ones(4, bool), {}, {}) == expected
    assert part_bytes(np.repeat(rows, 2, axis=1)[:, ::2], np.ones(4, bool), {}, {}) == expected


def test_equal_content_gives_equal_bytes():
    assert part(3, riders=RIDERS, about={"a": 1}) == part(3, riders=RIDERS, about={"a": 1})


def test_attributes_say_where_a_part_comes_from(tmp_path):
    about = {"text": "größe\n", "number": 3, "share": 0.5, "nested": {"a": [1, None]}, "long": "x" * 10**6}
    (tmp_path / "part.h5").write_bytes(part(3, about=about))
    with h5py.File(tmp_path / "part.h5") as file:
        found = dict(file.attrs)
    assert found == {**about, "nested": '{"a": [1, null]}', "format": "shardpress-features/1"}


def test_a_path_that_is_not_utf8_can_be_an_attribute():
    part(3, about={"source_path": os.fsdecode(b"\xff.h5")})


@pytest.mark.parametrize("sizes", [(100, 7), (7, 100), (100, 100), (1, 100, 0, 3)])
def test_memory_that_is_used_again_gives_the_file_that_fresh_memory_gives(sizes):
    """Whatever earlier parts have left in it, and however much their riders needed."""
    memory = PartMemory(max(sizes), 2)
    for i, size in enumerate(sizes):
        features, valid = feature_rows(size, first=i), np.arange(size) % 3 > 0
        riders = {"y": np.arange(size), "text": np.array([b"x" * 5000] * size, object)} if i == 0 else {"y": valid}
        memory.features(size)[:] = features
        found = bytes(memory.file(valid, riders, {"i": i}))
        assert found == part_bytes(features, valid, riders, {"i": i})
        with h5py.File(io.BytesIO(found)) as file:
            same({key: file[key][()] for key in ("features", "valid")}, {"features": features, "valid": valid})
            assert set(file) == {"features", "valid", *riders}
            assert size == 0 or file["features"].id.get_offset() % 4096 == 0


NUMBERS = {name: values for name, values in RIDERS.items() if values.dtype != object}


ABOUT = {"source_path": "größe/0.h5", "n_rows": 3, "share": 0.5, "short": "x", "is": True, "nested": {"a": [1, 2, 3]}}


@pytest.mark.parametrize(
    "others",
    [
        [{}, {}],
        [{"source_path": "breite/1.h5"}, {"n_rows": -(2**63)}, {"n_rows": 2**63 - 1, "nested": {"a": [4, 5, 6]}}],
        [{"source_path": "longer/than/before.h5"}, {"source_path": "short.h5"}, {"source_path": ""}],
        [{"source_path": "\x01000000\x02\x01000000\x02"[:12]}, {"share": 0.25}, {"is": False}, {"short": "y"}],
        [{"more": 1}, {}],
        [{"n_rows": 0.5}, {"n_rows": 2**63}, {"n_rows": "three hundred"}],
    ],
    ids=["same", "values", "lengths", "what is no mark", "names", "types"],
)
@pytest.mark.parametrize(
    "riders",
    [{}, NUMBERS, RIDERS, {"source_path": np.arange(3), "format": np.ones(3)}],
    ids=["no riders", "numbers", "texts", "called like attributes"],
)
def test_a_part_like_the_last_one_is_the_file_that_hdf5_writes(riders, others, monkeypatch):
    """HDF5 is asked for the first of them only, and for every one without skeletons."""

    def files():
        memory = PartMemory(4, 2)
        for i, other in enumerate([{}, *others, {}]):
            memory.features(3)[:] = feature_rows(3, first=i)
            beside = {name: np.roll(values, i) for name, values in riders.items()}
            yield bytes(memory.file(np.arange(3) % 2 == i % 2, beside, {**ABOUT, **other}))

    found = list(files())
    with monkeypatch.context() as context:
        context.setattr(module, "skeleton_of", lambda *_: None)
        assert found == list(files())
    with h5py.File(io.BytesIO(found[1])) as file:
        about = {**ABOUT, **others[0]}
        assert {key: file.attrs[key] for key in about if key not in ("nested", "source_path")} == {
            key: value for key, value in about.items() if key not in ("nested", "source_path")
        }
        same({key: file[key][()] for key in riders}, {name: np.roll(values, 1) for name, values in riders.items()})


def test_what_hdf5_cannot_store_is_an_error_in_a_later_part_too():
    memory = PartMemory(3, 2)
    for _ in range(2):
        memory.file(np.ones(3, bool), {}, {"source_path": "a name of 9"})
        with pytest.raises(ValueError, match="NULL"):
            memory.file(np.ones(3, bool), {}, {"source_path": "a name\0of 9"})


def test_of_parts_that_differ_in_values_hdf5_writes_the_first(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "write_attributes", lambda file, about: asked.append(1))
    monkeypatch.setattr(module, "skeleton_of", lambda content, *_: Skeleton(len(content), (), {}, {}))
    memory = PartMemory(4, 2)
    for i in range(5):
        memory.file(np.ones(3, bool), {"y": np.arange(3)}, {**ABOUT, "n_rows": i, "source_path": f"größe/{i}.h5"})
    assert len(asked) == 1


def test_riders_called_like_our_datasets_get_another_name(tmp_path):
    (tmp_path / "part.h5").write_bytes(part(3, riders={"features": np.arange(3), "valid": np.arange(3)}))
    with h5py.File(tmp_path / "part.h5") as file:
        assert set(file) == {"features", "valid", "source_features", "source_valid"}
        np.testing.assert_array_equal(file["features"], feature_rows(3))
        np.testing.assert_array_equal(file["source_valid"], np.arange(3))


def test_categories_are_called_like_the_codes_whatever_these_are_called(tmp_path):
    memory = PartMemory(3, 2, categories={"features": ["a", "b"]})
    memory.features(3)[:] = 0
    riders = {"features": np.array([0, 1, -1], "i1"), "source_features": np.arange(3)}
    (tmp_path / "0.h5").write_bytes(memory.file(np.ones(3, bool), riders, {}))
    with h5py.File(tmp_path / "0.h5") as file:
        (name,) = file["__categories"]
        assert file[name][:].tolist() == [0, 1, -1]


def test_features_of_features_of_features_can_be_made(tmp_path):
    path = tmp_path / "part.h5"
    path.write_bytes(part(3))
    for _ in range(3):
        (shard,) = open_shards([str(path)])
        path.write_bytes(part(3, riders=read_riders(Block(shard, 0, 3))))


def test_a_part_with_a_rider_called_x_is_a_valid_input_shard(tmp_path):
    (tmp_path / "part.h5").write_bytes(part(3, riders={"X": np.arange(3)}))
    assert open_shards([str(tmp_path / "part.h5")])[0].dataset == "features"


@pytest.mark.parametrize("kind", ["ragged", "reference"])
def test_whatever_rides_along_can_be_written(tmp_path, kind):
    """A rider that cannot be copied must be left out when the shards are vetted, not end the run after the training."""
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with h5py.File(path, "a") as file:
        dtype = h5py.ref_dtype if kind == "reference" else h5py.vlen_dtype(np.int32)
        odd = file.create_dataset("odd", (3,), dtype=dtype)
        odd[:] = [file["X"].ref] * 3 if kind == "reference" else np.array([[1], [2, 3], [4]], dtype=object)
    (shard,) = open_shards([path])
    part(3, riders=read_riders(Block(shard, 0, 3)))
