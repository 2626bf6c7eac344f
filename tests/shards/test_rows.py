"""Tests of rows in any form: they and their digests equal those of NumPy, and damaged rows are reported."""

import pickle
from itertools import product

import h5py
import numpy as np
import pytest
import scipy.sparse

from shardpress.cli import main
from shardpress.features import open_features
from shardpress.hdf5.shard import Block, Shard, array_shard, block_of, first_rows
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case, each
from tests.support.damage import damage
from tests.support.fresh_process import run_in_fresh_process
from tests.support.helpers import (
    blocks,
    csr,
    numbered,
    refused,
    some_rows,
    whole,
    write_csr,
    write_shard,
)
from tests.support.standin import install

pytestmark = pytest.mark.process

DTYPES = ["?", *(order + kind for order in "<>" for kind in ("u1", "i1", "u2", "i4", "u8", "f2", "f4", "f8"))]
READ_AS = {"?": "u1", "<f2": "f4", ">f2": "f4"}
CHUNKED = {"chunks": True, "compression": "gzip", "shuffle": True}


def write_dense(file, rows, **options):
    file.create_dataset("X", data=rows, **options)


def write_columns(file, rows, **options):
    file.create_dataset("X", data=np.moveaxis(rows, 0, -1), **options)


def write_sparse(file, rows, **options):
    wide = rows.astype("f4") if rows.dtype.kind == "f" and rows.dtype.itemsize == 2 else rows  # SciPy lacks float16
    matrix = scipy.sparse.csr_matrix(wide.astype(wide.dtype.newbyteorder("=")))
    group = file.create_group("X")
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["shape"] = rows.shape
    group.create_dataset("data", data=matrix.data.astype(rows.dtype), **options)
    group.create_dataset("indices", data=matrix.indices, **options)
    group.create_dataset("indptr", data=matrix.indptr, **options)


def write_table(file, rows, **options):
    records = np.zeros(len(rows), [("index", "<i8"), ("values_block_0", rows.dtype, rows.shape[1:])])
    records["index"] = np.arange(len(rows))
    records["values_block_0"] = rows
    file.create_dataset("X", data=records, **options)


def write_fields(file, rows, **options):
    fields = [f"c{i}" for i in range(rows.shape[1])]
    offsets = [i * rows.itemsize for i in range(len(fields))]
    # The order of the offsets decides.
    dtype = {"names": fields[::-1], "formats": [rows.dtype] * len(fields), "offsets": offsets[::-1]}
    records = np.zeros(len(rows), dtype)
    for i, name in enumerate(fields):
        records[name] = rows[:, i]
    file.create_dataset("X", data=records, **options)


FORMS = {
    "dense": write_dense,
    "columns": write_columns,
    "sparse": write_sparse,
    "table": write_table,
    "fields": write_fields,
}


def opened(path, form):
    (shard,) = open_shards([str(path)], orientation="columns" if form == "columns" else None)
    return shard


def write_form(path, form, rows, **options):
    """Write a shard in a form, with labels."""
    with h5py.File(path, "w") as file:
        FORMS[form](file, rows, **options)
        file["y"] = np.arange(len(rows))
    return opened(path, form)


# -- every form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_form_equal_those_of_numpy(tmp_path, form):
    for dtype, options in product(DTYPES, [{}, CHUNKED]):
        with case(dtype, options):
            rows = some_rows(dtype)
            shard = write_form(tmp_path / "x.h5", form, rows, **options)
            expected = rows.astype(READ_AS.get(dtype, np.dtype(dtype).newbyteorder("=")))
            assert (shard.shape, shard.dtype) == (rows.shape, expected.dtype)
            assert AS_STORED.digest(Block(shard, 0, 61)) == AS_STORED.digest(Block(array_shard(expected), 0, 61))
            for start, stop in [(0, 61), (0, 0), (17, 18), (5, 44), (60, 61)]:
                out = np.full((stop - start, 6), 9, shard.dtype)
                found = read(Block(shard, start, stop), out)
                assert np.shares_memory(found, out) or not len(out)
                assert found.tobytes() == expected[start:stop].tobytes()
                assert read_extras(Block(shard, start, stop))["y"].tolist() == list(range(start, stop))


def test_run_over_any_form_makes_the_same_features(tmp_path, monkeypatch):
    install(monkeypatch)
    rows = some_rows(n_rows=60)
    rows[7, 2] = np.nan
    found = []
    for form in FORMS:
        shard = write_form(tmp_path / f"{form}.h5", form, rows, **CHUNKED)
        output = tmp_path / form
        orientation = "columns" if form == "columns" else "rows"
        flags = ["--input", shard.path, "--output", str(output), "--orientation", orientation]
        assert main("", [*flags, "--on-bad-data", "skip", "--max-bad", "2%"]) == 0
        opened = open_features(output)
        found.append((opened.features.compute().tobytes(), opened.extras["y"].compute().tolist()))
    assert found == found[:1] * len(FORMS)


@each("odd", [h5py.opaque_dtype(np.dtype("M8[ns]")), np.dtype(("<i8", (2,))), np.dtype("c16")])
def test_index_that_is_no_number_or_text_is_ignored(tmp_path, odd):
    records = np.zeros(9, [("index", odd), ("a", "<f8"), ("b", "<f8")])
    records["b"] = np.arange(9)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", records)])
    assert shard.extras == ()
    assert read(Block(shard, 2, 9)).tolist() == [[0, i] for i in range(2, 9)]


# -- blocks ------------------------------------------------------------------------------------------------------


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


# -- damaged extras ------------------------------------------------------------------------------------------------


def test_lost_values_of_a_damaged_extra_do_not_depend_on_blocks(tmp_path, caplog):
    path = write_shard(tmp_path / "a.h5", numbered(12))
    with h5py.File(path, "a") as file:
        file.create_dataset("y", data=np.arange(12), chunks=(4,), fletcher32=True)
        file["z"] = np.arange(12)
    damage(path, "y", 1)
    shard, _ = open_shards([path, write_shard(tmp_path / "b.h5", numbered(2))])  # lacks extras
    with refused(65, f"file={path} dataset=y rows=0:12"):
        read_extras(Block(shard, 0, 12))
    lowest = np.iinfo(np.int64).min
    for block_rows in (1, 3, 4, 5, 12):
        with case(block_rows):
            caplog.clear()
            reports = []
            salvaged = [read_extras(block, reports) for block in blocks([shard], block_rows)]
            values = {name: np.concatenate([each[name] for each in salvaged]).tolist() for name in salvaged[0]}
            assert values["y"] == [0, 1, 2, 3, *[lowest] * 4, 8, 9, 10, 11]
            assert values["y_present"] == [True] * 4 + [False] * 4 + [True] * 4
            assert values["z"] == list(range(12))
            assert [row for report in reports for row in range(*report["row"])] == [4, 5, 6, 7]
            assert {report["dataset"] for report in reports} == {"y"}


# -- sparse rows ---------------------------------------------------------------------------------------------------


@each("index", ["<i4", "<i8", ">u8", "<u2"])
def test_sparse_columns_can_be_unsorted_and_any_integer_type(tmp_path, index):
    rows = some_rows()
    path = write_csr(tmp_path / "x.h5", csr(rows, index, scramble=True), rows.shape)
    assert whole(opened(path, "sparse")).tobytes() == rows.tobytes()


@each(
    "columns, firsts, phrases",
    [
        ([0, 1, 2, 0], [0, 3, 2, 4], ["row=1", "3 to 2"]),
        ([0, 1, 2, 0], [0, 1, 2, 5], ["row=2", "2 to 5", "4 entries"]),
        ([0, 1, 2, 0], [-1, 1, 2, 4], ["row=0", "-1 to 1"]),
        ([0, 1, 2, 0], [0, 2**62, 2, 4], ["row=0"]),
        ([0, 1, 2, 0], np.array([0, 2**64 - 1, 2, 4], "u8"), ["row=0"]),
        ([0, 1, 2, 0], [0, 0, 0, 4], ["row=2", "0 to 4"]),
        ([0, 3, 2, 0], [0, 1, 2, 4], ["row=1", "column 3", "expected 3 columns"]),
        ([0, 1, 2, -1], [0, 0, 2, 4], ["row=2", "column -1"]),
        ([0, 1, 2, 2], [0, 1, 2, 4], ["row=2", "column 2 ", "sum_duplicates"]),
        ([1, 0, 1, 2], [0, 3, 3, 4], ["row=0", "column 1 "]),
    ],
)
def test_invalid_sparse_rows_are_refused_with_their_row(tmp_path, columns, firsts, phrases):
    parts = np.ones(4, "f4"), np.array(columns), np.array(firsts)
    path = write_csr(tmp_path / "x.h5", parts, (3, 3), h5sparse_format="csr")
    with refused(65, path, "dataset=X", *phrases):
        whole(opened(path, "sparse"))
