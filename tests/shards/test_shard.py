"""Tests of shards, blocks, and the numbering of rows over all shards."""

import pickle

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block, Shard, aligned, block_of, first_rows
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import each
from tests.support.fresh_process import run_in_fresh_process
from tests.support.helpers import blocks, csr, some_rows, write_csr, write_shard


@each("sizes", [(1,), (3, 4), (0, 3, 0, 0, 2, 0)])
@each("block_rows", [1, 2, 3, 100])
def test_blocks_cover_every_row_once_and_in_order(sizes, block_rows):
    shards = [Shard(str(i), "X", (size, 2), "<f4") for i, size in enumerate(sizes)]
    rows = [(shard, row) for shard in shards for row in range(shard.n_rows)]
    cut = list(blocks(shards, block_rows))
    assert [(block.shard, row) for block in cut for row in range(block.start, block.stop)] == rows
    assert all(1 <= len(block) <= block_rows for block in cut)
    numbers = first_rows(shards)
    assert numbers.tolist() == [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for number, (shard, row) in enumerate(rows):
        assert block_of(shards, numbers, number, number + 1) == Block(shard, row, row + 1)


@each(
    "dtypes, common",
    [(["uint8", "int16"], "int16"), (["float32", "uint16"], "float32"), (["float32", "int32"], "float64")],
)
def test_common_row_dtype_holds_all_dtypes(dtypes, common):
    assert AS_STORED.dtype([Shard("x", "X", (1, 2), dtype) for dtype in dtypes]) == common


@each("size", [1, 2, 3, 7, 100])
def test_ranges_are_cut_at_multiples_of_the_size(size):
    for start, stop in ((0, 1), (0, 7), (1, 2), (2, 11), (6, 8), (7, 11)):
        pieces = list(aligned(start, stop, size))
        assert [i for first, last in pieces for i in range(first, last)] == list(range(start, stop))
        assert all(first < last for first, last in pieces)
        assert all(first % size == 0 for first, _ in pieces[1:])
        assert all(first // size == (last - 1) // size for first, last in pieces)


@pytest.mark.process
def test_pickled_block_is_small_and_reads_the_same_rows(tmp_path):
    rows = some_rows(n_rows=2000)
    text = np.array(["a", "ü"] * 1000, object)
    words = h5py.enum_dtype({"no": 0, "yes": 1}, "i1")
    extras = {"y": np.arange(2000), "text": text, "word": np.zeros(2000, words), "kind": np.arange(2000) % 3 - 1}
    extras["__categories/kind"] = ["b", "c"]
    paths = [
        write_shard(tmp_path / "plain.h5", rows, extras={**extras, "word": np.zeros(2000, "i1")}),
        write_shard(tmp_path / "chunked.h5", rows, extras=extras, chunks=(100, 6), compression="gzip"),
        write_csr(tmp_path / "sparse.h5", csr(rows), rows.shape),
        write_shard(tmp_path / "table.h5", rows.view([(name, "<f4") for name in "abcdef"]).reshape(-1)),
    ]
    opened = [Block(open_shards([path])[0], 5, 1995) for path in paths]
    masked = [Block(shard, 0, 7) for shard in open_shards([paths[0], paths[2]])]  # with a mask
    tasks = [(each, block) for block in (*opened, *masked) for each in (read, read_extras)]
    for (function, block), found in zip(tasks, run_in_fresh_process(tasks), strict=True):
        expected = function(block)
        assert pickle.dumps(found) == pickle.dumps(expected)
        assert len(pickle.dumps(block)) < 4096 + 24 * 20
        assert pickle.loads(pickle.dumps(block)) == block
