"""Tests of malicious files with excessive sizes or forged data, which are refused by name."""

import struct
from dataclasses import replace

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child import ask
from shardpress.hdf5.limits import LONGEST_TEXT
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, refused, whole, write_shard

pytestmark = pytest.mark.process

# -- excessive sizes --------------------------------------------------------------------------------------------------


@each(
    "shape, options, phrase",
    [
        ((2**50, 16), {}, "never written"),
        ((2**62, 3), {"chunks": (2**10, 3), "maxshape": (None, 3)}, "at most 4194304"),
        ((2, 2**24 + 1), {"chunks": (1, 2**24 + 1), "compression": "gzip"}, "67108864"),
    ],
)
def test_claimed_shape_without_data_is_refused(tmp_path, shape, options, phrase):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", shape, "f4", **options)
    assert path.stat().st_size < 10_000
    with refused(65, f"file={path} dataset=X", phrase):
        open_shards([str(path)])


def test_unwritten_rows_are_an_error(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", (10, 2), "f4", chunks=(2, 2))[:6] = 1
    with refused(65, f"file={path} dataset=X", "never written"):
        open_shards([str(path)])


@pytest.fixture
def little_memory(monkeypatch):
    """Give new children a quarter of the usual memory."""
    ask.retire()
    monkeypatch.setattr(ask, "LIMITS", replace(ask.LIMITS, memory=2**27))
    yield
    ask.retire()


def test_texts_exceed_the_memory_of_the_child_only_as_categories(tmp_path, little_memory):
    """Texts with one value for each row are read a few at a time."""
    texts = np.array([bytes([65 + i % 26]) * (2 * 10**6) for i in range(60)], object)
    path = write_shard(tmp_path / "x.h5", numbered(60), extras={"text": texts, "y": range(60)})
    (shard,) = open_shards([path])
    assert names(shard) == ("text", "y")
    assert read_extras(Block(shard, 0, 60))["text"].tolist() == [text[:LONGEST_TEXT] for text in texts]
    with h5py.File(path, "a") as file:
        file["__categories/y"] = file["text"]
    assert names(open_shards([path])[0]) == ("text",)


# -- invalid content --------------------------------------------------------------------------------------------------


def replace_bytes(path, found, replaced):
    path.write_bytes(hostile.edited(path.read_bytes(), found, replaced))
    return path


def plain(folder, **options):
    """Write a shard with labels in the oldest format, which has no checksums that an edit would break."""
    path = folder / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("X", data=hostile.ROWS, **options)
        file["y"] = np.arange(6, dtype="<i8")
    return path


def moved(folder, offset, name="X"):
    """Write contiguous rows, or labels, with a wrong address."""
    path = plain(folder)
    with h5py.File(path) as file:
        before = file[name].id.get_offset()
        size = file[name].id.get_storage_size()
    return replace_bytes(path, struct.pack("<QQ", before, size), struct.pack("<QQ", offset, size))


def shared_chunk_nodes(folder, n_levels):
    """Write a chunk tree with one node at each level. All 64 entries of the parent node point to it.

    The chunks are outside the dataset.
    """
    path = plain(folder, chunks=(1, 2))
    content = bytearray(path.read_bytes())
    leaf = content.index(b"TREE\1")
    content[leaf + 6 : leaf + 8] = struct.pack("<H", 6)  # chunks
    for i in range(6):
        content[leaf + 32 + 40 * i : leaf + 40 + 40 * i] = struct.pack("<Q", 1000 + i)
    top = leaf
    for level in range(1, n_levels + 1):
        node = struct.pack("<4sBBHQQ", b"TREE", 1, level, 64, 2**64 - 1, 2**64 - 1)
        key = bytes(32)
        node += (key + struct.pack("<Q", top)) * 64 + key
        top = len(content)
        content += node
    content[40:48] = struct.pack("<Q", len(content))  # end of the file
    at = content.index(struct.pack("<BBBQ", 3, 2, 3, leaf))
    content[at + 3 : at + 11] = struct.pack("<Q", top)
    path.write_bytes(content)
    return path


@each("offset", [0, 10**6, 2**62, 2**64 - 1])
def test_values_at_forged_offsets_are_refused_or_left_out(tmp_path, caplog, offset):
    path = moved(tmp_path, offset)
    with refused(65, f"file={path}"):
        open_shards([str(path)])
    caplog.clear()
    path = moved(tmp_path, offset, "y")
    assert names(open_shards([str(path)])[0]) == ()
    assert f"file={path} dataset=y: " in caplog.text


@each("shift", [-8, 8])
def test_overlapping_datasets_are_refused(tmp_path, shift):
    """Two names of one dataset do not overlap."""
    with h5py.File(plain(tmp_path), "a") as file:
        offset = file["X"].id.get_offset()
        file["label"] = file["y"]
    assert names(open_shards([str(tmp_path)])[0]) == ("label", "y")
    path = moved(tmp_path, offset + shift, "y")
    with refused(65, f"file={path}", "overlap"):
        open_shards([str(path)])


def test_chunks_of_an_impossible_shape_are_refused(tmp_path):
    """A header states the number of dimensions, including that of the element, or the sizes (CVE-2026-19025)."""
    for rank in [0, 2, 4, 255]:
        path = replace_bytes(
            plain(tmp_path, chunks=(3, 2)), struct.pack("<BBB", 3, 2, 3), struct.pack("<BBB", 3, 2, rank)
        )
        with case(rank), refused(65, f"file={path}"):
            open_shards([str(path)])
    for sizes in [(0, 2, 4), (3, 2, 0), (3, 2, 8), (2**32 - 1, 2**32 - 1, 4), (9, 9, 4)]:
        path = replace_bytes(plain(tmp_path, chunks=(3, 2)), struct.pack("<III", 3, 2, 4), struct.pack("<III", *sizes))
        with case(sizes), refused(65, f"file={path}"):
            open_shards([str(path)])


def test_chunks_at_forged_places_are_refused(tmp_path):
    path = plain(tmp_path, chunks=(3, 2))
    with h5py.File(path) as file:
        first, second = (file["X"].id.get_chunk_info(i).byte_offset for i in range(2))
    offsets_in_dataset = (3, 0, 0)
    entry = struct.pack("<IIQQQQ", 24, 0, *offsets_in_dataset, second)
    content = path.read_bytes()
    assert content.count(entry) == 1
    for size, place in [(24, 0), (24, 10**6), (24, 2**63 - 1), (24, first + 8), (23, second), (2**31, second)]:
        path.write_bytes(content.replace(entry, struct.pack("<IIQQQQ", size, 0, *offsets_in_dataset, place)))
        with case(size, place), refused(65, f"file={path}"):
            open_shards([str(path)])


def test_size_that_deflate_cannot_reach_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("X", (4096, 2**15), "i4", chunks=(1, 2**15), compression="gzip")
        for row in range(4096):
            dataset.id.write_direct_chunk((row, 0), b"x")
    with refused(65, f"file={path} dataset=X", f"{4096 * 2**17} bytes"):
        open_shards([str(path)])


def test_circular_index_nodes_are_not_followed(tmp_path):
    """`H5Oget_info` adds up the sizes of neighbouring nodes, endlessly if they form a circle (HDF5 2.0)."""
    path = plain(tmp_path, chunks=(1, 2))
    content = path.read_bytes()
    node = content.index(b"TREE\1")
    nowhere = b"\xff" * 8
    assert content[node + 8 : node + 24] == nowhere * 2
    # The first node is its own right neighbour.
    path.write_bytes(content[: node + 16] + struct.pack("<Q", node) + content[node + 24 :])
    (shard,) = open_shards([str(path)])
    np.testing.assert_array_equal(whole(shard), hostile.ROWS)


def test_index_of_more_chunks_than_bytes_is_refused(tmp_path):
    """In 22 kB, three levels of nodes with 64 entries each lead to chunks outside the dataset."""
    path = shared_chunk_nodes(tmp_path, 6)
    assert path.stat().st_size < 23_000
    with refused(65, f"file={path} dataset=X", "chunks"):
        open_shards([str(path)])
