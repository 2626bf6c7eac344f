"""Tests of the limits on the metadata that the child reads."""

import struct

import h5py
import pytest

from shardpress.hdf5 import limits
from shardpress.hdf5.child import find
from shardpress.shards.open import open_shards
from tests.support import hostile
from tests.support.helpers import numbered, refused

pytestmark = pytest.mark.process


@pytest.mark.parametrize("depth", [31, 32])
def test_depth_of_searched_groups_is_bounded(tmp_path, depth):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/" * depth + "rows"] = hostile.ROWS
    if depth < limits.MOST_DEPTH:
        (shard,) = open_shards([str(path)])
        assert shard.dataset == "g/" * depth + "rows"
    else:
        with refused(65, str(path), f"{limits.MOST_DEPTH}", "--dataset"):
            open_shards([str(path)])


def test_group_that_contains_itself_is_searched_once(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/rows"] = hostile.ROWS
        file["g/g"] = file["g"]
        file["g/up"] = file["/"]
        file["again"] = file["g/rows"]
    assert open_shards([str(path)])[0].dataset in ("again", "g/rows")


def test_a_hundred_thousand_objects_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["X"] = hostile.ROWS
        small = h5py.h5g.create(file.id, b"small")
        for i in range(limits.MOST_OBJECTS):
            h5py.h5o.link(small, file.id, b"n%d" % i)
    with refused(65, str(path), f"{limits.MOST_OBJECTS}"):
        open_shards([str(path)])


def test_more_names_than_fit_in_the_file_are_refused(tmp_path, monkeypatch):
    """The nodes of an index may form a cycle."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for group in ("a", "b", "c"):
            file[f"{group}/rows"] = hostile.ROWS  # one name in each group, and three in the root
    for most in (5, 2):
        monkeypatch.setattr(find, "_LEAST_ENTRY_BYTES", path.stat().st_size // most)
        with h5py.File(path) as file, pytest.raises(find.Rejection, match="names"):
            list(find.objects(file.id))


def test_short_chunks_that_only_libhdf5_can_place_are_refused(tmp_path):
    """libhdf5 would fill their rows with bytes that it never wrote."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=numbered(4, 20), chunks=(4, 7), maxshape=(4, None))
    chunk_bytes = 4 * 7 * 8
    entry = struct.pack("<IIQQQ", chunk_bytes, 0, 0, 7, 0)  # size, filter mask, and offsets of the second chunk
    content = path.read_bytes()
    assert content.count(entry) == 1
    assert open_shards([str(path)])[0].fields[0].layout.kind == "asked"
    path.write_bytes(content.replace(entry, struct.pack("<I", 0) + entry[4:]))
    with refused(65, str(path), "X", "1 of 3 chunks"):
        open_shards([str(path)])
