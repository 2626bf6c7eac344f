"""Tests of the chunk cache: chunks larger than a block are read and decompressed once, as far as memory allows."""

from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from shardpress.hdf5.chunkcache import CHUNKS, _ChunkCache
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from shardpress.training.order import Order
from shardpress.training.rows import Reader, StreamedRows
from tests.support.cases import each
from tests.support.helpers import blocks, numbered, write_shard

N_ROWS = 100
N_INPUTS = 4096  # the cache keeps chunks of 1 MiB and more
ROWS = numbered(N_ROWS, N_INPUTS)
ALL = 4 * ROWS.nbytes


@pytest.fixture
def reads(monkeypatch):
    """Return the list of reads of stored chunks, with an empty cache."""
    offsets = []
    preadv = FILES.preadv

    def counting(descriptor, buffer, offset):
        offsets.append(offset)
        return preadv(descriptor, buffer, offset)

    monkeypatch.setattr(FILES, "preadv", counting)
    CHUNKS.resize(0)
    yield offsets
    CHUNKS.resize(0)


def shard_of(folder, rows, chunks, orientation=None):
    path = write_shard(folder / "x.h5", rows, chunks=chunks, compression="gzip", compression_opts=1)
    return open_shards([path], orientation=orientation)[0]


@each(
    "chunks, n_bytes, block_rows, n_reads",
    [
        ((40, N_INPUTS), ALL, 7, 3),
        ((40, N_INPUTS // 2), ALL, 7, 6),
        ((N_ROWS, N_INPUTS // 4), ALL, 7, 4),
        ((50, N_INPUTS // 2), 50 * N_INPUTS * 8 - 1, 25, 8),  # the two chunks that hold a row do not fit
    ],
)
def test_each_chunk_is_read_once_if_it_fits(tmp_path, reads, chunks, n_bytes, block_rows, n_reads):
    shard = shard_of(tmp_path, ROWS, chunks)
    CHUNKS.resize(n_bytes)
    reads.clear()
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(read, blocks([shard], block_rows))))
    np.testing.assert_array_equal(found, ROWS)
    assert len(reads) == n_reads
    CHUNKS.resize(0)


def test_chunks_of_columns_are_read_once(tmp_path, reads):
    shard = shard_of(tmp_path, ROWS.T, (N_INPUTS, 50), "columns")
    CHUNKS.resize(ALL)
    reads.clear()
    found = np.concatenate([read(block) for block in blocks([shard], 10)])
    np.testing.assert_array_equal(found, ROWS)
    assert len(reads) == 2


def test_training_window_reads_each_chunk_once(tmp_path, reads):
    shard = shard_of(tmp_path, ROWS, (50, N_INPUTS))
    CHUNKS.resize(ALL)
    reads.clear()
    order = Order(np.arange(0, N_ROWS + 1, 5), np.empty(0, np.int64), 50, seed=1)
    rows = StreamedRows(Reader([shard], AS_STORED, 2))
    found = np.concatenate(list(rows.minibatches(order, 0, 10)))
    np.testing.assert_array_equal(np.sort(found[:, 0]), ROWS[:, 0])
    assert len(reads) <= 2 * 2  # each of the two windows may need both chunks


def test_changed_file_is_not_read_from_the_cache(tmp_path, reads):
    shard = shard_of(tmp_path, ROWS, (50, N_INPUTS))
    CHUNKS.resize(ALL)
    read(Block(shard, 0, 10))
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["X"][:] = 1
    (again,) = open_shards([str(tmp_path)])
    np.testing.assert_array_equal(read(Block(again, 0, 10)), np.ones((10, N_INPUTS)))


def test_failed_decompression_is_not_cached():
    cache = _ChunkCache(100)

    def fail():
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        cache.get("a", 10, fail)
    assert bytes(cache.get("a", 10, lambda: memoryview(b"right"))) == b"right"


def test_least_recently_used_chunks_are_evicted():
    cache = _ChunkCache(20)
    calls = []

    def make(key):
        calls.append(key)
        return memoryview(key.encode())

    for key in "abacab":
        cache.get(key, 10, lambda key=key: make(key))
    assert "".join(calls) == "abcb"
    cache.resize(0)
    cache.get("a", 10, lambda: make("a"))
    cache.get("a", 10, lambda: make("a"))
    assert "".join(calls) == "abcbaa"
