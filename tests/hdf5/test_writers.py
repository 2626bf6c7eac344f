"""Tests with files of other software (tests/files): rows and labels are read, or refused with advice."""

from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case
from tests.support.helpers import refused, write_shard

pytestmark = pytest.mark.process

FILES = Path(__file__).parents[1] / "files"
ROWS = np.arange(240).reshape(60, 4) % 97
FEW = np.where(ROWS % 3, 0, ROWS)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "requested", "orientation", "dataset", "dtype", "rows"),
    [
        ("sparse-csr.h5ad", None, None, "X", "<f4", FEW),
        ("sparse-csc.h5ad", None, "columns", "X", "<f4", FEW.T),
        ("frames-fixed.h5", None, None, "df/block0_values", "<f4", ROWS),
        ("frames-fixed.h5", "df", None, "df/block0_values", "<f4", ROWS),
        *(
            ("frames-fixed-mixed.h5", requested, None, "df/block0_values", "<f4", ROWS[:, :3])
            for requested in (None, "df", "df/block0_values")
        ),
        ("frames-table.h5", None, None, "df/table", "<f4", ROWS),
        ("frames-table.h5", "df", None, "df/table", "<f4", ROWS),
        ("records.h5", None, None, "table", "<i4", ROWS),
        ("matlab.mat", None, "columns", "X", "<f8", ROWS),
        ("matlab.mat", None, "rows", "X", "<f8", ROWS.T),
    ],
)
def test_rows_of_other_software_are_read(name, requested, orientation, dataset, dtype, rows):
    (shard,) = open_shards([str(FILES / name)], requested, orientation=orientation)
    assert (shard.dataset, shard.stored_dtype) == (dataset, dtype)
    for start, stop in ((0, len(rows)), (1, 3)):
        found = read(Block(shard, start, stop))
        assert found.dtype == dtype
        assert found.tolist() == rows[start:stop].tolist()


@pytest.mark.parametrize(
    ("name", "requested", "phrases"),
    [
        ("sparse-csc.h5ad", None, ["dataset=X", "(CSC)", "tocsr()"]),
        ("frames-table-mixed.h5", None, ["dataset=df/table", "values_block_1 1 x int32", "df.to_numpy()"]),
        ("matlab.mat", None, ["MATLAB", "60 x 4", "--orientation columns", "--orientation rows"]),
    ],
)
def test_unusable_layout_is_refused_with_advice(name, requested, phrases):
    with refused(65, name, *phrases):
        open_shards([str(FILES / name)], requested)


def test_columns_are_named_after_the_fields_of_a_table():
    assert open_shards([str(FILES / "records.h5")])[0].columns.names == ("a", "b", "c", "d")


def test_single_column_of_another_dtype_in_a_frame_is_an_extra(caplog):
    (shard,) = open_shards([str(FILES / "frames-fixed-mixed.h5")])
    assert shard.columns.names == ("a", "b", "c")
    assert [extra.name for extra in shard.extras] == ["axis1", "d"]
    assert read_extras(Block(shard, 0, 60))["d"].tolist() == ROWS[:, 3].tolist()
    assert not caplog.records


def test_labels_in_a_matlab_column_are_an_extra():
    (shard,) = open_shards([str(FILES / "matlab.mat")], orientation="columns")
    assert read_extras(Block(shard, 58, 60))["y"].tolist() == [58, 59]


@pytest.mark.process
@pytest.mark.parametrize("name", ["netcdf-unlimited.nc", "pytables.h5"])
def test_rows_and_labels_of_other_software_are_read(name):
    (shard,) = open_shards([str(FILES / name)])
    rows = read(Block(shard, 0, 60))
    extras = read_extras(Block(shard, 0, 60))
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(extras["y"], np.arange(60))
    assert [*extras] == ["y"]
    assert [each for each in shard.left_out if each.is_missed] == []


def test_named_anndata_columns_are_extras():
    (shard,) = open_shards([str(FILES / "sparse-csr.h5ad")], include=["obs/kind", "obs/_index"])
    kind, index = shard.extras
    found = read_extras(Block(shard, 0, 60))
    assert [kind.categories[code] for code in found["kind"]] == [str("bac"[row % 3]) for row in ROWS[:, 0]]
    assert (index.name, found["_index"][59]) == ("_index", b"cell 59")


def test_packed_values_are_read_unscaled_with_times_as_extras(caplog):
    caplog.set_level("INFO", "shardpress")
    (shard,) = open_shards([str(FILES / "netcdf-times.nc")])
    rows = read(Block(shard, 0, 60))
    extras = read_extras(Block(shard, 0, 60))
    np.testing.assert_array_equal(rows, 2 * (ROWS - 1))
    np.testing.assert_array_equal(extras["time"], np.arange(60))
    assert shard.fill_value == -9999
    assert "_FillValue" in caplog.text
    assert "--missing-value -9999" in caplog.text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1e30), float(np.float32(1e30))),
        ([2], 2),
        (np.nan, None),
        (np.inf, None),
        ("none", None),
        ([1, 2], None),
        (h5py.Empty("f4"), None),
        (np.zeros((), "i4,f4"), None),
        (1 + 2j, None),
    ],
)
def test_fill_value_is_one_finite_number_or_none(tmp_path, value, expected):
    path = write_shard(tmp_path / "x.h5", ROWS)
    with h5py.File(path, "a") as file:
        file["X"].attrs["_FillValue"] = value
    (shard,) = open_shards([path])
    assert shard.fill_value == expected


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "v200"])
def test_any_file_layout_of_h5py_is_read(tmp_path, libver):
    spaces = [{"fs_strategy": "page", "fs_persist": True}, {"fs_strategy": "none"}, {"fs_strategy": "page"}, {}]
    storages = [{}, {"chunks": (7, 3)}, {"chunks": (7, 4), "maxshape": (None, None)}]
    for options, storage in product(spaces, storages):
        with case(options=options, storage=storage):
            with h5py.File(tmp_path / "x", "w", libver=(libver, "latest"), track_order=True, **options) as file:
                rows = file.create_dataset("X", data=ROWS, track_order=True, **storage)
                rows.attrs.update({f"a{i}": i for i in range(20)})
                file["y"] = np.arange(60)
                for i in range(20):
                    file[f"group {i}/y"] = i
            (shard,) = open_shards([str(tmp_path)])
            block = Block(shard, 0, 60)
            np.testing.assert_array_equal(read(block), ROWS)
            np.testing.assert_array_equal(read_extras(block)["y"], np.arange(60))


@pytest.mark.parametrize("sizes", [(2, 2), (4, 4), (4, 8), (8, 4)])
def test_files_with_shorter_addresses_and_lengths_are_read(tmp_path, sizes):
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_sizes(*sizes)
    creation.set_userblock(512)
    with h5py.File(h5py.h5f.create(bytes(tmp_path / "x"), h5py.h5f.ACC_TRUNC, fcpl=creation)) as file:
        file["X"] = ROWS
        file["y"] = np.arange(60)
    (shard,) = open_shards([str(tmp_path)])
    np.testing.assert_array_equal(read(Block(shard, 0, 60)), ROWS)
