"""Tests of rows in any form: they equal rows of a dense dataset bit for bit, and damaged rows are reported.

Sample: 75 random sparse matrices, and with TEST_CASES=all 150.
"""

import fcntl
from itertools import pairwise, product
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.hdf5 import values as hdf5_values
from shardpress.hdf5.files import FILES
from shardpress.hdf5.forms import sparse, table
from shardpress.hdf5.shard import Block, array_shard
from shardpress.run.engine import run
from shardpress.settings.config import Config
from shardpress.shards import digests
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import ALL_CASES, case
from tests.support.damage import damage
from tests.support.fields import set_sizes
from tests.support.helpers import (
    blocks,
    csr,
    numbered,
    numbered_shards,
    refused,
    scanned,
    some_rows,
    whole,
    write_csr,
    write_shard,
)

INTEGERS = [f"{sign}{size}" for sign in "ui" for size in (1, 2, 4, 8)]
FLOATS = ["f2", "f4", "f8"]
N_ROWS, N_INPUTS = some_rows().shape
CHUNKED = {"chunks": True, "compression": "gzip", "shuffle": True}


def write_dense(file, rows, **options):
    file.create_dataset("X", data=rows, **options)


def write_columns(file, rows, **options):
    file.create_dataset("X", data=np.moveaxis(rows, 0, -1), **options)


def write_sparse(file, rows, **options):
    group = file.create_group("X")
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["shape"] = rows.shape
    for name, values in zip(("data", "indices", "indptr"), csr(rows), strict=True):
        group.create_dataset(name, data=values, **options)


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


def write_form(path, form, rows, libver="earliest", **options):
    """Write a shard in a form, with labels."""
    with h5py.File(path, "w", libver=libver) as file:
        FORMS[form](file, rows, **options)
        file["y"] = np.arange(len(rows))
    return opened(path, form)


def write_both(folder, form, rows, **options):
    """Write the same rows in dense form and in another one."""
    return tuple(write_form(folder / f"{i}.h5", each, rows, **options) for i, each in enumerate(("dense", form)))


def opened(path, form):
    (shard,) = open_shards([str(path)], orientation="columns" if form == "columns" else None)
    return shard


# -- every storage and dtype ---------------------------------------------------------------------------------------


@pytest.mark.process
def test_every_dtype_and_byte_order_is_read_as_numpy_casts_it(tmp_path):
    for order, code in product("<>", INTEGERS + FLOATS):
        with case(order, code):
            dtype = np.dtype(order + code)
            limits = np.iinfo(dtype) if dtype.kind in "ui" else np.finfo(dtype)
            rows = np.array([[0, 1, 2], [3, 4, 5], [limits.min, limits.max, 100]], dtype)
            (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
            delivered = np.dtype("f4" if code == "f2" else code)
            found = whole(shard)
            assert found.dtype == delivered == np.dtype(shard.dtype)
            assert found.dtype.isnative
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, rows.astype(delivered))


def test_bool_reads_back_as_0_and_1(tmp_path):
    rows = np.array([[True, False], [False, True]])
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    assert whole(shard).dtype == np.uint8
    np.testing.assert_array_equal(whole(shard), rows.astype(np.uint8))


def test_array_shard_equals_a_file_with_its_rows(tmp_path):
    for code in ["?", *(order + code for order in "<>" for code in INTEGERS + FLOATS)]:
        rows = (numbered(7) % 3).astype(code)
        (stored,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
        for array in (rows, np.asfortranarray(rows)):
            with case(code, array.strides):
                shard = array_shard(array)
                assert (shard.dtype, shard.n_rows, shard.row_bytes) == (stored.dtype, 7, stored.row_bytes)
                for block in blocks([shard], 2):
                    expected = read(Block(stored, block.start, block.stop))
                    assert read(block).tobytes() == expected.tobytes()


def test_nan_and_inf_are_read_unchanged(tmp_path):
    rows = np.array([[np.nan, np.inf, -np.inf]], np.float16)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    np.testing.assert_array_equal(whole(shard), rows.astype(np.float32))


def test_any_storage_and_any_blocks_give_the_same_rows(tmp_path):
    for options, block_rows in product(
        [
            {},
            {"chunks": (1, 3)},
            {"chunks": (4, 2)},
            {"chunks": (11, 3)},
            {"chunks": (3, 3), "maxshape": (None, None)},
            {"compression": "gzip", "compression_opts": 9},
            {"compression": "lzf", "chunks": (4, 3)},
            {"shuffle": True, "compression": "gzip", "chunks": (2, 1)},
            {"fletcher32": True},
            {"shuffle": True, "fletcher32": True, "compression": "lzf"},
        ],
        [1, 4, 10, 11, 12],
    ):
        with case(options, block_rows):
            rows = numbered(11, 3)
            shards = open_shards([write_shard(tmp_path / "x.h5", rows, **options)])
            np.testing.assert_array_equal(np.concatenate([read(block) for block in blocks(shards, block_rows)]), rows)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 2, 2), (5, 1, 1, 1)])
def test_rank_above_2_is_flattened_per_row_and_logged(tmp_path, shape, caplog):
    caplog.set_level("INFO", "shardpress")
    rows = np.arange(np.prod(shape)).reshape(shape)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows, chunks=(2, *shape[1:]))])
    np.testing.assert_array_equal(whole(shard), rows.reshape(5, -1))
    assert "flattened" in caplog.text


def test_shard_locked_by_another_program_is_read(tmp_path):
    """Some file systems have no locks, and on others the lock of a crashed writer remains."""
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        np.testing.assert_array_equal(whole(open_shards([path])[0]), numbered(3))


# -- damaged rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_damaged_chunk_is_reported_with_its_place(tmp_path, options):
    path = write_shard(tmp_path / "x.h5", numbered(8), chunks=(4, 2), **options)
    damage(path)
    (shard,) = open_shards([path])
    with refused(65, f"file={path} dataset=X rows=1:4"):
        read(Block(shard, 1, 4))
    np.testing.assert_array_equal(read(Block(shard, 4, 8)), numbered(4, first=4))


def test_shard_deleted_after_vetting_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    (shard,) = numbered_shards(tmp_path, 3)
    Path(shard.path).unlink()
    with refused(74, shard.path, "rows=0:3", "No such file", "4 times"):
        whole(shard)


def test_shard_that_shrank_after_vetting_is_refused(tmp_path):
    (shard,) = numbered_shards(tmp_path, 3)
    write_shard(Path(shard.path), numbered(2))
    with refused(65, shard.path):
        whole(shard)


# -- equal to dense rows -------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_form_equal_a_dense_dataset(tmp_path, form):
    for dtype, options in product(["?", "u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8"], [{}, CHUNKED]):
        with case(dtype, options):
            rows = some_rows(dtype)
            dense, shard = write_both(tmp_path, form, rows, **options)
            assert (shard.shape, shard.stored_dtype, shard.dtype) == (dense.shape, dense.stored_dtype, dense.dtype)
            for start, stop in [(0, N_ROWS), (0, 0), (17, 17), (17, 18), (5, 44), (N_ROWS - 1, N_ROWS)]:
                found, expected = (read(Block(each, start, stop)) for each in (shard, dense))
                assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())
                assert found.flags.c_contiguous
                assert read_extras(Block(shard, start, stop))["y"].tolist() == list(range(start, stop))


@pytest.mark.process
def test_columns_in_any_storage_equal_the_transposed_array(tmp_path, monkeypatch):
    for seed in range(60):
        with case(seed):
            rng = np.random.default_rng(seed)
            for name, most in (("_PIECE", 400), ("_LINE", 64), ("_TILE", 5)):
                monkeypatch.setattr(hdf5_values, name, int(rng.integers(8, most)) if name != "_TILE" else most)
            shape = tuple(int(n) for n in rng.integers(1, (5, 7, 40)[-rng.integers(2, 4) :]))
            stored = rng.integers(0, 200, shape).astype(["u1", "<f4", ">i8"][rng.integers(3)])
            options = {}
            if rng.random() < 0.7:
                options = {"chunks": tuple(int(rng.integers(1, n + 1)) for n in shape), "compression": "lzf"}
                options["maxshape"] = tuple(None if rng.random() < 0.4 else n for n in shape)
            with h5py.File(tmp_path / "x.h5", "w", libver=("earliest", "latest")[seed % 2]) as file:
                file.create_dataset("X", data=stored, **options)
            shard = opened(tmp_path / "x.h5", "columns")
            expected = np.moveaxis(stored, -1, 0).reshape(shape[-1], -1)
            assert shard.shape == (shape[-1], *shape[:-1])
            for _ in range(3):
                start, stop = sorted(int(i) for i in rng.integers(0, shape[-1] + 1, 2))
                found = read(Block(shard, start, stop))
                assert found.tobytes() == expected[start:stop].astype(shard.dtype).tobytes()


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, form, monkeypatch):
    monkeypatch.setattr(table, "_PIECE", 200)
    monkeypatch.setattr(sparse, "_ENTRIES", 7)
    rows = some_rows()
    shard = write_form(tmp_path / "x.h5", form, rows, **CHUNKED)
    for block_rows in (1, 2, 7, 60, 61, 62):
        found = np.concatenate([read(block) for block in blocks([shard], block_rows)])
        assert found.tobytes() == rows.tobytes()


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_read_into_a_given_array(tmp_path, form):
    rows = some_rows()
    shard = write_form(tmp_path / "x.h5", form, rows)
    out = np.full((20, N_INPUTS), 9, dtype="f4")
    assert np.shares_memory(read(Block(shard, 3, 23), out), out)
    assert out.tobytes() == rows[3:23].tobytes()


@pytest.mark.process
def test_index_of_a_table_can_have_any_type(tmp_path):
    for options, index in product(
        [{}, CHUNKED], ["S3", h5py.opaque_dtype(np.dtype("M8[ns]")), h5py.enum_dtype({"a": 0})]
    ):
        with case(options, index):
            records = np.zeros(9, [("index", index), ("a", "<f8"), ("b", "<f8")])
            records["b"] = np.arange(9)
            with h5py.File(tmp_path / "x.h5", "w") as file:
                file.create_dataset("X", data=records, **options)
            assert read(Block(opened(tmp_path / "x.h5", "table"), 2, 9)).tolist() == [[0, i] for i in range(2, 9)]


@pytest.mark.process
def test_index_of_a_table_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_PIECE", 200)
    texts = np.array([f"row {i}".encode() for i in range(61)])
    for options, index in product([{}, CHUNKED], [np.arange(61) - 5, np.arange(61) / 3, texts]):
        with case(options, index.dtype):
            records = np.zeros(61, [("index", index.dtype), ("a", "<f8"), ("b", "<f8")])
            records["index"] = index
            with h5py.File(tmp_path / "x.h5", "w") as file:
                file.create_dataset("df/table", data=records, **options)
            (shard,) = open_shards([str(tmp_path / "x.h5")])
            (extra,) = shard.extras
            assert (extra.name, extra.dtype) == ("index", index.dtype)
            for block_rows in (1, 7, 60, 61):
                found = [read_extras(block)["index"] for block in blocks([shard], block_rows)]
                np.testing.assert_array_equal(np.concatenate(found), index)


@pytest.mark.process
def test_indexes_of_several_tables_get_one_dtype(tmp_path):
    for i, dtype in enumerate(("S3", "S5")):
        records = np.zeros(3, [("index", dtype), ("a", "<f8"), ("b", "<f8")])
        records["index"] = [b"a", b"b", b"c"]
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["df/table"] = records
            file["df/index" if i else "df/y"] = [1, 2, 3]
    one, other = open_shards([str(tmp_path / "0.h5"), str(tmp_path / "1.h5")])
    assert {extra.name for extra in one.extras} == {"y", "y_present", "index", "index_present", "df_index"}
    for shard in (one, other):
        assert read_extras(Block(shard, 1, 3))["df_index"].tolist() == [b"b", b"c"]


@pytest.mark.process
def test_index_that_is_no_number_or_text_is_ignored(tmp_path):
    for odd in (h5py.opaque_dtype(np.dtype("M8[ns]")), np.dtype(("<i8", (2,))), np.dtype("c16")):
        with case(odd):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                file["X"] = np.zeros(3, [("index", odd), ("a", "<f8"), ("b", "<f8")])
            assert opened(tmp_path / "x.h5", "table").extras == ()


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.parametrize("form", FORMS)
def test_run_over_any_form_makes_the_same_features(tmp_path, monkeypatch, form):
    rows = some_rows(n_rows=300)
    rows[7, 2] = np.nan
    found = []
    for shard, block_rows in zip(write_both(tmp_path, form, rows, **CHUNKED), (None, 64), strict=True):
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


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_scan_over_any_form_finds_the_same(tmp_path, form, monkeypatch):
    monkeypatch.setattr(digests, "UNIT_ROWS", 1)  # blocks are whole units
    rows = some_rows(">f8")
    rows[[3, 40], [0, 5]] = np.nan, np.inf
    dense, shard = write_both(tmp_path, form, rows)
    expected = scanned([dense], 100, 1)
    found = scanned([shard], 7, 2)
    assert found.to_npz() == expected.to_npz()


@pytest.mark.process
def test_sparse_rows_are_read_a_few_entries_at_a_time(tmp_path, monkeypatch):
    sizes = []

    def read_and_count(path, identity, layout, start, out):
        sizes.append(len(out))
        return hdf5_values.read_values(path, identity, layout, start, out)

    monkeypatch.setattr(sparse, "read_values", read_and_count)
    monkeypatch.setattr(sparse, "_ENTRIES", 20)
    rows = some_rows()
    shard = write_form(tmp_path / "x.h5", "sparse", rows)
    assert read(Block(shard, 10, 40)).tobytes() == rows[10:40].tobytes()
    assert sizes[0] == 31  # only the start of the block's rows
    assert max(sizes[1:]) <= 20


def test_each_column_of_a_block_is_read_at_once(tmp_path, monkeypatch):
    rows = some_rows(n_rows=3000)
    shard = write_form(tmp_path / "x.h5", "columns", rows)
    sizes = []
    preadv = FILES.preadv
    monkeypatch.setattr(FILES, "preadv", lambda *place: sizes.append(len(place[1])) or preadv(*place))
    assert read(Block(shard, 100, 2900)).tobytes() == rows[100:2900].tobytes()
    assert sizes == [2800 * 4] * N_INPUTS


# -- extras --------------------------------------------------------------------------------------------------------


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
    for block_rows in range(1, 13):
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
            assert all(report["reason"] for report in reports)
            assert f" {lowest}" in caplog.text


def test_salvaging_can_be_stopped(tmp_path):
    def stop():
        raise InterruptedError

    path = write_shard(tmp_path / "x.h5", numbered(3))
    with h5py.File(path, "a") as file:
        file.create_dataset("y", data=np.arange(3), chunks=(3,), fletcher32=True)
    damage(path, "y")
    (shard,) = open_shards([path])
    with pytest.raises(InterruptedError):
        read_extras(Block(shard, 0, 3), [], stop)


# -- sparse rows ---------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_sparse_columns_can_be_unsorted_and_any_integer_type(tmp_path):
    for index, scramble in product(["<i4", "<i8", "<u4", ">u8", "<u2"], [False, True]):
        with case(index, scramble):
            rows = some_rows()
            path = write_csr(tmp_path / "x.h5", csr(rows, index, scramble), rows.shape)
            assert read(Block(opened(path, "sparse"), 0, N_ROWS)).tobytes() == rows.tobytes()


@pytest.mark.process
def test_invalid_sparse_rows_are_refused_with_their_row(tmp_path):
    for columns, firsts, phrases in [
        ([0, 1, 2, 0], [0, 3, 2, 4], ["row=1", "3 to 2"]),
        ([0, 1, 2, 0], [0, 1, 2, 5], ["row=2", "2 to 5", "4 entries"]),
        ([0, 1, 2, 0], [-1, 1, 2, 4], ["row=0", "-1 to 1"]),
        ([0, 1, 2, 0], [0, 2**62, 2, 4], ["row=0"]),
        ([0, 1, 2, 0], [0, 0, 0, 4], ["row=2", "0 to 4"]),
        ([0, 3, 2, 0], [0, 1, 2, 4], ["row=1", "column 3", "expected 3 columns"]),
        ([0, 1, 2, -1], [0, 0, 2, 4], ["row=2", "column -1"]),
        ([0, 1, 2, 2], [0, 1, 2, 4], ["row=2", "column 2 ", "sum_duplicates"]),
        ([1, 0, 1, 2], [0, 3, 3, 4], ["row=0", "column 1 "]),
    ]:
        with case(columns, firsts, phrases):
            parts = np.ones(4, "f4"), np.array(columns), np.array(firsts)
            path = write_csr(tmp_path / "x.h5", parts, (3, 3), h5sparse_format="csr")
            shard = opened(path, "sparse")
            with refused(65, path, "dataset=X", *phrases):
                read(Block(shard, 0, 3))


def dense_or_none(values, columns, firsts, shape):
    """Convert sparse rows to dense ones, entry by entry; return None if they are invalid."""
    rows = np.zeros(shape, dtype=values.dtype)
    for row, (start, stop) in enumerate(pairwise(firsts.tolist())):
        columns_of_row = columns[start:stop].tolist() if 0 <= start <= stop <= len(values) else [-1]
        if len({*columns_of_row}) < len(columns_of_row) or not {*columns_of_row} <= {*range(shape[1])}:
            return None
        rows[row, columns_of_row] = values[start:stop]
    return rows


@pytest.mark.process
def test_random_sparse_rows_are_read_or_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    n_invalid = 0
    monkeypatch.setattr(sparse, "_ENTRIES", 3)
    n_matrices = 150 if ALL_CASES else 75
    for i in range(n_matrices):
        shape = (int(rng.integers(1, 5)), int(rng.integers(1, 6)))
        values, columns, firsts = csr(rng.integers(0, 3, shape).astype("f4"), scramble=bool(i % 2))
        for part in (columns, firsts)[: rng.integers(0, 3)]:
            if len(part) and rng.random() < 0.5:
                part[rng.integers(len(part))] = rng.integers(-1, 9)
        shard = opened(
            write_csr(tmp_path / f"{i}.h5", (values, columns, firsts), shape, h5sparse_format="csr"), "sparse"
        )
        expected = dense_or_none(values, columns, firsts, shape)
        if expected is None:
            n_invalid += 1
            with refused(65, "dataset=X row="):
                read(Block(shard, 0, shape[0]))
        else:
            assert read(Block(shard, 0, shape[0])).tobytes() == expected.tobytes()
    assert n_matrices / 8 < n_invalid < 7 * n_matrices / 8


@pytest.mark.process
def test_sparse_places_above_int64_are_refused(tmp_path):
    path = write_csr(tmp_path / "x.h5", (np.ones(2, "f4"), np.array([0, 1]), np.array([0, 2**64 - 1], "u8")), (1, 3))
    with refused(65, "row=0"):
        read(Block(opened(path, "sparse"), 0, 1))
