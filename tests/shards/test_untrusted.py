"""Tests of malicious files with links, excessive sizes or forged data: refused by name, and no other file is opened."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child import ask
from shardpress.hdf5.limits import MOST_TEXT_BYTES
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, refused, whole, write_shard

pytestmark = pytest.mark.process

# -- links to other files ---------------------------------------------------------------------------------------------


@each("place", ["dataset", "group", "deeper"])
def test_external_links_are_refused(tmp_path, place):
    secret = hostile.secret(tmp_path)
    path, name = hostile.external_link(tmp_path, secret, place)
    with hostile.opens(secret) as counts:
        with refused(65, f"file={path} dataset={name}", "external link", str(secret)):
            open_shards([str(path)], name)
        with refused(65, f"file={path}"):
            open_shards([str(path)])
    assert counts == [0]


def test_extras_in_another_file_are_left_out(tmp_path, caplog):
    secret = hostile.secret(tmp_path)
    with hostile.opens(secret) as counts:
        (shard,) = open_shards([str(hostile.external_extra(tmp_path, secret))])
        assert read_extras(Block(shard, 0, 6)) == {}
    assert counts == [0]
    assert "dataset=y: " in caplog.text


@each("target", ["/rows", "/X", "/nowhere", "."])
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


@each("unlimited", [True, False])
def test_virtual_datasets_are_refused(tmp_path, unlimited):
    """HDF5 must open the sources of an unlimited virtual dataset to determine even its shape."""
    secret = hostile.secret(tmp_path)
    path = hostile.virtual(tmp_path, secret, unlimited)
    with hostile.opens(secret) as counts:
        for requested in ("X", None):
            with refused(65, f"file={path} dataset=X", "virtual dataset", "--input"):
                open_shards([str(path)], requested)
    assert counts == [0]


@pytest.mark.parametrize("kind", ["links", "virtual"])
def test_master_file_is_refused_and_its_mask_is_not_the_rows(tmp_path, kind):
    secret = hostile.secret(tmp_path)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        if kind == "links":
            file["entry/data/data_0"] = h5py.ExternalLink(secret, "/X")
        else:
            layout = h5py.VirtualLayout((6, 2), "<i4")
            layout[:] = h5py.VirtualSource(secret, "X", (6, 2))
            file.create_virtual_dataset("entry/data", layout)
        file["entry/mask"] = np.zeros((2, 2), "u4")
    with hostile.opens(secret) as counts, refused(65, "entry/mask (2, 2) uint32", "--dataset"):
        open_shards([str(tmp_path / "master.h5")])
    assert counts == [0]
    assert open_shards([str(tmp_path / "master.h5")], "entry/mask")[0].shape == (2, 2)


# -- excessive sizes --------------------------------------------------------------------------------------------------


@each(
    "shape, options, phrase",
    [
        ((2**50, 16), {}, "never written"),
        ((2**50, 16), {"chunks": (2**10, 16), "compression": "gzip"}, "at most 4194304"),
        ((2**62, 3), {"chunks": (2**10, 3), "maxshape": (None, 3)}, "at most 4194304"),
        ((4, 2**40), {"chunks": (1, 2**20)}, "never written"),
        ((2, 2**24 + 1), {"chunks": (1, 2**24 + 1), "compression": "gzip"}, "67108864"),
        ((2, 2**30 - 4), {"chunks": (1, 2**30 - 4), "compression": "gzip"}, "h5repack"),
    ],
)
def test_claimed_shape_without_data_is_refused(tmp_path, shape, options, phrase):
    path = hostile.declared(tmp_path, shape, **options)
    assert path.stat().st_size < 10_000
    with refused(65, f"file={path} dataset=X", phrase):
        open_shards([str(path)])


@each("options", [{"chunks": (2, 2)}, {"chunks": (2, 2), "compression": "gzip"}, {}])
def test_unwritten_rows_are_an_error(tmp_path, options):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("X", (10, 2), "f4", **options)
        if options:
            dataset[:6] = 1
    with refused(65, f"file={path} dataset=X", "never written"):
        open_shards([str(path)])


def test_shards_without_rows_are_accepted_in_any_storage(tmp_path):
    may_grow = {"chunks": (2, 2), "compression": "gzip", "maxshape": (None, 2)}
    for i, options in enumerate(({}, may_grow, {"maxshape": (9, 9)})):
        write_shard(tmp_path / f"{i}.h5", numbered(0), extras={"y": np.arange(0)}, **options)
    write_shard(tmp_path / "9.h5", numbered(2), extras={"y": np.arange(2)})
    shards = open_shards([str(tmp_path)])
    assert [whole(shard).shape for shard in shards] == [(0, 2), (0, 2), (0, 2), (2, 2)]
    assert read_extras(Block(shards[0], 0, 0))["y"].shape == (0,)


@each("options", [{}, {"chunks": (7,), "compression": "gzip", "maxshape": (None,)}])
def test_longest_texts_are_measured(tmp_path, options):
    texts = [b"x" * n for n in range(3000)]
    path = write_shard(tmp_path / "x.h5", numbered(3000))
    with h5py.File(path, "a") as file:
        file.create_dataset("text", data=np.array(texts, object), dtype=h5py.string_dtype(), **options)
    (extra,) = open_shards([path])[0].extras
    assert extra.layout.longest == 2999
    assert extra.text_bytes == -(-sum(range(2048, 3000)) // 1024)


def test_too_long_texts_are_left_out(tmp_path, caplog):
    texts = np.array([b"short", b"x" * (MOST_TEXT_BYTES + 1), b""], object)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(3), extras={"text": texts, "y": range(3)})])
    assert names(shard) == ("y",)
    assert "dataset=text: " in caplog.text


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
    np.testing.assert_array_equal(whole(shard), numbered(6))


# -- invalid content --------------------------------------------------------------------------------------------------


@each("offset", [0, 8, 10**6, 2**40, 2**62, 2**63, 2**64 - 1])
def test_values_at_forged_offsets_are_refused_or_left_out(tmp_path, caplog, offset):
    path = hostile.moved(tmp_path, offset)
    with refused(65, f"file={path}"):
        open_shards([str(path)])
    caplog.clear()
    path = hostile.moved(tmp_path, offset, "y")
    assert names(open_shards([str(path)])[0]) == ()
    assert f"file={path} dataset=y: " in caplog.text


@each("shift", [-8, 0, 8, 40])
def test_overlapping_datasets_are_refused(tmp_path, shift):
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


def test_chunks_of_an_impossible_shape_are_refused(tmp_path):
    for rank in [0, 1, 2, 4, 33, 255]:
        path = hostile.of_another_chunk_rank(tmp_path, rank)
        with case(rank), refused(65, f"file={path}"):
            open_shards([str(path)])
    for sizes in [(0, 2, 4), (3, 0, 4), (3, 2, 0), (3, 2, 8), (2**32 - 1, 2**32 - 1, 4), (1, 2, 4), (9, 9, 4)]:
        path = hostile.with_chunks_of(tmp_path, *sizes)
        with case(sizes), refused(65, f"file={path}"):
            open_shards([str(path)])


def test_circular_index_nodes_are_not_followed(tmp_path):
    """`H5Oget_info` adds up the sizes of neighbouring nodes, endlessly if they form a circle (HDF5 2.0)."""
    (shard,) = open_shards([str(hostile.endless_chunk_index(tmp_path))])
    np.testing.assert_array_equal(whole(shard), hostile.ROWS)


def test_index_of_more_chunks_than_bytes_is_refused(tmp_path):
    """In 22 kB, three levels of nodes with 64 entries each lead to chunks outside the dataset."""
    path = hostile.shared_chunk_nodes(tmp_path, 6)
    assert path.stat().st_size < 23_000
    with refused(65, f"file={path} dataset=X", "chunks"):
        open_shards([str(path)])


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
