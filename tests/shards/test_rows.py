"""Tests of rows: pickled blocks, and damaged rows.

`hdf5/test_libraries.py` compares rows in any form with those of the libraries that wrote them.
"""

import pickle

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import each
from tests.support.helpers import csr, refused, some_rows, whole, write_csr, write_shard

pytestmark = pytest.mark.process


@each(
    "odd, extras",
    [
        (h5py.opaque_dtype(np.dtype("M8[ns]")), ["index"]),
        (np.dtype(("<i8", (2,))), ["index_0", "index_1"]),
        (np.dtype("c16"), []),
    ],
)
def test_fields_of_a_table_are_in_the_order_of_their_offsets(tmp_path, odd, extras):
    """A first field `index` is not a column."""
    offsets = [odd.itemsize + 8, odd.itemsize, 0]
    records = np.zeros(9, {"names": ["b", "a", "index"], "formats": ["<f8", "<f8", odd], "offsets": offsets})
    records["b"] = np.arange(9)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", records)])
    assert [extra.name for extra in shard.extras] == extras
    assert read(Block(shard, 2, 9)).tolist() == [[0, i] for i in range(2, 9)]


# -- blocks ------------------------------------------------------------------------------------------------------


def test_pickled_block_is_small_and_reads_the_same_rows(tmp_path):
    rows = some_rows(n_rows=2000)
    text = np.array(["a", "ü"] * 1000, object)
    words = h5py.enum_dtype({"no": 0, "yes": 1}, "i1")
    extras = {"y": np.arange(2000), "text": text, "word": np.zeros(2000, words), "kind": np.arange(2000) % 3 - 1}
    extras["__categories/kind"] = ["b", "c"]
    paths = [
        write_shard(tmp_path / "plain.h5", rows, extras={**extras, "word": np.zeros(2000, "i1")}),
        write_shard(tmp_path / "chunked.h5", rows, extras=extras, chunks=(100, 6), compression="gzip"),
        write_csr(tmp_path / "sparse.h5", csr(rows, "<u2", scramble=True), rows.shape),
        write_shard(tmp_path / "table.h5", rows.view([(name, "<f4") for name in "abcdef"]).reshape(-1)),
    ]
    opened = [Block(open_shards([path])[0], 5, 1995) for path in paths]
    masked = [Block(shard, 0, 7) for shard in open_shards([paths[0], paths[2]])]  # with a mask
    for block in (*opened, *masked):
        pickled = pickle.dumps(block)
        assert len(pickled) < 4096 + 24 * 20
        copy = pickle.loads(pickled)
        assert copy == block
        assert read(copy).tobytes() == rows[block.start : block.stop].tobytes()
        assert pickle.dumps(read_extras(copy)) == pickle.dumps(read_extras(block))


# -- sparse rows ---------------------------------------------------------------------------------------------------


@each(
    "columns, firsts, phrases",
    [
        ([0, 1, 2, 0], [0, 3, 2, 4], ["row=1", "3 to 2"]),
        ([0, 1, 2, 0], [0, 1, 2, 5], ["row=2", "2 to 5", "4 entries"]),
        ([0, 1, 2, 0], [-1, 1, 2, 4], ["row=0", "-1 to 1"]),
        ([0, 1, 2, 0], np.array([0, 2**64 - 1, 2, 4], "u8"), ["row=0"]),
        ([0, 1, 2, 0], [0, 0, 0, 4], ["row=2", "0 to 4"]),
        ([0, 3, 2, 0], [0, 1, 2, 4], ["row=1", "column 3", "expected 3 columns"]),
        ([0, 1, 2, -1], [0, 0, 2, 4], ["row=2", "column -1"]),
        ([0, 1, 2, 2], [0, 1, 2, 4], ["row=2", "column 2 ", "sum_duplicates"]),
    ],
)
def test_invalid_sparse_rows_are_refused_with_their_row(tmp_path, columns, firsts, phrases):
    parts = np.ones(4, "f4"), np.array(columns), np.array(firsts)
    path = write_csr(tmp_path / "x.h5", parts, (3, 3), h5sparse_format="csr")
    with refused(65, path, "dataset=X", *phrases):
        whole(*open_shards([path]))
