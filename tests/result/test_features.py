"""Tests of `open_features`: lazy arrays equal the parts, and a part that does not match the index is an error."""

import os
import shutil
from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.result.facts import Append
from shardpress.result.features import open_features
from shardpress.result.finished import Result
from shardpress.result.records import Generation
from tests.support.helpers import numbered, refused, write_shard
from tests.support.hostilemodels import edit_json, forge
from tests.support.parts import EXTRAS, feature_rows, finished, finished_parts, part, part_paths


@pytest.fixture
def output(tmp_path):
    return partial(finished, tmp_path / "out")


def test_paths_without_features_are_refused(output, tmp_path):
    directory = output(3, 4)
    index = directory / "index.h5"
    copy = tmp_path / "copy.h5"
    copy.write_bytes(index.read_bytes())
    (directory / "parts").rename(tmp_path / "elsewhere")
    for path in (directory, index, copy):
        with refused(65, "part-", "parts/", "directory"):
            open_features(path)
    index.unlink()
    with refused(66, str(directory)):
        open_features(directory)
    copy.write_bytes(b"text")
    with refused(65, f"file={copy}: "):
        open_features(copy)


def replaced(name, thing):
    """Return a function that replaces a dataset of a file."""

    def replace(path):
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = thing

    return replace


DAMAGES = {
    "missing": os.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": lambda path: path.write_bytes(b"text"),
    "without features": lambda path: write_shard(path, numbered(4)),
    "a scalar": replaced("features", 3.0),
    "nothing": replaced("features", h5py.Empty("f4")),
    "too many rows": lambda path: path.write_bytes(part(5)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_refused_by_name(output, damage):
    directory = output(3, 4)
    path = part_paths(directory)[1]
    DAMAGES[damage](path)
    with refused(65, str(path)):
        open_features(directory)


def test_extras_have_a_value_for_each_row_and_texts_are_str(output):
    directory = output(3, extras={0: EXTRAS})
    (path,) = part_paths(directory)
    with h5py.File(path, "a") as file:
        file.create_group("group")
        file["type"] = np.dtype("f4")
        file["scalar"] = 3
        file["none"] = h5py.Empty("f4")
        file["two"] = np.ones(2)
    for opened in (open_features(directory), open_features(path)):
        found = opened.extras
        assert set(found) == {"y", *EXTRAS}
        assert found["code"].compute().tolist() == ["a", "bc", ""]
        assert found["name"].compute().tolist() == ["one", "zwölf", ""]
        assert found["name"].dtype == found["code"].dtype == object


# -- dead rows ---------------------------------------------------------------------------------------------------------


def part_of(n_rows, first):
    extras = {"y": np.arange(first, first + n_rows), "name": np.array([f"{i}" for i in range(n_rows)], object)}
    return n_rows, part(n_rows, first, extras)


PARTS = [part_of(9, 0), part_of(6, 9), part_of(8, 15)]
USED = {0: [(0, 2), (2, 3), (5, 6), (6, 9)], 1: [(1, 4)], 2: [(0, 3), (4, 5), (5, 8)]}
# The position in the result and the number of the append of each of these ranges. Ranges 2 and 3 follow each other in
# their part and in the result. Ranges 5 and 6 do so in the result; a dead row is between them in their part.
ORDER = [7, 6, 3, 4, 0, 1, 2, 5]
APPENDS = [0, 2, 0, 1, 0, 2, 2, 1]


def scattered(directory):
    """Write a result with dead rows and ranges in any order. Return the numbers of its rows and of their appends."""
    earlier = finished_parts(directory, PARTS[:2], used={0: [(0, 9)], 1: [(2, 4)]})
    shutil.copy(earlier / "index.h5", earlier / "generation-1.h5")
    kept = [Generation(1, "a" * 64, 11, Result.open(earlier).digest)]
    appends = [Append(1, 0, 0, 1, number, None) for number in (1, 2)]
    finished_parts(directory, PARTS, used=USED, generation=2, generations=kept, appends=appends)
    ranges = [(9 * (i > 0) + 6 * (i > 1) + start, stop - start) for i in USED for start, stop in USED[i]]

    def rearrange(shards):
        shards[:] = [shards[i] for i in np.argsort(ORDER)]
        for i, position in enumerate(ORDER):
            shards[position]["append_id"] = APPENDS[i]

    def change(run):
        edit_json(run, "shards", rearrange)

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
    assert found.manifest["n_bad"] == np.count_nonzero(rows % 5 == 1)


@pytest.mark.process
def test_ranges_of_parts_are_opened_in_their_order(tmp_path):
    rows, numbers = scattered(tmp_path / "out")
    for block_rows in (2, 100):
        found = open_features(tmp_path / "out", block_rows)
        assert_rows(found, rows)
        np.testing.assert_array_equal(found.extras["append_id"], numbers)
        assert max(found.features.chunks[0]) <= block_rows
        for appends in ([0], [2], [0, 2], [1, 2]):
            found = open_features(tmp_path / "out", block_rows, appends=appends)
            is_selected = np.isin(numbers, appends)
            assert_rows(found, rows[is_selected])
            np.testing.assert_array_equal(found.extras["append_id"], numbers[is_selected])
        assert_rows(open_features(tmp_path / "out", block_rows, generation=1), np.r_[0:9, 11:13])
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0


def test_a_damaged_part_is_refused_by_its_selections_only(tmp_path):
    scattered(tmp_path / "out")
    result = Result.open(tmp_path / "out")
    damaged = result.parts[1]
    (tmp_path / "out" / damaged.file).unlink()
    for selection in ({}, {"appends": result.by_id[damaged.ranges[0].shard].append_id}, {"generation": 1}):
        with refused(65, f"file={tmp_path / 'out' / damaged.file}", "index"):
            open_features(tmp_path / "out", **selection)
    assert len(open_features(tmp_path / "out", appends=2).features) > 0, "no row is in the damaged part"
