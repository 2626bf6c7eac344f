"""Tests of the scan: ranges and bad rows equal those of NumPy, for any blocks and threads."""

from itertools import product

import numpy as np
import pytest

from shardpress.scan.blocks import ScanSettings
from shardpress.scan.preview import preview_rows
from shardpress.scan.ranges import Scan, check_usable, readable
from shardpress.shards import digests
from shardpress.shards.open import open_shards
from tests.support.cases import case, each
from tests.support.damage import damage
from tests.support.helpers import numbered, refused, scanned, write_shard


def shards_of(folder, *arrays):
    return open_shards([write_shard(folder / f"{i}.h5", rows) for i, rows in enumerate(arrays)])


def check(found, arrays):
    rows = np.concatenate(arrays).astype(np.float64)
    is_good = np.isfinite(rows).all(axis=1)
    assert (found.n_rows, found.n_fitted) == (len(rows), is_good.sum())
    np.testing.assert_array_equal(found.minimum, rows[is_good].min(axis=0))
    np.testing.assert_array_equal(found.maximum, rows[is_good].max(axis=0))
    np.testing.assert_array_equal(found.bad_rows, np.flatnonzero(~is_good))


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


def test_columns_with_too_wide_or_narrow_ranges_are_refused(tmp_path):
    for rows in ([[0, 1.7e308], [1, -1.7e308]], [[0, 1], [5e-320, 1]]):
        shards = shards_of(tmp_path, np.array(rows, float))
        with case(rows), refused(65, f"file={shards[0].path}"):
            check_usable(shards, scanned(shards, 1, 1), ScanSettings(1))


def test_a_preview_of_some_rows_has_a_bounded_size(tmp_path):
    rows = numbered(1000, 4, dtype=np.float32)
    shards = shards_of(tmp_path, rows[:300], rows[300:310], rows[310:])
    check(preview_rows(shards, ScanSettings(16), 2, None), [rows])
    found = preview_rows(shards, ScanSettings(16), 2, 100 * rows[0].nbytes)
    assert 0 < found.n_rows <= 100


# -- columns with outliers ---------------------------------------------------------------------------------------


def test_scaling_does_not_depend_on_blocks_and_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "UNIT_ROWS", 1)  # otherwise the digests of the rows would depend on the blocks
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
        for block_rows, n_threads in ((7, 3), (33, 2), (9999, 1)):
            with case(scale=scale, block_rows=block_rows, n_threads=n_threads):
                assert scanned(shards, block_rows, n_threads, scale=scale).to_npz() == found


def test_few_rows_have_no_columns_with_outliers(tmp_path):
    """The central values of few rows span the range. Of 4 rows, the two in the middle are often close together."""
    rows = np.random.default_rng(0).random((11, 500))
    for n_rows in range(1, 12):
        folder = tmp_path / str(n_rows)
        folder.mkdir()
        with case(n_rows):
            assert not scanned(shards_of(folder, rows[:n_rows]), 100).narrow.size


# -- missing values ----------------------------------------------------------------------------------------------


@each(
    "dtype, missing, stored",
    [
        ("f2", -9999, -10000),  # the nearest number in 16 bits
        (">f4", -999.9, -999.9),
        (">i2", -9999, -9999),
        ("i8", 2**63 - 1, 2**63 - 1),  # no float64 equals that number
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


@each(
    "dtype, missing, values",
    [
        ("u1", -1, [0, 255]),
        ("u1", 0.5, [0, 1]),
        ("i8", 2**63, [-(2**63), 2**63 - 1]),
        ("f2", 70000, [65504]),
        ("f4", -1e-99, [0, -0.0]),
        ("?", 2, [False, True]),
    ],
)
def test_a_missing_value_outside_the_dtype_is_never_found(tmp_path, dtype, missing, values):
    """The missing value is neither wrapped around, nor rounded to 0 or Inf."""
    (shard,) = shards_of(tmp_path, np.array(values, dtype)[:, None])
    assert scanned([shard], 2, 1, missing=missing).bad_rows.tolist() == []


# -- imputation and clipping -------------------------------------------------------------------------------------


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


@each("seed", range(6))
def test_unreadable_shards_count_as_bad_rows_or_are_dropped(tmp_path, seed):
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
            assert Scan.from_npz(found.to_npz()).unreadable == found.unreadable
    remaining, found = readable(shards, found)
    assert remaining == tuple(shard for i, shard in enumerate(shards) if i not in bad)
    check(found, [rows for i, rows in enumerate(arrays) if i not in bad])
    assert not found.unreadable


# -- selected rows ----------------------------------------------------------------------------------------------


def test_ranges_of_selected_rows_are_those_of_a_file_with_these_rows(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 50, (40, 3)).astype(np.float32)
    values[::7, 1] = np.nan
    values[11] = np.inf
    is_fitted = rng.random(40) < 0.5
    is_fitted[20:28] = False
    *shards, selected = shards_of(tmp_path, values[:9], values[9:9], values[9:], values[is_fitted])
    settings = {"impute": "median", "scale": "std", "missing_indicator": True}
    expected = scanned([selected], 100, **settings)
    for block_rows, n_threads in product((1, 3, 8, 50), (1, 3)):
        with case(block_rows=block_rows, n_threads=n_threads):
            found = scanned(shards, block_rows, n_threads, fitted=is_fitted, **settings)
            found = Scan.from_npz(found.to_npz())
            assert (found.n_rows, found.bad_rows.tolist()) == (40, [11])
            assert found.n_fitted == expected.n_fitted
            for name in ("spread", "inner", "n_missing"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            for name, value in vars(expected.scaler).items():
                np.testing.assert_array_equal(getattr(found.scaler, name), value, name)
