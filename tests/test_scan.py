"""The scan: the ranges and bad rows that NumPy finds, whatever the blocks and threads."""

import numpy as np
import pytest

from pipeline import scan as module
from pipeline.scan import bad_rows, describe_bad_rows, scan
from pipeline.shards import open_shards
from tests.helpers import numbered, refused, write_shard


def shards_of(folder, *arrays):
    return open_shards([write_shard(folder / f"{i}.h5", rows) for i, rows in enumerate(arrays)])


def oracle(arrays):
    """Range and mean of the good rows in float64, and the bad rows' numbers, row by row."""
    rows = [row for rows in arrays for row in rows.astype(np.float64)]
    bad = [i for i, row in enumerate(rows) if not np.isfinite(row).all()]
    good = np.array([row for i, row in enumerate(rows) if i not in bad])
    return good.min(axis=0), good.max(axis=0), bad


def check(found, arrays):
    minimum, maximum, bad = oracle(arrays)
    assert (found.n_rows, found.n_good) == (sum(map(len, arrays)), sum(map(len, arrays)) - len(bad))
    assert {found.minimum.dtype, found.maximum.dtype} == {np.dtype(np.float64)}
    assert found.bad_rows.dtype == np.int64
    np.testing.assert_array_equal(found.minimum, minimum)
    np.testing.assert_array_equal(found.maximum, maximum)
    np.testing.assert_array_equal(found.bad_rows, bad)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("block_rows", [1, 2, 12, 13, 14])
@pytest.mark.parametrize("dtype", ["u1", "?", "i2", "f2", "f4", ">f8"])
def test_any_blocks_and_threads_give_numpys_ranges(tmp_path, dtype, block_rows, n_threads):
    values = np.random.default_rng(0).normal(0, 50, (13, 3)).astype(dtype)
    arrays = [values[:5], values[5:5], values[5:]]
    check(scan(shards_of(tmp_path, *arrays), block_rows, n_threads), arrays)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("block_rows", [1, 2, 4, 9])
def test_bad_rows_are_numbered_over_all_shards_and_left_out_of_the_ranges(tmp_path, block_rows, sign):
    arrays = [sign * numbered(4, 3, 1, np.float32), sign * numbered(5, 3, 5, np.float32)]
    arrays[0][0, 2] = np.nan
    arrays[0][3] = [np.inf, np.nan, -np.inf]
    arrays[1][4, 1] = -np.inf
    found = scan(shards_of(tmp_path, *arrays), block_rows, 2)
    assert found.bad_rows.tolist() == [0, 3, 8]
    check(found, arrays)


def test_many_blocks_share_a_task_and_count_on(tmp_path, monkeypatch):
    """Past the limit of tasks each takes several blocks; bad rows must keep their numbers."""
    monkeypatch.setattr(module, "_MAX_TASKS", 3)
    arrays = [numbered(11, dtype=np.float32), numbered(6, first=11, dtype=np.float32)]
    arrays[0][7], arrays[1][5] = np.nan, np.inf
    check(scan(shards_of(tmp_path, *arrays), 2, 2), arrays)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[np.iinfo(np.int64).min, np.iinfo(np.int64).max], [0, 0]]),
        np.array([[0, np.iinfo(np.uint64).max], [1, 2]], np.uint64),
        np.array([[-3e38, 1e-45], [3e38, 0]], np.float32),
        np.array([[-8e307, 5e-324], [8e307, -5e-324]]),
    ],
    ids=lambda rows: str(rows.dtype),
)
def test_the_widest_and_the_narrowest_ranges_come_through(tmp_path, rows):
    check(scan(shards_of(tmp_path, rows), 1, 1), [rows])


@pytest.mark.parametrize("block_rows", [1, 2])
def test_a_range_beyond_float64_is_refused_with_its_column(tmp_path, block_rows):
    shards = shards_of(tmp_path, np.array([[0, 1.7e308], [1, -1.7e308]]))
    with refused(65, "0.h5", "range of columns 1 is beyond float64"):
        scan(shards, block_rows, 1)


def test_constant_columns_are_known_and_logged(tmp_path, caplog):
    caplog.set_level("INFO", "pipeline")
    rows = np.zeros((5, 14))
    rows[:, 3] = range(5)
    found = scan(shards_of(tmp_path, rows + 7), 2, 1)
    assert np.flatnonzero(~found.constant).tolist() == [3]
    assert "13 constant columns become 0: 0, 1, 2, 4, 5, 6, 7, 8, 9, 10 and 3 more" in caplog.text


def test_without_a_good_row_there_is_nothing_to_scale_by(tmp_path):
    with refused(65, "no usable rows", "all 3 rows hold NaN or Inf", "0.h5"):
        scan(shards_of(tmp_path, np.full((2, 2), np.nan), np.full((1, 2), np.inf)), 1, 2)


def test_every_row_is_reported_once(tmp_path):
    counts = []
    scan(shards_of(tmp_path, numbered(7), numbered(4)), 3, 2, counts.append)
    assert sorted(counts) == [1, 1, 3, 3, 3]


def test_bad_rows_are_described_by_file_row_column_and_count(tmp_path):
    arrays = [numbered(3, dtype=np.float64), numbered(0, dtype=np.float64), numbered(4, dtype=np.float64)]
    arrays[2][1, 1], arrays[2][3] = -np.inf, np.nan
    shards = shards_of(tmp_path, *arrays)
    words = describe_bad_rows(shards, scan(shards, 2, 1))
    assert words.startswith(f"file={shards[2].path} dataset=X: -inf in row 1, column 1; 2 of 7 rows")


def test_integers_hold_no_bad_rows():
    assert bad_rows(numbered(3)).tolist() == []
    assert bad_rows(numbered(0, dtype=np.float32)).tolist() == []
