"""Tests of the chunk cache: chunks larger than a block are read and decompressed once, as far as memory allows."""

from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from shardpress.hdf5.chunkcache import CHUNKS
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from tests.support.cases import each
from tests.support.damage import damage
from tests.support.helpers import blocks, numbered, refused, write_shard

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


def shard_of(folder, rows, chunks, orientation):
    path = write_shard(folder / "x.h5", rows, chunks=chunks, compression="gzip", compression_opts=1)
    return open_shards([path], orientation=orientation)[0]


@each(
    "chunks, orientation, n_bytes, block_rows, n_reads",
    [
        ((40, N_INPUTS // 2), "rows", ALL, 7, 6),
        ((N_ROWS, N_INPUTS // 4), "rows", ALL, 7, 4),
        ((50, N_INPUTS // 2), "rows", 50 * N_INPUTS * 8 - 1, 25, 8),  # the two chunks that hold a row do not fit
        ((N_INPUTS, 50), "columns", ALL, 10, 2),
    ],
)
def test_each_chunk_is_read_once_if_it_fits(tmp_path, reads, chunks, orientation, n_bytes, block_rows, n_reads):
    shard = shard_of(tmp_path, ROWS if orientation == "rows" else ROWS.T, chunks, orientation)
    CHUNKS.resize(n_bytes)
    reads.clear()
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(read, blocks([shard], block_rows))))
    np.testing.assert_array_equal(found, ROWS)
    assert len(reads) == n_reads
    CHUNKS.resize(0)


def test_changed_file_is_not_read_from_the_cache(tmp_path, reads):
    shard = shard_of(tmp_path, ROWS, (50, N_INPUTS), "rows")
    CHUNKS.resize(ALL)
    read(Block(shard, 0, 10))
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["X"][:] = 1
    (again,) = open_shards([str(tmp_path)])
    np.testing.assert_array_equal(read(Block(again, 0, 10)), np.ones((10, N_INPUTS)))


def test_damaged_chunk_is_refused_by_every_read(tmp_path, reads):
    shard = shard_of(tmp_path, ROWS, (50, N_INPUTS), "rows")
    CHUNKS.resize(ALL)
    damage(shard.path)
    (shard,) = open_shards([shard.path])
    for _ in range(2):
        with refused(65, f"file={shard.path}", "gzip"):
            read(Block(shard, 0, 10))
    np.testing.assert_array_equal(read(Block(shard, 50, 60)), ROWS[50:60])
