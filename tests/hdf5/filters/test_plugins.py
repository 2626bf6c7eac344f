"""Tests of all filters of HDF5 and hdf5plugin: values equal h5py's, and damaged chunks are refused.

Sample: 4 random files for each filter, and with TEST_CASES=all 60.
"""

import bz2

import h5py
import hdf5plugin
import numpy as np
import pytest

from shardpress.hdf5.child import ask
from shardpress.hdf5.shard import Block
from shardpress.shards import vet as vet_module
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case, sample
from tests.support.child import plant
from tests.support.filtered import WAYS, write_random
from tests.support.helpers import numbered, refused, whole, write_shard

pytestmark = pytest.mark.process

BZIP2 = hdf5plugin.BZip2()
BITSHUFFLE = hdf5plugin.Bitshuffle()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


def opened(path):
    (shard,) = open_shards([str(path)], "X")
    return shard


# -- equal to h5py -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_rows_with_every_filter_are_read_as_by_h5py(path, name):
    for seed in sample(range(60), 4):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            with h5py.File(path, "w", libver=("v108", "latest")) as file:
                write_random(file, "X", WAYS[name], rng)
                stored = file["X"][:]
            shard = opened(path)
            assert (shard.fields[0].layout.kind == "asked") == WAYS[name].is_by_child
            expected = stored.astype(shard.dtype)
            np.testing.assert_array_equal(whole(shard), expected)
            for block in Block(shard, 0, len(stored)).cut(int(rng.integers(1, len(stored) + 1))):
                assert read(block).tobytes() == expected[block.start : block.stop].tobytes()


def test_chunks_of_which_hdf5_lists_wrong_positions_are_read(path):
    rows = numbered(10, 6, dtype=np.int16)
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("X", data=rows, chunks=(4, 4), maxshape=(10, None), **BITSHUFFLE)
    np.testing.assert_array_equal(whole(opened(path)), rows)


# -- damaged chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [31, 2**24])
def test_chunk_of_another_size_is_refused_with_its_place(path, n_bytes):
    """libhdf5 would return other memory for a short chunk."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("X", data=numbered(8, 4, dtype=np.int16), chunks=(4, 4), **BZIP2)
        dataset.id.write_direct_chunk((4, 0), bz2.compress(bytes(n_bytes)))
    shard = opened(path)
    with refused(65, f"file={path} dataset=X rows=0:8 chunk=[4, 0]"):
        whole(shard)
    np.testing.assert_array_equal(read(Block(shard, 0, 4)), numbered(4, 4))


def test_short_chunk_with_texts_is_refused(path):
    write_shard(path, numbered(8))
    with h5py.File(path, "a") as file:
        texts = np.array([b"text"] * 8, object)
        dataset = file.create_dataset("text", data=texts, chunks=(4,), compression="gzip")
        dataset.id.write_direct_chunk((4,), dataset.id.read_direct_chunk((0,))[1][:-5] + bytes(5))
    with refused(65, "dataset=text", "gzip"):
        read_extras(Block(opened(path), 0, 8))


CRASHING = """
import os
from shardpress.hdf5.child import server
honest = server.chunks
def chunks(file, name, cells):
    if [1, 0] in cells:
        os.abort()
    return honest(file, name, cells)
server._FUNCTIONS["chunks"] = chunks
main = server.main
"""


def test_chunk_that_crashes_its_filter_is_named(path, tmp_path, fresh, monkeypatch):
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=numbered(8, 4), chunks=(2, 4), **BZIP2)
    plant(monkeypatch, tmp_path, CRASHING)
    shard = opened(path)
    with refused(65, "rows=0:8 chunk=[2, 0]", "signal 6"):
        whole(shard)
    np.testing.assert_array_equal(read(Block(shard, 4, 8)), numbered(4, 4, first=4))


# -- missing packages --------------------------------------------------------------------------------------------


def test_missing_package_is_named_if_no_other_can_be_used(path, tmp_path, fresh, monkeypatch):
    with h5py.File(path, "w") as file:
        write_random(file, "X", WAYS["zstd"], np.random.default_rng(0))
        stored = file["X"][:]
    for missing in (["zstandard"], ["zstandard", "hdf5plugin"]):
        ask.retire()
        vet_module._LIKE.clear()
        hidden = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n"
        plant(monkeypatch, tmp_path, f"{hidden}from shardpress.hdf5.child.server import main\n")
        if "hdf5plugin" in missing:
            with refused(65, str(path), "dataset=X", "pip install zstandard"):
                opened(path)
        else:
            np.testing.assert_array_equal(whole(opened(path)), stored)
