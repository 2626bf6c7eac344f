"""Feature shards: valid input again, ready to be mapped, and refused when they are not what the manifest says."""

import io
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import features as module
from pipeline.encoding.template import Skeleton
from pipeline.features import PartMemory, index_bytes, open_features, part_bytes
from pipeline.output.lock import locked
from pipeline.shards.open import Block, open_shards, read, read_riders
from tests.support.helpers import names, numbered, refused, write_shard

RIDERS = {
    "y": np.array([3, 1, 2], np.uint8),
    "weight": np.array([0.5, np.nan, 1], ">f8"),
    "code": np.array([b"a", b"bc", b""], "S2"),
    "name": np.array([b"one", "zwölf".encode(), b""], object),
}


def feature_rows(n_rows, first=0, n_features=2):
    return numbered(n_rows, n_features, first, np.float32)


def part(n_rows=3, first=0, riders=None, about=None, **how):
    valid = np.arange(first, first + n_rows) % 5 != 1
    return part_bytes(feature_rows(n_rows, first, **how), valid, riders or {}, about or {})


@pytest.fixture
def output(tmp_path):
    """Make a finished output directory with parts of these sizes, a rider called y in each."""

    def make(*sizes, riders=None):
        directory = tmp_path / "out"
        with locked(directory) as ledger:
            lines = []
            for i, size in enumerate(sizes):
                first = sum(sizes[:i])
                beside = {"y": np.arange(first, first + size), **(riders or {}).get(i, {})}
                lines.append({"file": f"parts/part-{i:05d}.h5", "n_rows": size})
                ledger.replace(lines[-1]["file"], part(size, first, beside))
            ledger.replace("index.h5", index_bytes(directory, [line["file"] for line in lines], {}))
            ledger.finish({}, {"parts": lines})
        return directory

    return make


def same(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)


# -- one part ----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(module, "_write_attributes", lambda file, about: asked.append(1))
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


# -- the index ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1,), (3, 4), (2, 1, 5)])
def test_the_index_is_all_parts_one_after_the_other(output, tmp_path, monkeypatch, sizes):
    n_rows = sum(sizes)
    directory = output(*sizes).rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for path in (directory / "index.h5", "moved/index.h5"):
        with h5py.File(path) as file:
            expected = {"features": feature_rows(n_rows), "valid": np.arange(n_rows) % 5 != 1, "y": np.arange(n_rows)}
            same({name: item[:] for name, item in file.items()}, expected)


def test_the_index_stands_for_its_parts_as_input(output):
    shards = open_shards([str(output(3, 4) / "index.h5")])
    assert {(shard.dataset, names(shard)) for shard in shards} == {("features", ("valid", "y"))}
    found = np.concatenate([read(Block(shard, 0, shard.n_rows)) for shard in shards])
    np.testing.assert_array_equal(found, feature_rows(7))


def test_riders_of_every_kind_stand_in_the_index(output):
    with h5py.File(output(3, riders={0: RIDERS}) / "index.h5") as file:
        same({name: file[name][:] for name in RIDERS}, RIDERS)


@pytest.mark.parametrize("name", ["50%", "a%b", "%%", "with space", "größe"])
def test_riders_may_have_any_name(output, name):
    beside = {i: {name: np.full(2, i)} for i in range(2)}
    with h5py.File(output(2, 2, riders=beside) / "index.h5") as file:
        assert file[name][:].tolist() == [0, 0, 1, 1]


def test_riders_that_not_every_part_has_alike_stay_in_the_parts(output):
    beside = {0: {"some": np.arange(2), "odd": np.zeros(2, "f4")}, 1: {"odd": np.zeros(3, "f8")}}
    directory = output(2, 3, riders=beside)
    with h5py.File(directory / "index.h5") as file:
        assert set(file) == {"features", "valid", "y"}
    with h5py.File(directory / "parts/part-00000.h5") as file:
        assert set(file) == {"features", "valid", "y", "some", "odd"}


def test_an_index_without_its_parts_gives_nothing_that_could_be_taken_for_data(output, tmp_path):
    beside = {"i": np.ones(3, "i2"), "u": np.ones(3, ">u4"), "f": np.ones(3, "f2"), "is": np.ones(3, bool), **RIDERS}
    alone = (output(3, riders={0: beside}) / "index.h5").rename(tmp_path / "alone.h5")
    with h5py.File(alone) as file:
        np.testing.assert_array_equal(file["features"], np.full((3, 2), np.nan))
        assert {name: file[name][:].tolist() for name in ("valid", "i", "u", "is", "y", "code", "name")} == {
            "valid": [False] * 3,
            "i": [-(2**15)] * 3,
            "u": [2**32 - 1] * 3,
            "is": [False] * 3,
            "y": [255] * 3,
            "code": [b""] * 3,
            "name": [b""] * 3,
        }
        assert np.isnan(file["f"]).all()
        assert np.isnan(file["weight"]).all()
        for item in (file, *file.values()):
            assert "copy the whole directory" in item.attrs["view"]


# -- downstream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [1, 2, 7, 8, 100])
def test_opened_features_equal_the_parts_for_any_blocks(output, block_rows):
    found = open_features(output(3, 4), block_rows)
    assert (found.features.shape, found.features.dtype, found.valid.dtype) == ((7, 2), np.float32, bool)
    assert max(found.features.chunks[0]) <= block_rows
    assert [part["n_rows"] for part in found.manifest["parts"]] == [3, 4]
    np.testing.assert_array_equal(found.features, feature_rows(7))
    np.testing.assert_array_equal(found.valid, np.arange(7) % 5 != 1)
    same(found.riders, {"y": np.arange(7)})


def test_riders_that_not_every_part_has_are_not_opened(output):
    assert set(open_features(output(2, 3, riders={0: {"some": np.arange(2)}})).riders) == {"y"}


def test_an_unfinished_directory_is_refused(output, tmp_path):
    directory = output(3)
    (directory / "manifest.json").unlink()
    for path in (directory, tmp_path / "nowhere"):
        with refused(66, str(path), "expected the output directory of a finished run"):
            open_features(path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "without features"])
def test_a_part_that_is_not_whole_is_refused_by_name(output, damage):
    directory = output(3, 4)
    path = directory / "parts/part-00001.h5"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_bytes(b"text")
    else:
        write_shard(path, numbered(4))
    with refused(65, str(path), "the manifest names it"):
        open_features(directory)


def test_an_index_that_was_copied_alone_is_refused_with_what_to_copy(output, tmp_path):
    directory = output(3, 4)
    with refused(65, "part-00000.h5: the manifest names it, but it is not there. Copy the whole directory"):
        (directory / "parts").rename(tmp_path / "elsewhere")
        open_features(directory / "index.h5")
    alone = (directory / "index.h5").rename(tmp_path / "alone.h5")
    with refused(
        65,
        f"file={alone}: holds no values, since the parts that it is a view of are missing",
        "Copy the whole directory",
    ):
        open_features(alone)


@pytest.mark.parametrize("content", ["text", "no features", "a group"])
def test_a_file_without_features_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.h5"
    if content == "text":
        path.write_bytes(b"text")
    else:
        with h5py.File(path, "w") as file:
            file.create_group("features" if content == "a group" else "X")
    with refused(65, f"file={path}: holds no features that can be read"):
        open_features(path)


def test_texts_that_rode_along_come_as_str(output):
    found = open_features(output(3, riders={0: RIDERS})).riders
    assert {name: found[name].compute().tolist() for name in ("code", "name")} == {
        "code": ["a", "bc", ""],
        "name": ["one", "zwölf", ""],
    }
    assert found["name"].dtype == found["code"].dtype == object


def test_what_was_opened_says_in_a_line_what_it_is(output):
    texts = {i: {"name": np.array([b"a"] * (3 + i), object)} for i in range(2)}
    assert repr(open_features(output(3, 4, riders=texts))) == (
        "<Features: 7 rows x 2 features, unknown how many bad rows; riding along: name (str), y (int64)>"
    )


def test_the_rows_that_count_have_a_known_number(output):
    found = open_features(output(3, 4), 2)
    good = found.features[found.valid].compute_chunk_sizes()
    assert good.shape == (5, 2)


def test_the_index_stands_for_its_directory(output):
    np.testing.assert_array_equal(open_features(output(3, 4) / "index.h5").features, feature_rows(7))


def test_features_open_while_the_same_process_holds_files_with_their_locks(output):
    directory = output(3)
    with h5py.File(directory / "parts/part-00000.h5"), h5py.File(directory / "index.h5"):
        np.testing.assert_array_equal(open_features(directory / "index.h5").features, feature_rows(3))


def test_a_part_with_other_rows_than_the_manifest_says_is_refused(output):
    directory = output(3, 4)
    path = directory / "parts/part-00001.h5"
    path.write_bytes(part(3))
    with refused(65, str(path), "3 rows, expected 4 as the manifest says"):
        open_features(directory)


@pytest.mark.parametrize("manifest", [{}, {"parts": []}, {"parts": [1]}, {"parts": [{"n_rows": 3}]}], ids=str)
def test_a_manifest_without_parts_is_refused(tmp_path, manifest):
    with locked(tmp_path) as ledger:
        ledger.finish({}, manifest)
    with refused(65, str(tmp_path)):
        open_features(tmp_path)


def test_opening_leaves_no_file_open(output):
    open_features(output(3, 4)).features.compute()
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0


def test_names_of_directories_may_be_strings(output):
    assert open_features(str(Path(output(3)))).features.shape == (3, 2)


def test_an_index_over_parts_in_which_nothing_rides_needs_no_look_into_them(tmp_path):
    sizes = {"a.h5": 3, "b.h5": 0, "c.h5": 2}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(part(size))
    known = index_bytes(tmp_path, list(sizes), {"a": 1}, [(size, 2) for size in sizes.values()])
    assert known == index_bytes(tmp_path, list(sizes), {"a": 1})
