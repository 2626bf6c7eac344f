"""Tests of `open_features`: lazy arrays equal the parts, and a part that does not match the index is an error."""

import os
import shutil
from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.records import Generation
from shardpress.result import Result
from tests.support.helpers import numbered, refused, write_shard
from tests.support.hostilemodels import edit_json, forge
from tests.support.logged import mentions
from tests.support.parts import EXTRAS, assert_same_datasets, feature_rows, finished, finished_parts, part, part_paths


@pytest.fixture
def output(tmp_path):
    return partial(finished, tmp_path / "out")


@pytest.mark.process
def test_opened_features_equal_the_parts_for_any_blocks(output):
    directory = output(3, 4)
    for block_rows in (1, 2, 7, 8, 100):
        found = open_features(directory, block_rows)
        assert (found.features.shape, found.features.dtype, found.valid.dtype) == ((7, 2), np.float32, bool)
        assert max(found.features.chunks[0]) <= block_rows
        assert (found.manifest["n_rows"], found.manifest["n_bad"]) == (7, 2)
        np.testing.assert_array_equal(found.features, feature_rows(7), err_msg=f"blocks of {block_rows}")
        np.testing.assert_array_equal(found.valid, np.arange(7) % 5 != 1)
        assert_same_datasets(found.extras, {"y": np.arange(7)})


def test_an_unfinished_directory_is_refused(output, tmp_path):
    directory = output(3)
    (directory / "index.h5").unlink()
    for path in (directory, tmp_path / "nowhere"):
        with refused(66, str(path)):
            open_features(path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "without features"])
def test_a_damaged_part_is_refused_by_name(output, damage):
    directory = output(3, 4)
    path = part_paths(directory)[1]
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_bytes(b"text")
    else:
        write_shard(path, numbered(4))
    with refused(65, f"file={path}", "index"):
        open_features(directory)


def test_objects_in_place_of_datasets_are_refused_by_name(output):
    directory = output(3, 4)
    path = part_paths(directory)[1]
    whole = path.read_bytes()
    for name in ("features", "valid"):
        for thing in (None, 3.0, h5py.Empty("f4")):
            path.write_bytes(whole)
            with h5py.File(path, "a") as file:
                del file[name]
                file.create_group(name) if thing is None else file.__setitem__(name, thing)
            with refused(65, str(path)):
                pytest.fail(f"{name} is {thing!r}, and opens: {open_features(directory)}")


def test_datasets_without_a_value_for_each_row_are_not_opened(output):
    directory = output(3, 4)
    for path in (directory / "parts").iterdir():
        with h5py.File(path, "a") as file:
            file.create_group("group")
            file["type"] = np.dtype("f4")
            file["scalar"] = 3
            file["none"] = h5py.Empty("f4")
            file["two"] = np.ones(2)
    for path in (directory, part_paths(directory)[0]):
        assert set(open_features(path).extras) == {"y"}, path


def test_an_index_without_its_parts_is_refused(output, tmp_path):
    directory = output(3, 4)
    (directory / "parts").rename(tmp_path / "elsewhere")
    copy = tmp_path / "copy.h5"
    copy.write_bytes((directory / "index.h5").read_bytes())
    for path in (directory, directory / "index.h5", copy):
        with refused(65, "part-", "parts/", "directory"):
            open_features(path)


def test_texts_are_opened_as_str(output):
    found = open_features(output(3, extras={0: EXTRAS})).extras
    assert {name: found[name].compute().tolist() for name in ("code", "name")} == {
        "code": ["a", "bc", ""],
        "name": ["one", "zwölf", ""],
    }
    assert found["name"].dtype == found["code"].dtype == object


def test_the_index_can_be_opened_like_its_directory(output):
    np.testing.assert_array_equal(open_features(output(3, 4) / "index.h5").features, feature_rows(7))


def test_features_can_be_opened_while_their_files_are_open(output):
    directory = output(3)
    with h5py.File(part_paths(directory)[0]), h5py.File(directory / "index.h5"):
        np.testing.assert_array_equal(open_features(directory / "index.h5").features, feature_rows(3))


def test_a_part_with_another_number_of_rows_is_refused(output):
    directory = output(3, 4)
    path = part_paths(directory)[1]
    for n_rows in (3, 5):
        path.write_bytes(part(n_rows))
        with refused(65, str(path), f"{n_rows} rows, expected 4"):
            open_features(directory)


def test_computed_features_leave_no_file_open(output):
    open_features(output(3, 4)).features.compute()
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0


# -- dead rows ---------------------------------------------------------------------------------------------------------


def part_of(n_rows, first):
    extras = {"y": np.arange(first, first + n_rows), "name": np.array([f"{i}" for i in range(n_rows)], object)}
    return n_rows, part(n_rows, first, extras)


PARTS = [part_of(9, 0), part_of(6, 9), part_of(8, 15)]
USED = {0: [(0, 2), (2, 3), (5, 6), (6, 9)], 1: [(1, 4)], 2: [(0, 3), (4, 5), (5, 8)]}
# The position in the result and the number of the append of each of these ranges. Ranges 2 and 3 follow each other in
# their part and in the result.
ORDER = [2, 6, 3, 4, 0, 1, 7, 5]
APPENDS = [0, 2, 0, 1, 0, 2, 2, 1]


def scattered(directory):
    """Write a result with dead rows and ranges in any order. Return the numbers of its rows and of their appends."""
    earlier = finished_parts(directory, PARTS[:2], used={0: [(0, 9)], 1: [(2, 4)]})
    shutil.copy(earlier / "index.h5", earlier / "generation-1.h5")
    kept = [Generation(1, "a" * 64, 11, "b" * 64)]
    appends = [{"id": 1}, {"id": 2}]
    finished_parts(directory, PARTS, used=USED, generation=2, generations=kept, appends=appends)
    ranges = [(9 * (i > 0) + 6 * (i > 1) + start, stop - start) for i in USED for start, stop in USED[i]]
    positions = iter(zip(ORDER, APPENDS, strict=True))

    def rearrange(parts):
        for each in parts:
            for rows in each["ranges"]:
                rows["shard"], rows["append_id"] = next(positions)

    def resize(shards):
        for position, (_, n_rows) in zip(ORDER, ranges, strict=True):
            shards[position]["shape"][0] = n_rows

    def change(run):
        edit_json(run, "parts", rearrange)
        edit_json(run, "shards", resize)

    forge(directory / "index.h5", change, "shardpress/run")
    rows = []
    numbers = []
    for i in np.argsort(ORDER):
        first, n_rows = ranges[i]
        rows += range(first, first + n_rows)
        numbers += [APPENDS[i]] * n_rows
    return np.array(rows), np.array(numbers)


def assert_rows(found, rows):
    n_rows = max(rows) + 1
    np.testing.assert_array_equal(found.features, feature_rows(n_rows)[rows])
    np.testing.assert_array_equal(found.valid, rows % 5 != 1)
    np.testing.assert_array_equal(found.extras["y"], rows)
    assert found.manifest["n_rows"] == len(rows)


@pytest.mark.process
@pytest.mark.parametrize("block_rows", [1, 2, 3, 100])
def test_ranges_of_parts_are_opened_in_their_order(tmp_path, block_rows):
    rows, numbers = scattered(tmp_path / "out")
    found = open_features(tmp_path / "out", block_rows)
    assert_rows(found, rows)
    np.testing.assert_array_equal(found.extras["append_id"], numbers)
    assert max(found.features.chunks[0]) <= block_rows
    for appends in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        found = open_features(tmp_path / "out", block_rows, appends=appends)
        is_selected = np.isin(numbers, appends)
        assert_rows(found, rows[is_selected])
        np.testing.assert_array_equal(found.extras["append_id"], numbers[is_selected])
    assert_rows(open_features(tmp_path / "out", block_rows, generation=1), np.r_[0:9, 11:13])


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_part_with_dead_rows_is_refused_by_name(tmp_path, damage):
    scattered(tmp_path / "out")
    damaged = Result.open(tmp_path / "out").parts[1]
    path = tmp_path / "out" / damaged.file
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    for selection in ({}, {"appends": damaged.ranges[0].append_id}, {"generation": 1}):
        with refused(65, f"file={path}", "index"):
            open_features(tmp_path / "out", **selection)
    assert len(open_features(tmp_path / "out", appends=2).features) > 0, "no row is in the damaged part"


def test_the_repr_describes_the_features(output):
    texts = {i: {"name": np.array([b"a"] * (3 + i), object)} for i in range(2)}
    description = repr(open_features(output(3, 4, extras=texts)))
    assert mentions(description, "Features", "7 rows x 2 features", "name (str)", "y (int64)")


def test_a_file_without_features_is_refused_by_name(tmp_path):
    path = tmp_path / "x.h5"
    for content in (b"text", b"text" * 100):
        path.write_bytes(content)
        with refused(65, f"file={path}: "):
            open_features(path)
