"""Tests of malicious files with links, excessive sizes or forged data: refused by name, and no other file is opened."""

import struct
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child import ask
from shardpress.hdf5.limits import MOST_TEXT_BYTES
from shardpress.hdf5.shard import Block
from shardpress.shards.inspect import inspect_files
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from shardpress.shards.vet import Selection
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, refused, whole, write_shard

pytestmark = pytest.mark.process

# -- links to other files ---------------------------------------------------------------------------------------------


def linked(folder, secret, place="dataset"):
    """Write a file whose dataset, or a group on its path, is in another file, or whose dataset is a soft link."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        if place == "dataset":
            file["X"] = h5py.ExternalLink(secret, "/X")
        elif place == "group":
            file["g"] = h5py.ExternalLink(secret, "/group")
        elif place == "deeper":
            file["deep/er"] = h5py.ExternalLink(secret, "/")
        else:
            file["rows"] = hostile.ROWS
            file["X"] = h5py.SoftLink("/rows")
    return path


def external_storage(folder, target):
    """Write a dataset whose bytes are in another file."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", (6, 2), "u1", external=[(target, 0, 12)])
    return path


def virtual(folder, target, unlimited=False):
    """Write a virtual dataset over another file."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((6, 2), "<i4", maxshape=(None, 2) if unlimited else None)
        source = h5py.VirtualSource(target, "X", (6, 2), maxshape=(None, 2) if unlimited else None)
        if unlimited:
            layout[: h5py.h5s.UNLIMITED :, :] = source[: h5py.h5s.UNLIMITED :, :]
        else:
            layout[:] = source
        file.create_virtual_dataset("X", layout)
    return path


def master(folder, secret, is_virtual):
    """Write a master file. Its only own array, a mask, is not the rows."""
    with h5py.File(folder / "x.h5", "w") as file:
        file["entry/mask"] = np.zeros((2, 2), "u4")
        if is_virtual:
            layout = h5py.VirtualLayout((6, 2), "<i4")
            layout[:] = h5py.VirtualSource(secret, "X", (6, 2))
            file.create_virtual_dataset("entry/data", layout)
        else:
            file["entry/data/data_0"] = h5py.ExternalLink(secret, "/X")
    return folder / "x.h5"


@each(
    "write, requested, phrase",
    [
        (linked, "X", "external link"),
        (partial(linked, place="group"), "g/X", "external link"),
        (partial(linked, place="deeper"), "/deep/er/group/X", "external link"),
        (partial(linked, place="same file"), "X", "soft link"),
        (external_storage, "X", "external storage"),
        (virtual, "X", "virtual dataset"),
        # HDF5 must open the sources of an unlimited virtual dataset to determine even its shape.
        (partial(virtual, unlimited=True), "X", "virtual dataset"),
        (partial(master, is_virtual=False), "entry/data/data_0", "external link"),
        (partial(master, is_virtual=True), "entry/data", "virtual dataset"),
    ],
)
def test_rows_in_other_files_are_refused_without_opening_these(tmp_path, write, requested, phrase):
    secret = hostile.secret(tmp_path)
    path = write(tmp_path, secret)
    with hostile.opens(secret) as counts:
        with refused(65, f"file={path} dataset={requested}", phrase):
            open_shards([str(path)], requested)
        with refused(65, f"file={path}"):
            open_shards([str(path)])
        assert inspect_files([str(path)], Selection(None)).refused
    assert counts == [0]


def test_extras_in_another_file_are_left_out(tmp_path, caplog):
    secret = hostile.secret(tmp_path)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["X"] = hostile.ROWS
        file["y"] = h5py.ExternalLink(secret, "/y")
    with hostile.opens(secret) as counts:
        (shard,) = open_shards([str(path)])
        assert read_extras(Block(shard, 0, 6)) == {}
    assert counts == [0]
    assert "dataset=y: " in caplog.text


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


def test_too_long_texts_are_left_out(tmp_path, caplog):
    texts = np.array([b"short", b"x" * (MOST_TEXT_BYTES + 1), b""], object)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(3), extras={"text": texts, "y": range(3)})])
    assert names(shard) == ("y",)
    assert "dataset=text: " in caplog.text


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
    assert read_extras(Block(shard, 0, 60))["text"].tolist() == texts.tolist()
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


def endless_chunk_index(folder):
    """Write a chunk tree whose first node is its own right neighbour."""
    path = plain(folder, chunks=(1, 2))
    content = path.read_bytes()
    node = next(i for i in range(len(content)) if content[i : i + 5] == b"TREE\1")
    nowhere = b"\xff" * 8
    assert content[node + 8 : node + 24] == nowhere * 2
    path.write_bytes(content[: node + 16] + struct.pack("<Q", node) + content[node + 24 :])
    return path


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
    with h5py.File(plain(tmp_path)) as file:
        offset = file["X"].id.get_offset()
    path = moved(tmp_path, offset + shift, "y")
    with refused(65, f"file={path}", "overlap"):
        open_shards([str(path)])


def test_two_names_of_one_dataset_do_not_overlap(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4), extras={"y": range(4)})
    with h5py.File(path, "a") as file:
        file["label"] = file["y"]
    (shard,) = open_shards([path])
    assert names(shard) == ("label", "y")
    assert read_extras(Block(shard, 1, 3))["label"].tolist() == [1, 2]


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
    (shard,) = open_shards([str(endless_chunk_index(tmp_path))])
    np.testing.assert_array_equal(whole(shard), hostile.ROWS)


def test_index_of_more_chunks_than_bytes_is_refused(tmp_path):
    """In 22 kB, three levels of nodes with 64 entries each lead to chunks outside the dataset."""
    path = shared_chunk_nodes(tmp_path, 6)
    assert path.stat().st_size < 23_000
    with refused(65, f"file={path} dataset=X", "chunks"):
        open_shards([str(path)])
