"""Tests of the limits on the metadata that the child reads."""

import h5py
import pytest

from shardpress.hdf5 import limits
from shardpress.hdf5.child import describe, extras, find, layouts
from shardpress.shards.open import open_shards
from tests.support import hostile
from tests.support.helpers import numbered, refused, write_shard


@pytest.mark.parametrize("n_over", [0, 1])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_number_of_objects_is_bounded(tmp_path, monkeypatch, n_over, libver):
    monkeypatch.setattr(find, "MOST_OBJECTS", 50)
    with h5py.File(hostile.crowded(tmp_path, 48 + n_over, libver=libver)) as file:
        if n_over:
            with pytest.raises(find.Refused, match="50"):
                describe.describe(file.id, None)
        else:
            assert describe.describe(file.id, None).dataset == "X"


@pytest.mark.process
@pytest.mark.parametrize("depth", [1, 30, 31, 32, 33, 500])
def test_depth_of_searched_groups_is_bounded(tmp_path, depth):
    path = hostile.nested(tmp_path, depth)
    if depth < limits.MOST_DEPTH:
        (shard,) = open_shards([str(path)])
        assert shard.dataset == "g/" * depth + "rows"
    else:
        with refused(65, str(path), f"{limits.MOST_DEPTH}", "--dataset"):
            open_shards([str(path)])


@pytest.mark.process
def test_group_that_contains_itself_is_searched_once(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/rows"] = hostile.ROWS
        file["g/g"] = file["g"]
        file["g/up"] = file["/"]
        file["again"] = file["g/rows"]
    assert open_shards([str(path)])[0].dataset in ("again", "g/rows")


@pytest.mark.process
def test_a_hundred_thousand_objects_are_refused(tmp_path):
    path = hostile.crowded(tmp_path, limits.MOST_OBJECTS)
    with refused(65, str(path), "100000"):
        open_shards([str(path)])


@pytest.mark.process
def test_attributes_are_not_enumerated(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["X"] = hostile.ROWS
        for i in range(3000):
            file["X"].attrs[f"a{i}"] = "x" * 1000

    def refuse(*arguments, **named):
        raise AssertionError("attributes were enumerated")

    for name in ("open_by_idx", "get_num_attrs", "iterate"):
        monkeypatch.setattr(h5py.h5a, name, refuse, raising=False)
    with h5py.File(path) as file:
        assert describe.describe(file.id, None).columns.names == ()
    assert open_shards([str(path)])[0].shape == (6, 2)


def test_more_names_than_fit_in_the_file_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for group in ("a", "b", "c"):
            file[f"{group}/rows"] = hostile.ROWS  # one name in each group, and three in the root
    for most, fits in ((7, True), (5, False), (2, False)):
        monkeypatch.setattr(find, "_LEAST_ENTRY_BYTES", path.stat().st_size // most)
        with h5py.File(path) as file:
            if fits:
                assert len(list(find.objects(file.id))) == 6
            else:
                with pytest.raises(find.Refused, match="names"):
                    list(find.objects(file.id))


def test_too_many_chunks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "MOST_CHUNKS", 9)
    for n, fits in ((9, True), (10, False)):
        path = write_shard(tmp_path / "x.h5", numbered(n), chunks=(1, 2))
        with h5py.File(path) as file:
            rows = find.Dataset(file["X"].id)
            if fits:
                assert layouts.layout_of(rows, "X").index.shape == (3, 9)
                continue
            with pytest.raises(find.Refused, match="10 chunks, expected at most 9"):
                layouts.layout_of(rows, "X")


def test_only_the_first_of_too_many_extras_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "MAX_EXTRAS", 3)
    path = write_shard(tmp_path / "x.h5", numbered(2), extras={f"r{i}": range(2) for i in range(4)})
    with h5py.File(path) as file:
        found = describe.describe(file.id, None)
    assert [extra.name for extra in found.extras] == ["r0", "r1", "r2"]
    (left_out,) = found.left_out
    assert (left_out.name, left_out.is_missed) == ("r3", True)
    assert "3" in left_out.reason
