"""Files as other software writes them (tests/files): their rows and labels, or what to write instead."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.shards import Block, open_shards, read, read_riders
from tests.helpers import refused

FILES = Path(__file__).parent / "files"
ROWS = np.arange(240).reshape(60, 4) % 97
FEW = np.where(ROWS % 3, 0, ROWS)


@pytest.mark.parametrize(
    ("name", "asked", "orientation", "dataset", "dtype", "rows"),
    [
        ("sparse-csr.h5ad", None, None, "X", "<f4", FEW),
        ("sparse-csc.h5ad", None, "columns", "X", "<f4", FEW.T),
        ("frames-fixed.h5", None, None, "df/block0_values", "<f4", ROWS),
        ("frames-fixed.h5", "df", None, "df/block0_values", "<f4", ROWS),
        ("frames-fixed-mixed.h5", "df/block0_values", None, "df/block0_values", "<f4", ROWS[:, :3]),
        ("frames-table.h5", None, None, "df/table", "<f4", ROWS),
        ("frames-table.h5", "df", None, "df/table", "<f4", ROWS),
        ("records.h5", None, None, "table", "<i4", ROWS),
        ("matlab.mat", None, "columns", "X", "<f8", ROWS),
        ("matlab.mat", None, "rows", "X", "<f8", ROWS.T),
    ],
)
def test_rows_are_read_as_they_were_written(name, asked, orientation, dataset, dtype, rows):
    (shard,) = open_shards([str(FILES / name)], asked, orientation=orientation)
    assert (shard.dataset, shard.stored_dtype) == (dataset, dtype)
    for start, stop in ((0, len(rows)), (1, 3)):
        found = read(Block(shard, start, stop))
        assert found.dtype == dtype
        assert found.tolist() == rows[start:stop].tolist()


@pytest.mark.parametrize(
    ("name", "asked", "phrases"),
    [
        ("sparse-csc.h5ad", None, ["dataset=X", "(CSC)", "tocsr()"]),
        (
            "frames-fixed-mixed.h5",
            None,
            ["candidates df/block0_values (60, 3) float32, df/block1_values (60, 1) int32"],
        ),
        ("frames-fixed-mixed.h5", "df", ["pandas frame of several types", "df.to_numpy()"]),
        ("frames-table-mixed.h5", None, ["dataset=df/table", "values_block_1 1 x int32", "df.to_numpy()"]),
        ("matlab.mat", None, ["MATLAB", "60 x 4", "--orientation columns", "--orientation rows"]),
    ],
)
def test_what_is_no_rows_as_it_stands_is_told(name, asked, phrases):
    with refused(65, name, *phrases):
        open_shards([str(FILES / name)], asked)


def test_columns_have_the_names_of_a_tables_fields():
    assert open_shards([str(FILES / "records.h5")])[0].columns == ("a", "b", "c", "d")


def test_labels_in_a_column_of_matlabs_ride_along():
    (shard,) = open_shards([str(FILES / "matlab.mat")], orientation="columns")
    assert read_riders(Block(shard, 58, 60))["y"].tolist() == [58, 59]
