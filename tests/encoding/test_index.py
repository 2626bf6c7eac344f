"""Tests of the index: it shows all parts as one file, and is not mistaken for data if parts are missing."""

from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.encoding.index import in_views, write_index
from shardpress.encoding.partfile import part_shapes
from shardpress.features import open_features
from shardpress.formats import missing_value
from shardpress.output.files import is_ours
from shardpress.result import Result, Use
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from shardpress.shards.shard import Block
from tests.support.helpers import names
from tests.support.parts import EXTRAS, assert_same_datasets, feature_rows, finished, finished_parts, part, part_paths


@pytest.fixture(params=[1000, 2], ids=["a view of parts", "a view of views"])
def output(tmp_path, request):
    return partial(finished, tmp_path / "out", most=request.param)


def datasets_in(file):
    return {name: item for name, item in file.items() if isinstance(item, h5py.Dataset) and name != "use"}


@pytest.mark.process
def test_the_index_concatenates_all_parts(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for sizes in ((1,), (3, 4), (2, 1, 5), (2, 0, 5, 1, 1)):
        n_rows = sum(sizes)
        name = f"{len(sizes)} parts"
        directory = output(*sizes).rename(tmp_path / name)
        for path in (directory / "index.h5", f"{name}/index.h5"):
            with h5py.File(path) as file:
                valid = np.arange(n_rows) % 5 != 1
                expected = {"features": feature_rows(n_rows), "valid": valid, "y": np.arange(n_rows)}
                assert_same_datasets({name: item[:] for name, item in datasets_in(file).items()}, expected)


@pytest.mark.process
def test_the_index_can_be_used_as_input(output):
    shards = open_shards([str(output(3, 4) / "index.h5")])
    assert {(shard.dataset, names(shard)) for shard in shards} == {("features", ("valid", "y"))}
    found = np.concatenate([read(Block(shard, 0, shard.n_rows)) for shard in shards])
    np.testing.assert_array_equal(found, feature_rows(7))


def test_the_index_holds_extra_datasets_of_every_kind(output):
    with h5py.File(output(3, extras={0: EXTRAS}) / "index.h5") as file:
        assert_same_datasets({name: file[name][:] for name in EXTRAS}, EXTRAS)


def test_extra_datasets_can_have_any_name(output):
    names = ["50%", "a%b", "%%", "with space", "größe"]
    part_extras = {i: {name: np.full(2, i) for name in names} for i in range(2)}
    with h5py.File(output(2, 2, extras=part_extras) / "index.h5") as file:
        assert {name: file[name][:].tolist() for name in names} == {name: [0, 0, 1, 1] for name in names}


def test_the_index_omits_extras_that_differ_between_parts(output):
    part_extras = {0: {"some": np.arange(2), "odd": np.zeros(2, "f4")}, 1: {"odd": np.zeros(3, "f8")}}
    directory = output(2, 3, extras=part_extras)
    with h5py.File(directory / "index.h5") as file:
        assert set(datasets_in(file)) == {"features", "valid", "y"}
    with h5py.File(part_paths(directory)[0]) as file:
        assert set(file) == {"features", "valid", "y", "some", "odd"}


def test_an_index_without_its_parts_gives_only_fill_values(output, tmp_path):
    part_extras = {
        "i": np.ones(3, "i2"),
        "u": np.ones(3, ">u4"),
        "f": np.ones(3, "f2"),
        "is": np.ones(3, bool),
        **EXTRAS,
    }
    lone_index = (output(3, extras={0: part_extras}) / "index.h5").rename(tmp_path / "alone.h5")
    with h5py.File(lone_index) as file:
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
        for item in (file, *datasets_in(file).values()):
            assert "directory" in item.attrs["view"]


def test_equal_parts_have_equal_views():
    """A view that exists already is written again with the same name, and an unreferenced one can be removed."""
    files = [(f"parts/part-{i:032x}.h5", part_shapes(2, 2, ())) for i in range(2500)]
    views = [[], [], []]
    for found, n_parts in zip(views, (2500, 2001, 1000), strict=True):
        indexed = in_views(files[:n_parts], lambda name, data, found=found: found.append((name, data)))
        n_rows = [shapes["features"][0][0] for _, shapes in indexed]
        assert n_rows == {2500: [2000, 2000, 1000], 2001: [2000, 2000, 2], 1000: [2] * 1000}[n_parts]
    assert [len(each) for each in views] == [3, 3, 0]
    assert views[0][:2] == views[1][:2]
    assert views[0][2] != views[1][2]
    assert all(is_ours(name) for name, _ in views[0])


@pytest.mark.slow
@pytest.mark.parametrize("n_parts", [1000, 1001])
def test_a_result_of_very_many_parts_is_read(tmp_path, n_parts):
    directory = finished(tmp_path / "out", *[1] * n_parts)
    result = Result.open(directory, is_foreign=True)
    assert (len(result.parts), len(result.facts.views)) == (n_parts, 2 * (n_parts > 1000))
    with h5py.File(directory / "index.h5") as file:
        np.testing.assert_array_equal(file["features"][900:], feature_rows(n_parts - 900, 900))
    np.testing.assert_array_equal(open_features(directory).extras["y"][-3:], np.arange(n_parts)[-3:])


def test_a_view_of_views_loses_only_rows_of_missing_parts(tmp_path):
    directory = finished(tmp_path / "out", 2, 2, 2, 2, 2, most=2)
    part_paths(directory)[2].unlink()
    with h5py.File(directory / "index.h5") as file:
        assert np.isnan(file["features"][:]).any(axis=1).tolist() == [4 <= i < 6 for i in range(10)]
        assert file["y"][:].tolist() == [0, 1, 2, 3, *2 * [missing_value(np.dtype(int))], 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("numbers", "lengths", "n_stored"),
    [
        ([0, 0, 0, 1], [9, 3, 4, 1], 1),
        ([2, 0, 0, 2, 1], [3, 0, 21, 2, 7], 3),
        ([0, 0], [20, 5], 0),
        ([1, 2, 3], [1, 1, 1], 1),
    ],
    ids=["appended", "mixed", "none", "short"],
)
def test_the_index_tells_which_append_encoded_each_row(monkeypatch, numbers, lengths, n_stored):
    monkeypatch.setattr("shardpress.encoding.index._CHUNK_ROWS", 8)
    files = [(f"parts/{i}.h5", part_shapes(n_rows, 2, ())) for i, n_rows in enumerate(lengths)]
    with h5py.File.in_memory() as file:
        write_index(file, files, {}, np.zeros(sum(lengths), np.uint8), list(zip(numbers, lengths, strict=True)))
        dataset = file["append_id"]
        np.testing.assert_array_equal(dataset[()], np.repeat(numbers, lengths))
        assert dataset.id.get_num_chunks() == n_stored  # chunks of zeros take no time and no space


@pytest.mark.process
def test_the_index_holds_the_use_of_each_row_of_any_number(tmp_path):
    for n_rows in (1, 2**20 + 3):
        parts = [(n_rows, part(n_rows))] * 2
        directory = finished_parts(tmp_path / str(n_rows), parts, append_ids=[0, 1])
        result = Result.open(directory, is_foreign=True)
        np.testing.assert_array_equal(result.use(), np.repeat([Use.TRAINING, Use.LATER], n_rows))
        with h5py.File(directory / "index.h5") as file:
            assert file["use"].id.get_storage_size() < 5000  # a few bytes for each million of rows
