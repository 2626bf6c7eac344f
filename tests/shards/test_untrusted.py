"""Tests of malicious files with links, excessive sizes or forged data: refused by name, and no other file is opened."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child import ask, places
from shardpress.hdf5.child.describe import describe
from shardpress.hdf5.shard import Block
from shardpress.shards import vet
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support import hostile
from tests.support.cases import case
from tests.support.helpers import names, numbered, refused, write_shard

pytestmark = pytest.mark.process

# -- links to other files ---------------------------------------------------------------------------------------------


def test_watch_notices_that_the_secret_is_opened(tmp_path):
    secret = hostile.secret(tmp_path)
    path, name = hostile.external_link(tmp_path, secret, "group")
    with hostile.opens(secret) as counts, h5py.File(path) as file:
        assert file[name].shape == (6, 2)
    assert counts[0] > 0


@pytest.mark.process
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("place", ["dataset", "group", "deeper"])
def test_external_links_are_refused(tmp_path, place, is_named):
    secret = hostile.secret(tmp_path)
    path, name = hostile.external_link(tmp_path, secret, place)
    with hostile.opens(secret) as counts:
        if is_named or place == "dataset":
            with refused(65, f"file={path} dataset={name}", "external link", str(secret)):
                open_shards([str(path)], name if is_named else None)
        else:
            with refused(65, f"file={path}", "--dataset" if place == "group" else "dataset="):
                open_shards([str(path)])
    assert counts == [0]


def test_extras_in_another_file_are_left_out(tmp_path, caplog):
    secret = hostile.secret(tmp_path)
    with hostile.opens(secret) as counts:
        (shard,) = open_shards([str(hostile.external_extra(tmp_path, secret))])
        assert read_extras(Block(shard, 0, 6)) == {}
    assert counts == [0]
    assert "dataset=y: " in caplog.text


@pytest.mark.parametrize("target", ["/rows", "/X", "/nowhere", "."])
def test_soft_links_are_refused(tmp_path, target):
    path = hostile.soft_link(tmp_path, target)
    with refused(65, f"file={path} dataset=X", "soft link", f": {target})"):
        open_shards([str(path)])
    assert open_shards([str(path)], "rows")[0].shape == (6, 2)


def test_external_storage_is_refused(tmp_path):
    secret = hostile.secret(tmp_path)
    path = hostile.external_storage(tmp_path, secret)
    with hostile.opens(secret) as counts, refused(65, f"file={path} dataset=X", "external storage"):
        open_shards([str(path)])
    assert counts == [0]


@pytest.mark.parametrize("unlimited", [True, False])
def test_virtual_datasets_are_refused(tmp_path, unlimited):
    """HDF5 must open the sources of an unlimited virtual dataset to determine even its shape."""
    secret = hostile.secret(tmp_path)
    path = hostile.virtual(tmp_path, secret, unlimited)
    with hostile.opens(secret) as counts:
        with refused(65, f"file={path} dataset=X", "virtual dataset"):
            open_shards([str(path)], "X")
        with refused(65, f"file={path} dataset=X", "virtual dataset"):
            open_shards([str(path)])
    assert counts == [0]


# -- excessive sizes --------------------------------------------------------------------------------------------------


def test_claimed_shape_without_data_is_refused(tmp_path):
    for shape, options, phrase in [
        ((2**50, 16), {}, "never written"),
        ((2**50, 16), {"chunks": (2**10, 16), "compression": "gzip"}, "at most 4194304"),
        ((2**62, 3), {"chunks": (2**10, 3), "maxshape": (None, 3)}, "at most 4194304"),
        ((4, 2**40), {"chunks": (1, 2**20)}, "never written"),
        ((2, 2**20), {"chunks": (2, 2**20), "compression": "gzip"}, "never written"),
    ]:
        with case(shape, options, phrase):
            path = hostile.declared(tmp_path, shape, **options)
            assert path.stat().st_size < 10_000
            with refused(65, f"file={path} dataset=X", phrase):
                open_shards([str(path)])


def test_large_chunks_are_refused(tmp_path):
    for n_bytes in [2**26 + 4, 2**32 - 16]:
        with case(n_bytes):
            path = hostile.declared(tmp_path, (2, n_bytes // 4), chunks=(1, n_bytes // 4), compression="gzip")
            with refused(65, f"file={path} dataset=X", f"chunks of {n_bytes} bytes", "67108864", "h5repack"):
                open_shards([str(path)])


def test_unwritten_rows_are_an_error(tmp_path):
    for options in [{"chunks": (2, 2)}, {"chunks": (2, 2), "compression": "gzip"}, {}]:
        with case(options):
            path = tmp_path / "x.h5"
            with h5py.File(path, "w") as file:
                dataset = file.create_dataset("X", (10, 2), "f4", **options)
                if options:
                    dataset[:6] = 1
            with refused(65, f"file={path} dataset=X", "never written"):
                open_shards([str(path)])


def test_unwritten_labels_are_left_out(tmp_path, caplog):
    path = write_shard(tmp_path / "x.h5", numbered(4))
    with h5py.File(path, "a") as file:
        file.create_dataset("y", (4,), "i4")
    assert names(open_shards([path])[0]) == ()
    assert f"file={path} dataset=y: shape (4,)" in caplog.text
    assert "16 bytes" in caplog.text


def test_shards_without_rows_are_accepted_in_any_storage(tmp_path):
    for i, options in enumerate(
        ({}, {"chunks": (2, 2), "compression": "gzip", "maxshape": (None, 2)}, {"maxshape": (9, 9)})
    ):
        write_shard(tmp_path / f"{i}.h5", numbered(0), extras={"y": np.arange(0)}, **options)
    write_shard(tmp_path / "9.h5", numbered(2), extras={"y": np.arange(2)})
    shards = open_shards([str(tmp_path)])
    assert [shard.n_rows for shard in shards] == [0, 0, 0, 2]
    assert read(Block(shards[0], 0, 0)).shape == read(Block(shards[1], 0, 0)).shape == (0, 2)
    assert read_extras(Block(shards[0], 0, 0))["y"].shape == (0,)


def test_extras_that_decompress_to_too_much_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_EXPANSION_FLOOR", 1000)
    monkeypatch.setattr(places, "_MOST_EXPANSION", 10)
    path = write_shard(tmp_path / "x.h5", numbered(2000))
    with h5py.File(path, "a") as file:
        file.create_dataset("zeros", data=np.zeros(2000), chunks=(1000,), compression="gzip")
    with h5py.File(path) as file:
        found = describe(file.id, None)
    assert found.extras == ()
    (left_out,) = found.left_out
    assert left_out.name == "zeros"
    assert "16000" in left_out.reason


@pytest.mark.parametrize("options", [{}, {"chunks": (7,), "compression": "gzip", "maxshape": (None,)}])
def test_longest_texts_are_measured(tmp_path, options):
    texts = [b"x" * n for n in range(3000)]
    path = write_shard(tmp_path / "x.h5", numbered(3000))
    with h5py.File(path, "a") as file:
        file.create_dataset("text", data=np.array(texts, object), dtype=h5py.string_dtype(), **options)
    (extra,) = open_shards([path])[0].extras
    assert extra.layout.longest == 2999
    assert extra.text_bytes == -(-sum(range(2048, 3000)) // 1024)


@pytest.mark.parametrize("limit", [9, 10])
def test_too_long_texts_are_left_out(tmp_path, monkeypatch, caplog, limit):
    monkeypatch.setattr(vet, "MOST_TEXT_BYTES", limit)
    text = np.array([b"short", b"ten  bytes", b""], object)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(3), extras={"text": text, "y": range(3)})])
    assert names(shard) == (("text", "y") if limit == 10 else ("y",))
    assert ("dataset=text: " in caplog.text) == (limit == 9)
    assert ("10 bytes" in caplog.text) == (limit == 9)
    np.testing.assert_array_equal(read(Block(shard, 0, 3)), numbered(3))


def test_long_texts_are_read_within_the_childs_memory(tmp_path):
    """The file has 200 MB of texts next to the rows; 1024 of them at once would be too much."""
    texts = [bytes([65 + i % 26]) * (2 * 10**6) for i in range(100)]
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(100), extras={"text": np.array(texts, object)})])
    found = read_extras(Block(shard, 0, 100))["text"]
    assert all(text == expected for text, expected in zip(found, texts, strict=True))


def test_extras_that_exceed_the_childs_memory_are_left_out(tmp_path, caplog):
    """The extra has 16 categories, and each of them is a text of 40 MB."""
    path = write_shard(tmp_path / "x.h5", numbered(6), extras={"y": range(6)})
    with h5py.File(path, "a") as file:
        file["__categories/y"] = np.array(["x" * (40 * 10**6)] * 16, object)
    (shard,) = open_shards([path])
    assert names(shard) == ()
    assert "y" in caplog.text
    np.testing.assert_array_equal(read(Block(shard, 0, 6)), numbered(6))


# -- invalid content --------------------------------------------------------------------------------------------------


def test_rows_at_forged_offsets_are_refused(tmp_path):
    for offset in [0, 8, 10**6, 2**40, 2**62, 2**63, 2**64 - 1]:
        with case(offset):
            path = hostile.moved(tmp_path, offset)
            with refused(65, f"file={path}"):
                open_shards([str(path)])


@pytest.mark.parametrize("offset", [0, 10**6, 2**40, 2**62, 2**63, 2**64 - 1])
def test_extras_at_forged_offsets_are_left_out(tmp_path, caplog, offset):
    path = hostile.moved(tmp_path, offset, "y")
    assert names(open_shards([str(path)])[0]) == ()
    assert f"file={path} dataset=y: " in caplog.text


def test_labels_in_the_superblock_are_left_out(tmp_path, caplog):
    path = hostile.moved(tmp_path, 8, "y")
    (shard,) = open_shards([str(path)])
    assert names(shard) == ()
    assert "dataset=y: " in caplog.text
    assert " 8:56" in caplog.text


def test_overlapping_datasets_are_refused(tmp_path):
    for shift in [-8, 0, 8, 40]:
        with case(shift):
            with h5py.File(hostile.plain(tmp_path)) as file:
                offset = file["X"].id.get_offset()
            path = hostile.moved(tmp_path, offset + shift, "y")
            with refused(65, f"file={path}", "overlap"):
                open_shards([str(path)])


def test_two_names_of_one_dataset_do_not_overlap(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4), extras={"y": range(4)})
    with h5py.File(path, "a") as file:
        file["label"] = file["y"]
    (shard,) = open_shards([path])
    assert names(shard) == ("label", "y")
    assert read_extras(Block(shard, 1, 3))["label"].tolist() == [1, 2]


def test_chunks_of_another_rank_are_refused(tmp_path):
    for rank in [0, 1, 2, 4, 5, 33, 34, 255]:
        with case(rank):
            path = hostile.of_another_chunk_rank(tmp_path, rank)
            with refused(65, f"file={path}"):
                open_shards([str(path)])


def test_chunks_of_an_impossible_shape_are_refused(tmp_path):
    for sizes in [(0, 2, 4), (3, 0, 4), (3, 2, 0), (3, 2, 8), (2**32 - 1, 2**32 - 1, 4), (1, 2, 4), (9, 9, 4)]:
        with case(sizes):
            path = hostile.with_chunks_of(tmp_path, *sizes)
            with refused(65, f"file={path}"):
                open_shards([str(path)])


def test_circular_index_nodes_are_not_followed(tmp_path):
    """`H5Oget_info` adds up the sizes of neighbouring nodes, endlessly if they form a circle (HDF5 2.0)."""
    (shard,) = open_shards([str(hostile.endless_chunk_index(tmp_path))])
    np.testing.assert_array_equal(read(Block(shard, 0, 6)), hostile.ROWS)


def test_index_of_more_chunks_than_bytes_is_refused(tmp_path):
    """In 22 kB, three levels of nodes with 64 entries each lead to chunks outside the dataset."""
    path = hostile.shared_chunk_nodes(tmp_path, 6)
    assert path.stat().st_size < 23_000
    with refused(65, f"file={path} dataset=X", "chunks"):
        open_shards([str(path)])


@pytest.mark.process
def test_index_without_chunks_is_stopped_by_the_time_limit(tmp_path, monkeypatch):
    """HDF5 visits all nodes of the index without a message."""
    monkeypatch.setattr(ask, "LIMITS", replace(ask.LIMITS, seconds=1))
    path = hostile.shared_chunk_nodes(tmp_path, 6, n_in_leaf=0)
    with refused(65, f"file={path}", "1 s"):
        open_shards([str(path)])


def test_endless_header_is_refused(tmp_path):
    path = hostile.endless_header(tmp_path)
    with refused(65, f"file={path}"):
        open_shards([str(path)])
