"""Tests of the scan: ranges and bad rows equal those of NumPy, for any blocks and threads."""

from itertools import product

import numpy as np
import pytest

from shardpress.formats import pack
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import Scan, check_usable, describe_bad_rows, readable
from shardpress.scan.scaler import bad_entries, bad_rows
from shardpress.shards.open import open_shards
from tests.support.cases import case, each
from tests.support.damage import damage
from tests.support.helpers import numbered, refused, scanned, write_shard
from tests.support.logged import mentions

SETTINGS = ScanSettings(1)


def shards_of(folder, *arrays):
    return open_shards([write_shard(folder / f"{i}.h5", rows) for i, rows in enumerate(arrays)])


def slow_scan(arrays):
    """Return the minimum and maximum of the good rows in float64, and the numbers of the bad rows."""
    rows = [row for rows in arrays for row in rows.astype(np.float64)]
    bad = [i for i, row in enumerate(rows) if not np.isfinite(row).all()]
    good = np.array([row for i, row in enumerate(rows) if i not in bad])
    return good.min(axis=0), good.max(axis=0), bad


def check(found, arrays):
    minimum, maximum, bad = slow_scan(arrays)
    assert (found.n_rows, found.n_fitted) == (sum(map(len, arrays)), sum(map(len, arrays)) - len(bad))
    assert {found.minimum.dtype, found.maximum.dtype} == {np.dtype(np.float64)}
    assert found.bad_rows.dtype == np.int64
    np.testing.assert_array_equal(found.minimum, minimum)
    np.testing.assert_array_equal(found.maximum, maximum)
    np.testing.assert_array_equal(found.bad_rows, bad)


def assert_same_scaling(found, expected):
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, name)


@pytest.mark.process
@each("dtype", ["u1", "?", "i2", "f2", "f4", ">f8"])
def test_ranges_equal_numpy_for_any_blocks_and_threads(tmp_path, dtype):
    values = np.random.default_rng(0).normal(0, 50, (13, 3)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        values[0, 2] = np.nan
        values[3] = [np.inf, np.nan, -np.inf]
        values[12, 1] = -np.inf
    arrays = [values[:5], values[5:5], values[5:]]
    shards = shards_of(tmp_path, *arrays)
    for block_rows, n_threads in product((1, 2, 12, 13, 14), (1, 3)):
        with case(block_rows=block_rows, n_threads=n_threads):
            counts = []
            check(scanned(shards, block_rows, n_threads, counts.append), arrays)
            assert sum(counts) == 13


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
def test_extreme_ranges_are_exact(tmp_path, rows):
    check(scanned(shards_of(tmp_path, rows), 1, 1), [rows])


def test_unusable_rows_are_refused(tmp_path):
    cases = [
        ([[0, 1.7e308], [1, -1.7e308]], {}, ("columns 1", "float64")),
        ([[np.nan, 1], [1, np.inf]], {}, ("2 rows",)),
        ([[9, 9], [9, 1]], {"missing": 9}, ("2 rows", "NaN, Inf or 9")),
        ([[3, 3], [np.nan, 1]], {}, ("1 usable row",)),
        ([[3, 3], [3, 3]], {}, ("equal",)),
        ([[0, 1], [5e-320, 1]], {}, ("too narrow",)),
    ]
    for rows, settings, words in cases:
        shards = shards_of(tmp_path, np.array(rows, float))
        with case(rows), refused(65, f"file={shards[0].path}", *words):
            check_usable(shards, scanned(shards, 1, 1, **settings), ScanSettings(1, **settings))


def test_useless_columns_are_logged(tmp_path, caplog):
    caplog.set_level("INFO", "shardpress")
    rows = np.zeros((5, 14))
    rows[:, 3] = range(5)
    rows[:, 13] = np.arange(5) * 1e-320
    shards = shards_of(tmp_path, rows)
    found = scanned(shards, 2, 1)
    assert np.flatnonzero(~found.constant).tolist() == [3, 13]
    check_usable(shards, found, SETTINGS)
    assert mentions(caplog.text, "12 constant columns", "0, 1, 2, 4, 5, 6, 7, 8, 9, 10", 2)
    assert mentions(caplog.text, "WARNING", "1 column", "float64: 13.")


# -- columns with outliers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("units_of_one_row")
def test_scaling_does_not_depend_on_blocks_and_threads(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 6)) * [1, 1e3, 1e-9, 1, 1, 0] + [0, 1e9, 0, 5, 0, 3]
    rows[17, 3] = 5000
    rows[18, 1] = 1e12
    rows[40, 0] = np.nan
    rows[:, 4] = 0  # a count that is rarely above 0
    rows[::12, 4] = np.arange(167)
    shards = shards_of(tmp_path, rows[:777], rows[777:])
    assert scanned(shards, 100).narrow.tolist() == [1, 3], "the narrowest first"
    for scale in ("auto", "std", "common"):
        found = scanned(shards, 100, scale=scale).to_npz()
        for block_rows, n_threads in ((1, 3), (33, 2), (9999, 1)):
            with case(scale=scale, block_rows=block_rows, n_threads=n_threads):
                assert scanned(shards, block_rows, n_threads, scale=scale).to_npz() == found


def test_one_outlier_of_few_rows_makes_a_narrow_column(tmp_path):
    for n in (10, 50, 2000):
        rows = np.random.default_rng(0).normal(size=(n, 3))
        rows[n // 2, 1] = -1e4
        assert scanned(shards_of(tmp_path, rows), 64, 2).narrow.tolist() == [1]


# -- missing values ----------------------------------------------------------------------------------------------


@each(
    "dtype, missing, stored",
    [
        ("f2", -9999, -10000),  # the nearest number in 16 bits
        (">f4", -999.9, -999.9),
        ("f8", 1e300, 1e300),
        ("u1", 255, 255),
        (">i2", -9999, -9999),
        ("i8", 2**63 - 1, 2**63 - 1),  # no float64 equals that number
        ("i8", -(2**63), -(2**63)),
        ("u8", 2**64 - 1, 2**64 - 1),
        ("f4", 0, -0.0),
        ("?", 1, 1),
    ],
)
def test_a_missing_value_is_found_in_the_dtype_of_its_file(tmp_path, dtype, missing, stored):
    rows = np.random.default_rng(0).integers(2, 100, (7, 3)).astype(dtype) if dtype != "?" else np.zeros((7, 3), "?")
    rows[2, 0] = rows[5] = stored
    (shard,) = shards_of(tmp_path, rows)
    good = np.delete(rows, [2, 5], axis=0)
    for block_rows in (1, 3, 100):
        with case(block_rows=block_rows):
            found = scanned([shard], block_rows, 2, missing=missing)
            assert (found.bad_rows.tolist(), found.n_fitted) == ([2, 5], 5)
            np.testing.assert_array_equal((found.minimum, found.maximum), (good.min(axis=0), good.max(axis=0)))
            assert mentions(describe_bad_rows([shard], found, ScanSettings(1, missing)), "2 of 7", missing)


@each(
    "dtype, missing, values",
    [
        ("u1", -1, [0, 255]),
        ("u1", 256, [0]),
        ("u1", 0.5, [0, 1]),
        ("i2", 40000, [40000 - 2**16, 2**15 - 1]),
        ("i8", 2**63, [-(2**63), 2**63 - 1]),
        ("u8", 2**64, [0, 2**64 - 1]),
        ("u8", -1, [2**64 - 1]),
        ("f2", 70000, [65504]),
        ("f2", 1e-30, [0]),
        ("f4", 1e300, [3e38]),
        ("f4", -1e-99, [0, -0.0]),
        ("?", 2, [False, True]),
    ],
)
def test_a_missing_value_outside_the_dtype_is_never_found(tmp_path, dtype, missing, values):
    """The missing value is neither wrapped around, nor rounded to 0 or Inf."""
    (shard,) = shards_of(tmp_path, np.array(values, dtype)[:, None])
    assert scanned([shard], 2, 1, missing=missing).bad_rows.tolist() == []


def test_nan_and_the_missing_value_are_both_bad():
    rows = np.array([[1, 2], [np.nan, 2], [-1, np.inf], [3, -1]], np.float32)
    assert bad_entries(rows, -1).tolist() == [[False, False], [True, False], [True, True], [False, True]]
    assert bad_rows(rows, -1).tolist() == [1, 2, 3]


# -- imputation and clipping -------------------------------------------------------------------------------------


def rows_with_gaps(rng, n, dtype, missing):
    """Return rows with a third of the values missing, and the bad rows: those without values, and one with Inf."""
    rows = (100 * rng.standard_normal((n, 5))).astype(dtype)
    rows[:, 4] = missing
    rows[rng.random(rows.shape) < 0.3] = missing
    rows[5] = missing
    bad = [i for i, row in enumerate(rows) if all(is_gap(value, missing) for value in row)]
    if dtype[0] == "f":
        rows[9, 2] = np.inf
        bad = sorted({*bad, 9})
    return rows, bad


def is_gap(value, missing):
    return np.isnan(value) or float(value) == missing


@pytest.mark.process
@each("dtype, missing", [("f4", np.nan), ("f4", -7), ("f8", np.nan), ("i2", -7), ("i8", -7)])
@pytest.mark.usefixtures("units_of_one_row")
def test_imputed_values_equal_the_mean_or_median(tmp_path, dtype, missing):
    rows, bad = rows_with_gaps(np.random.default_rng(0), 97, dtype, missing)
    shards = shards_of(tmp_path, rows[:40], rows[40:])
    good = np.delete(rows, bad, axis=0)
    for impute, average in (("mean", np.mean), ("median", np.median)):
        options = {"impute": impute, "missing": None if np.isnan(missing) else missing}
        found = scanned(shards, 1000, 1, **options)
        assert (found.bad_rows.tolist(), found.scaler.clips) == (bad, False)
        for column, values in enumerate(good.T):
            present = np.array([float(value) for value in values if not is_gap(value, missing)])
            assert found.n_missing[column] == len(values) - len(present)
            if not len(present):
                assert (found.minimum[column], found.maximum[column], found.scaler.fill[column]) == (0, 0, 0)
                continue
            assert (found.minimum[column], found.maximum[column]) == (present.min(), present.max())
            fill = found.scaler.fill[column]
            np.testing.assert_allclose(fill, average(present), atol=0.5 if dtype[0] == "i" else 1e-4)
            assert fill == np.array(fill).astype(dtype)
        clipped = scanned(shards, 9, 1, **options, clip_quantile=0.1)
        for block_rows, n_threads in ((1, 3), (7, 2), (40, 2)):
            with case(impute=impute, block_rows=block_rows, n_threads=n_threads):
                assert scanned(shards, block_rows, n_threads, **options).to_npz() == found.to_npz()
                again = scanned(shards, block_rows, n_threads, **options, clip_quantile=0.1)
                assert again.to_npz() == clipped.to_npz()


def test_clipped_ranges_are_quantiles_and_contain_the_fill(tmp_path):
    rows = np.random.default_rng(0).standard_cauchy((2001, 4)).astype(np.float32)
    rows[:, 2] = rows[:, 2] > 50  # nearly always 0
    rows[::7, 3] = np.nan
    shards = shards_of(tmp_path, rows)
    for q in (0.001, 0.01, 0.4):
        found = scanned(shards, 100, 2, clip_quantile=q, impute="mean")
        assert found.scaler.clips
        for column in (0, 1, 3):
            values = rows[~np.isnan(rows[:, column]), column]
            low = np.quantile(values, q, method="lower")
            assert (found.minimum[column], found.maximum[column]) == (low, -np.quantile(-values, q, method="lower"))
            clipped = np.clip(values.astype(float), found.minimum[column], found.maximum[column])
            np.testing.assert_allclose(found.scaler.fill[column], clipped.mean(), rtol=1e-4)
        assert (found.minimum[2], found.maximum[2]) == (0, 1), "the range is complete if nearly all values are equal"


# -- shards that cannot be read ----------------------------------------------------------------------------------


def random_shards(folder, rng, options):
    """Return shards of random sizes (some with NaN, some damaged), their rows, and the indices of the damaged ones."""
    sizes = rng.integers(0, 12, 6)
    arrays = [numbered(size, first=sum(sizes[:i]), dtype=np.float32) for i, size in enumerate(sizes)]
    for rows in arrays:
        rows[rng.random(len(rows)) < 0.2, rng.integers(2)] = np.nan
    names = [
        write_shard(folder / f"{i}.h5", rows, chunks=(2, 2), maxshape=(None, 2), **options)
        for i, rows in enumerate(arrays)
    ]
    bad = [i for i in range(len(arrays)) if len(arrays[i]) and rng.random() < 0.4]
    for i in bad:
        damage(names[i], chunk=int(rng.integers(-(-len(arrays[i]) // 2))))
    return open_shards(names), arrays, bad


@each("seed", range(8))
def test_unreadable_shards_count_as_bad_rows_for_any_blocks(tmp_path, seed):
    options = {"compression": "gzip"} if seed % 2 else {"fletcher32": True}
    shards, arrays, bad = random_shards(tmp_path, np.random.default_rng(seed), options)
    expected_arrays = [np.full_like(rows, np.nan) if i in bad else rows for i, rows in enumerate(arrays)]
    for block_rows, n_threads in ((1, 1), (2, 3), (3, 2), (100, 2)):
        counts = []
        with case(block_rows=block_rows):
            found = scanned(shards, block_rows, n_threads, counts.append, max_unreadable=6)
            check(found, expected_arrays)
            assert list(found.unreadable) == bad
            assert [i for i, digest in enumerate(found.digests) if digest is None] == bad
            assert all(f"file={shards[i].path} dataset=X rows=" in why for i, why in found.unreadable.items())
            assert sum(counts) == found.n_rows, "each row is reported once, although some are read twice"


@each("seed", range(8))
def test_a_scan_can_drop_its_unreadable_shards(tmp_path, seed):
    shards, arrays, bad = random_shards(tmp_path, np.random.default_rng(seed), {"fletcher32": True})
    remaining, found = readable(shards, scanned(shards, 2, 2, max_unreadable=6))
    assert remaining == tuple(shard for i, shard in enumerate(shards) if i not in bad)
    check(found, [rows for i, rows in enumerate(arrays) if i not in bad])
    assert not found.unreadable
    again, same = readable(remaining, found)
    assert (again, same) == (remaining, found)


def damaged_shards(folder, n_bad, n_good=3):
    shards = [write_shard(folder / f"{i}.h5", numbered(4), fletcher32=True, chunks=(2, 2)) for i in range(n_good + 2)]
    for path in shards[:n_bad]:
        damage(path)
    return open_shards(shards)


def test_bad_rows_and_shards_are_described_by_place_and_count(tmp_path):
    shards = damaged_shards(tmp_path, 2)
    words = describe_bad_rows(shards, scanned(shards, 3, 1, max_unreadable=2), SETTINGS)
    assert words.startswith(f"file={shards[0].path} dataset=X rows=0:3")
    assert mentions(words, "8 of 20", 2)
    arrays = [numbered(size, dtype=np.float64) for size in (3, 0, 4)]
    arrays[2][1, 1] = -np.inf
    arrays[2][3] = np.nan
    shards = shards_of(tmp_path, *arrays)
    words = describe_bad_rows(shards, scanned(shards, 2, 1), SETTINGS)
    assert mentions(words, f"file={shards[2].path} dataset=X", "-inf", "row 1, column 1", "2 of 7")


# -- the file of a scan ------------------------------------------------------------------------------------------


def test_a_scan_is_restored_from_its_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[3, 1] = np.nan
    of_gaps = scanned(shards_of(tmp_path, rows), 10, impute="median", clip_quantile=0.1, missing_indicator=True)
    assert of_gaps.summary() == {"scale": "range", "narrow_columns": {}, "filled": {1: 1}}
    for found in (of_gaps, scanned(damaged_shards(tmp_path, 2), 3, 1, max_unreadable=2)):
        again = Scan.from_npz(found.to_npz())
        assert again.to_npz() == found.to_npz()
        assert again.unreadable == found.unreadable
        assert_same_scaling(again.scaler, found.scaler)


@pytest.mark.parametrize(
    "data",
    [b"", b"text", pack({}, {}), pack({"minimum": np.zeros(2)}, {"n_rows": 1, "unreadable": []})],
    ids=["empty", "text", "nothing", "half"],
)
def test_invalid_scans_are_refused(data):
    with pytest.raises(ValueError, match=r"\b(shardpress|scan)\b"):
        Scan.from_npz(data)


# -- selected rows ----------------------------------------------------------------------------------------------


def test_ranges_of_selected_rows_are_those_of_a_file_with_these_rows(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 50, (40, 3)).astype(np.float32)
    values[::7, 1] = np.nan
    values[11] = np.inf
    is_fitted = rng.random(40) < 0.5
    is_fitted[20:28] = False
    folders = [tmp_path / name for name in ("all", "selected")]
    for folder in folders:
        folder.mkdir()
    shards = shards_of(folders[0], values[:9], values[9:9], values[9:])
    selected = shards_of(folders[1], values[is_fitted])
    settings = {"impute": "median", "scale": "std", "missing_indicator": True}
    expected = scanned(selected, 100, **settings)
    for block_rows, n_threads in product((1, 3, 8, 50), (1, 3)):
        with case(block_rows=block_rows, n_threads=n_threads):
            found = scanned(shards, block_rows, n_threads, fitted=is_fitted, **settings)
            found = Scan.from_npz(found.to_npz())
            assert (found.n_rows, found.bad_rows.tolist()) == (40, [11])
            assert found.n_fitted == expected.n_fitted
            for name in ("spread", "inner", "n_missing"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert_same_scaling(found.scaler, expected.scaler)


@pytest.mark.process
def test_hints_judge_the_selected_rows_unless_most_are_bad(tmp_path):
    rows = np.random.default_rng(0).normal(size=(400, 7)).astype(np.float32)
    rows[:150, 3] = np.nan
    shards = shards_of(tmp_path, rows[:60], rows[60:])
    for stop, words in ((290, "150 of 290 rows"), (310, "--n-features 6"), (400, "--n-features 6")):
        with case(stop):
            (hint,) = scanned(shards, 50, 2, fitted=np.arange(400) < stop).hints
            assert words in hint
