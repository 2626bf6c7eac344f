"""Tests of rows in any form: they and their digests equal those of NumPy, and damaged rows are reported."""

from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse

from shardpress.features import open_features
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block, array_shard
from shardpress.run.engine import run
from shardpress.settings.config import Config
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case, each
from tests.support.damage import damage
from tests.support.fields import set_sizes
from tests.support.helpers import (
    blocks,
    csr,
    numbered,
    numbered_shards,
    refused,
    some_rows,
    whole,
    write_csr,
    write_shard,
)

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
    records = np.zeros(len(rows), [(f"c{i}", rows.dtype) for i in range(rows.shape[1])])
    for i, name in enumerate(records.dtype.names):
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


@pytest.mark.parametrize("form", FORMS)
def test_many_rows_are_read_in_pieces(tmp_path, monkeypatch, form):
    rows = np.tile(some_rows(n_rows=500, n_inputs=10), (400, 1))
    shard = write_form(tmp_path / "x.h5", form, rows)
    sizes = []
    preadv = FILES.preadv
    monkeypatch.setattr(FILES, "preadv", lambda *place: sizes.append(len(place[1])) or preadv(*place))
    assert read(Block(shard, 1, len(rows) - 1)).tobytes() == rows[1:-1].tobytes()
    if form != "dense":  # dense rows are read where they are needed
        assert max(sizes) <= 2**22


@each(
    "options",
    [
        {},
        {"chunks": (1, 3)},
        {"chunks": (4, 2)},
        {"chunks": (3, 3), "maxshape": (None, None)},
        {"compression": "lzf", "chunks": (4, 3)},
        {"shuffle": True, "compression": "gzip", "chunks": (2, 1)},
        {"shuffle": True, "fletcher32": True, "compression": "lzf"},
    ],
)
def test_any_storage_and_any_blocks_give_the_same_rows(tmp_path, options):
    rows = numbered(11, 3)
    shards = open_shards([write_shard(tmp_path / "x.h5", rows, **options)])
    for block_rows in (1, 4, 10, 11, 12):
        np.testing.assert_array_equal(np.concatenate([read(block) for block in blocks(shards, block_rows)]), rows)


@each("code", DTYPES)
def test_array_shard_equals_a_file_with_its_rows(tmp_path, code):
    rows = (numbered(7) % 3).astype(code)
    (stored,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    for array in (rows, np.asfortranarray(rows)):
        shard = array_shard(array)
        assert (shard.dtype, shard.n_rows, shard.row_bytes) == (stored.dtype, 7, stored.row_bytes)
        for block in blocks([shard], 2):
            assert read(block).tobytes() == read(Block(stored, block.start, block.stop)).tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize("form", FORMS)
def test_run_over_any_form_makes_the_same_features(tmp_path, monkeypatch, form):
    rows = some_rows(n_rows=300)
    rows[7, 2] = np.nan
    found = []
    for each_form, block_rows in (("dense", None), (form, 64)):
        shard = write_form(tmp_path / f"{each_form} {block_rows}.h5", each_form, rows, **CHUNKED)
        config = Config.of(
            input=(shard.path,),
            orientation="columns" if shard.form == "columns" else None,
            output=f"{shard.path} features",
            n_features=3,
            epochs=2,
            on_bad_data="skip",
        )
        set_sizes(monkeypatch, block_rows=block_rows)
        run(config, [])
        found.append(open_features(config.results.output))
    dense, other = found
    assert np.asarray(dense.features).tobytes() == np.asarray(other.features).tobytes()
    assert np.asarray(dense.extras["y"]).tolist() == np.asarray(other.extras["y"]).tolist()


def test_shard_deleted_after_vetting_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    (shard,) = numbered_shards(tmp_path, 3)
    Path(shard.path).unlink()
    with refused(74, shard.path, "rows=0:3", "No such file", "4 times"):
        whole(shard)


# -- the index of a table ------------------------------------------------------------------------------------------


def write_indexed(path, index, n_rows=61, name="df/table", **options):
    """Write a table with a leading field `index`."""
    dtype = index if isinstance(index, np.dtype) else index.dtype
    records = np.zeros(n_rows, [("index", dtype), ("a", "<f8"), ("b", "<f8")])
    if not isinstance(index, np.dtype):
        records["index"] = index
    records["b"] = np.arange(n_rows)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=records, **options)
    return str(path)


@each("options", [{}, CHUNKED])
@each("index", [np.arange(61) - 5, np.arange(61) / 3, np.array([f"row {i}".encode() for i in range(61)])])
def test_index_of_a_table_is_an_extra(tmp_path, options, index):
    (shard,) = open_shards([write_indexed(tmp_path / "x.h5", index, **options)])
    (extra,) = shard.extras
    assert (extra.name, extra.dtype) == ("index", index.dtype)
    for block_rows in (1, 7, 61):
        found = [read_extras(block)["index"] for block in blocks([shard], block_rows)]
        np.testing.assert_array_equal(np.concatenate(found), index)


@each("odd", [h5py.opaque_dtype(np.dtype("M8[ns]")), np.dtype(("<i8", (2,))), np.dtype("c16")])
def test_index_that_is_no_number_or_text_is_ignored(tmp_path, odd):
    shard = opened(write_indexed(tmp_path / "x.h5", odd, 9), "table")
    assert shard.extras == ()
    assert read(Block(shard, 2, 9)).tolist() == [[0, i] for i in range(2, 9)]


def test_indexes_of_several_tables_get_one_dtype(tmp_path):
    paths = [write_indexed(tmp_path / f"{i}.h5", np.array([b"a", b"b", b"c"], f"S{3 + i}"), 3) for i in range(2)]
    with h5py.File(paths[1], "a") as file:
        file["df/index"] = [1, 2, 3]
    one, other = open_shards(paths)
    assert {extra.name for extra in one.extras} == {"index", "index_present", "df_index"}
    for shard in (one, other):
        assert read_extras(Block(shard, 1, 3))["df_index"].tolist() == [b"b", b"c"]


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
            assert f" {lowest}" in caplog.text

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        read_extras(Block(shard, 0, 12), [], stop)


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
