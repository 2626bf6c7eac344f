"""Tests of the chunk cache: chunks larger than a block are decompressed once, as far as memory allows."""

import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import pytest

from shardpress.hdf5 import chunkcache, values
from shardpress.hdf5.chunkcache import CHUNKS, _ChunkCache
from shardpress.hdf5.shard import Block
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from shardpress.training.order import Order
from shardpress.training.rows import Reader, StreamedRows
from tests.support.helpers import numbered, write_shard

N_ROWS = 100


@pytest.fixture
def decompressions(monkeypatch):
    """Count the chunks that are decompressed here or in the child, with an empty cache that also keeps small chunks."""
    counts = []
    decode_chunk = values.decode_chunk
    ask = values.ask

    def counting(*arguments):
        counts.append(1)
        return decode_chunk(*arguments)

    def counting_in_child(function, descriptor, arguments, kind, where):
        _, cells = arguments
        counts.extend(cells)
        return ask(function, descriptor, arguments, kind, where)

    monkeypatch.setattr(values, "decode_chunk", counting)
    monkeypatch.setattr(values, "ask", counting_in_child)
    monkeypatch.setattr(chunkcache, "_LEAST_BYTES", 1)
    CHUNKS.resize(0)
    yield counts
    CHUNKS.resize(0)


def shard_of(tmp_path, chunks, compression="gzip"):
    path = write_shard(tmp_path / "x.h5", numbered(N_ROWS, 4), chunks=chunks, compression=compression)
    return open_shards([path])[0]


def blocks(shard, n_rows):
    return Block(shard, 0, shard.n_rows).cut(n_rows)


@pytest.mark.parametrize(("chunks", "n_chunks"), [((40, 4), 3), ((40, 2), 6), ((N_ROWS, 1), 4), ((33, 4), 4)])
@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("compression", ["gzip", hdf5plugin.BZip2()])
def test_each_chunk_is_decompressed_once(tmp_path, decompressions, chunks, n_chunks, n_threads, compression):
    shard = shard_of(tmp_path, chunks, compression)
    CHUNKS.resize(4 * N_ROWS * 4 * 8)
    with ThreadPoolExecutor(n_threads) as pool:
        found = np.concatenate(list(pool.map(read, blocks(shard, 7))))
    np.testing.assert_array_equal(found, numbered(N_ROWS, 4))
    assert len(decompressions) == n_chunks


def test_chunks_that_do_not_fit_are_decompressed_for_each_block(tmp_path, decompressions):
    shard = shard_of(tmp_path, (50, 2))
    CHUNKS.resize(2 * 50 * 2 * 8 - 1)  # two chunks contain each row
    found = np.concatenate([read(block) for block in blocks(shard, 25)])
    np.testing.assert_array_equal(found, numbered(N_ROWS, 4))
    assert len(decompressions) == 2 * 4


def test_chunks_of_columns_are_decompressed_once(tmp_path, decompressions):
    write_shard(tmp_path / "x.h5", numbered(N_ROWS, 4).T, chunks=(4, 50), compression="gzip")
    (shard,) = open_shards([str(tmp_path)], orientation="columns")
    CHUNKS.resize(10**6)
    found = np.concatenate([read(block) for block in blocks(shard, 10)])
    np.testing.assert_array_equal(found, numbered(N_ROWS, 4))
    assert len(decompressions) == 2


def test_training_window_decompresses_each_chunk_once(tmp_path, decompressions):
    shard = shard_of(tmp_path, (50, 4))
    CHUNKS.resize(10**6)
    order = Order(np.arange(0, N_ROWS + 1, 5), np.empty(0, np.int64), 50, seed=1)
    rows = StreamedRows(Reader([shard], AS_STORED, 2))
    found = np.concatenate(list(rows.minibatches(order, 0, 10)))
    np.testing.assert_array_equal(np.sort(found[:, 0]), numbered(N_ROWS, 4)[:, 0])
    assert len(decompressions) <= 2 * 2  # each of the two windows may need both chunks


def test_changed_file_is_not_read_from_the_cache(tmp_path, decompressions):
    shard = shard_of(tmp_path, (50, 4))
    CHUNKS.resize(10**6)
    read(Block(shard, 0, 10))
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["X"][:] = 1
    (again,) = open_shards([str(tmp_path)])
    np.testing.assert_array_equal(read(Block(again, 0, 10)), np.ones((10, 4)))


def test_failure_reaches_all_waiting_threads_and_is_not_cached():
    cache = _ChunkCache(100)
    is_waiting = threading.Event()
    go = threading.Event()

    def fail():
        is_waiting.set()
        go.wait()
        raise ValueError("damaged")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", 10, fail)
        is_waiting.wait()
        second = pool.submit(cache.get, "a", 10, lambda: memoryview(b"never"))
        while not second.running():
            pass
        go.set()
        with pytest.raises(ValueError, match="damaged"):
            first.result()
    assert second.exception() is not None or bytes(second.result()) == b"never"  # it may have started too late to wait
    cache = _ChunkCache(100)
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
