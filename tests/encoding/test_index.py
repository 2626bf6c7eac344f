"""Tests of the index: it shows all parts as one file, and is not mistaken for data if parts are missing."""

from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.encoding import index
from shardpress.encoding.index import index_files
from shardpress.encoding.partfile import PartMemory, part_shapes, stored_categories
from shardpress.formats import missing_value
from shardpress.output.records import is_left
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Extra
from tests.support.helpers import names
from tests.support.parts import EXTRAS, assert_same_datasets, feature_rows, finished, index_of


@pytest.fixture(params=[1000, 2], ids=["a view of parts", "a view of views"])
def output(tmp_path, request):
    return partial(finished, tmp_path / "out", most=request.param)


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
                assert_same_datasets({name: item[:] for name, item in file.items()}, expected)


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
        assert set(file) == {"features", "valid", "y"}
    with h5py.File(directory / "parts/part-00000.h5") as file:
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
        for item in (file, *file.values()):
            assert "directory" in item.attrs["view"]


def test_an_index_opens_no_part(tmp_path, monkeypatch):
    sizes = {"a.h5": 3, "b.h5": 0, "c.h5": 2}
    extras = [Extra("y", np.dtype(int)), Extra("cell", np.dtype("i1"), categories=("größe", "b"))]
    memory = PartMemory(3, 2, extras)

    def viewed(name):
        return f"parts/{name}", dict(sorted(part_shapes(sizes[name], 2, extras).items()))  # sorted as by HDF5

    for most in (3, 2):
        monkeypatch.setattr(index, "_MOST_PARTS", most)
        found = dict(index_files(list(sizes), viewed, stored_categories(extras), {"a": 1}))
        (tmp_path / "parts").mkdir(exist_ok=True)
        for name, size in sizes.items():
            part_extras = {"y": np.arange(size), "cell": np.zeros(size, "i1")}
            (tmp_path / "parts" / name).write_bytes(memory.file(np.ones(size, bool), part_extras, {}, {}))
        assert found["index.h5"] == index_of(tmp_path, [f"parts/{name}" for name in sizes], {"a": 1}, most)
        assert all((tmp_path / name).read_bytes() == data for name, data in found.items())


def test_views_of_many_parts_are_made_one_at_a_time(monkeypatch):
    """HDF5 takes 20 kB for each part of a view: 2 GB for 100,000 parts. An index can contain views of views."""
    monkeypatch.setattr(index, "_MOST_PARTS", 10)
    requested = []

    def viewed(i):
        requested.append(i)
        return f"parts/part-{i:032x}.h5", part_shapes(2, 2, ())

    files = index_files(range(95), viewed, {}, {})
    made_files = [next(files)]
    assert requested == [*range(10)]
    made_files += files
    assert [name for name, _ in made_files][-1] == "index.h5"
    assert len(set(made_files)) == len(dict(made_files)) == 11
    assert all(is_left(name) for name, _ in made_files[:-1]), "unreferenced files that are removed"
    again = index_files(range(85), viewed, {}, {})
    assert set(again) & set(made_files) == set(made_files[:8]), "equal parts have equal views"


def test_a_view_of_views_loses_only_rows_of_missing_parts(tmp_path):
    directory = finished(tmp_path / "out", 2, 2, 2, 2, 2, most=2)
    (directory / "parts/part-00002.h5").unlink()
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
    parts = list(enumerate(lengths))

    def viewed(part):
        number, n_rows = part
        return f"parts/{number}.h5", part_shapes(n_rows, 2, (), np.dtype("float32"))

    append_ids = list(zip(numbers, lengths, strict=True))
    (data,) = dict(index_files(parts, viewed, {}, {}, append_ids=append_ids)).values()
    with h5py.File.in_memory(data) as index:
        dataset = index["append_id"]
        np.testing.assert_array_equal(dataset[()], np.repeat(numbers, lengths))
        assert dataset.id.get_num_chunks() == n_stored  # chunks of zeros take no time and no space
