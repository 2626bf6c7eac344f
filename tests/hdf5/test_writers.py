"""Tests of layouts that other software writes (tests/files): they are read, or refused with advice."""

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


def test_one_block_of_a_frame_can_be_chosen():
    for requested in (None, "df", "df/block0_values"):
        (shard,) = open_shards([str(FILES / "frames-fixed-mixed.h5")], requested)
        assert read(Block(shard, 0, 60)).tolist() == ROWS[:, :3].tolist()


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


def test_single_column_of_another_dtype_in_a_frame_is_an_extra(caplog):
    (shard,) = open_shards([str(FILES / "frames-fixed-mixed.h5")])
    assert shard.columns.names == ("a", "b", "c")
    assert [extra.name for extra in shard.extras] == ["axis1", "d"]
    assert read_extras(Block(shard, 0, 60))["d"].tolist() == ROWS[:, 3].tolist()
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []


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
