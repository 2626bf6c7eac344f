"""Tests of the scan: ranges and bad rows equal those of NumPy, for any blocks and threads."""

import errno
import io
from itertools import product

import numpy as np
import pytest

from shardpress.cluster.executor import reduce
from shardpress.formats import pack
from shardpress.hdf5.files import FILES
from shardpress.scan import ranges as module
from shardpress.scan.blocks import Piece, ScanSettings, merge_stats, scan_pieces
from shardpress.scan.ranges import Scan, check_usable, describe_bad_rows, readable
from shardpress.scan.scaler import bad_entries, bad_rows
from shardpress.shards.open import open_shards
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.fresh_process import run_in_fresh_process
from tests.support.helpers import blocks, numbered, refused, scanned, write_shard
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


@pytest.mark.process
@pytest.mark.parametrize("dtype", ["u1", "?", "i2", "f2", "f4", ">f8"])
def test_ranges_equal_numpy_for_any_blocks_and_threads(tmp_path, dtype):
    values = np.random.default_rng(0).normal(0, 50, (13, 3)).astype(dtype)
    arrays = [values[:5], values[5:5], values[5:]]
    shards = shards_of(tmp_path, *arrays)
    for block_rows, n_threads in product((1, 2, 12, 13, 14), (1, 3)):
        with case(block_rows=block_rows, n_threads=n_threads):
            check(scanned(shards, block_rows, n_threads), arrays)


@pytest.mark.parametrize("sign", [1, -1])
def test_bad_rows_are_numbered_globally_and_left_out_of_ranges(tmp_path, sign):
    arrays = [sign * numbered(4, 3, 1, np.float32), sign * numbered(5, 3, 5, np.float32)]
    arrays[0][0, 2] = np.nan
    arrays[0][3] = [np.inf, np.nan, -np.inf]
    arrays[1][4, 1] = -np.inf
    shards = shards_of(tmp_path, *arrays)
    for block_rows in (1, 2, 4, 9):
        with case(block_rows=block_rows):
            found = scanned(shards, block_rows, 2)
            assert found.bad_rows.tolist() == [0, 3, 8]
            check(found, arrays)


def test_bad_rows_keep_their_numbers_if_blocks_share_a_task(tmp_path, monkeypatch):
    """Above the maximum number of tasks, each task has several blocks."""
    monkeypatch.setattr(module, "_MAX_TASKS", 3)
    arrays = [numbered(11, dtype=np.float32), numbered(6, first=11, dtype=np.float32)]
    arrays[0][7] = np.nan
    arrays[1][5] = np.inf
    check(scanned(shards_of(tmp_path, *arrays), 2, 2), arrays)


def test_results_of_a_task_do_not_depend_on_later_blocks(tmp_path):
    """Blocks reuse the same memory, and files of one task may have different dtypes."""
    arrays = [numbered(5, dtype=np.float64), numbered(7, first=5, dtype=np.float32), numbered(3, first=12, dtype="u1")]
    arrays[1][2] = np.nan
    shards = shards_of(tmp_path, *arrays)
    firsts = (0, 5, 12)
    pieces = [Piece(i, firsts[i], block) for i, shard in enumerate(shards) for block in blocks([shard], 2)]
    joint = scan_pieces(ScanSettings(2), 1, pieces)
    separate = merge_stats([scan_pieces(ScanSettings(2), 1, [piece]) for piece in pieces])
    for name in ("minimum", "maximum", "bad_rows", "sample"):
        np.testing.assert_array_equal(getattr(joint, name), getattr(separate, name), name)
    np.testing.assert_array_equal(joint.sample, np.delete(np.concatenate(arrays), 7, axis=0))


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


@pytest.mark.parametrize("block_rows", [1, 2])
def test_error_about_a_range_that_overflows_names_the_column(tmp_path, block_rows):
    shards = shards_of(tmp_path, np.array([[0, 1.7e308], [1, -1.7e308]]))
    with refused(65, f"file={tmp_path / '0.h5'}", "columns 1", "float64"):
        check_usable(shards, scanned(shards, block_rows, 1), SETTINGS)


def test_constant_columns_are_found_and_logged(tmp_path, caplog):
    caplog.set_level("INFO", "shardpress")
    rows = np.zeros((5, 14))
    rows[:, 3] = range(5)
    shards = shards_of(tmp_path, rows + 7)
    found = scanned(shards, 2, 1)
    assert np.flatnonzero(~found.constant).tolist() == [3]
    check_usable(shards, found, SETTINGS)
    assert mentions(caplog.text, "13 constant columns", "0, 1, 2, 4, 5, 6, 7, 8, 9, 10", 3)


def test_columns_that_are_too_narrow_to_be_scaled_are_logged(tmp_path, caplog):
    rows = numbered(5, dtype=np.float64)
    rows[:, 1] *= 1e-320
    shards = shards_of(tmp_path, rows)
    check_usable(shards, scanned(shards, 2, 1), SETTINGS)
    assert mentions(caplog.text, "WARNING", "1 column", "float64: 1.")
    shards = shards_of(tmp_path, rows * 1e-320)
    with refused(65, str(shards[0]), "too narrow"):
        check_usable(shards, scanned(shards, 2, 1), SETTINGS)


def test_rows_that_are_all_bad_are_refused(tmp_path):
    shards = shards_of(tmp_path, np.full((2, 2), np.nan), np.full((1, 2), np.inf))
    with refused(65, "3 rows", f"file={shards[0].path}"):
        check_usable(shards, scanned(shards, 1, 2), SETTINGS)


def test_every_row_is_reported_once(tmp_path):
    counts = []
    scanned(shards_of(tmp_path, numbered(7), numbered(4)), 3, 2, counts.append)
    assert sorted(counts) == [1, 1, 3, 3, 3]


def test_bad_rows_are_described_by_place_and_count(tmp_path):
    arrays = [numbered(3, dtype=np.float64), numbered(0, dtype=np.float64), numbered(4, dtype=np.float64)]
    arrays[2][1, 1] = -np.inf
    arrays[2][3] = np.nan
    shards = shards_of(tmp_path, *arrays)
    words = describe_bad_rows(shards, scanned(shards, 2, 1), SETTINGS)
    assert mentions(words, f"file={shards[2].path} dataset=X", "-inf", "row 1, column 1", "2 of 7")


def test_integers_hold_no_bad_rows():
    assert bad_rows(numbered(3)).tolist() == []
    assert bad_rows(numbered(0, dtype=np.float32)).tolist() == []


# -- columns with outliers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("units_of_one_row")
def test_the_spread_does_not_depend_on_blocks_and_threads(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5000, 4)) * [1, 1e3, 1e-9, 1] + [0, 1e9, 0, 5]
    rows[17, 3] = 5000
    rows[40, 0] = np.nan
    shards = shards_of(tmp_path, rows[:1777], rows[1777:])
    found = scanned(shards, 100)
    good = np.delete(rows, 40, axis=0)
    np.testing.assert_allclose(found.spread[:3], (good.std(axis=0) / np.ptp(good, axis=0))[:3], rtol=0.02)
    assert found.narrow.tolist() == [3]
    for block_rows, n_threads in ((1, 3), (33, 2), (9999, 1)):
        assert scanned(shards, block_rows, n_threads).to_npz() == found.to_npz()


def test_narrow_columns_are_ordered_and_not_nearly_constant(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30000, 6))
    rows[5, [1, 3]] = 1e3, 1e6
    rows[:, 4] = 0  # a count that is rarely above 0
    rows[::12, 4] = np.arange(2500)
    rows[:, 5] = 3
    assert scanned(shards_of(tmp_path, rows), 4096, 2).narrow.tolist() == [3, 1]


@pytest.mark.parametrize("n", [10, 50, 2000])
def test_one_outlier_of_few_rows_makes_a_narrow_column(tmp_path, n):
    rows = np.random.default_rng(0).normal(size=(n, 3))
    rows[n // 2, 1] = -1e4
    assert scanned(shards_of(tmp_path, rows), 64, 2).narrow.tolist() == [1]


# -- missing values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "missing", "stored"),
    [
        ("f2", -9999, -10000),  # the nearest number in 16 bits
        ("f2", -999.9, -1000),
        ("f4", -999.9, -999.9),
        (">f4", -999.9, -999.9),
        ("f8", -999.9, -999.9),
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


@pytest.mark.parametrize(
    ("dtype", "missing"),
    [
        *[("u1", value) for value in (-9999, -1, 256, 0.5)],
        *[("i2", value) for value in (40000, -40000)],
        *[("i8", value) for value in (2**63, -(2**63) - 1)],
        *[("u8", value) for value in (2**64, -1)],
        *[("f2", value) for value in (70000, -1e300, 1e-30)],
        *[("f4", value) for value in (1e300, 1e-99, -1e-99)],
        ("?", 2),
    ],
)
def test_a_missing_value_outside_the_dtype_is_never_found(tmp_path, dtype, missing):
    """The missing value is neither wrapped around, nor rounded to 0 or Inf."""
    wrapped = [int(missing) % 2**bits for bits in (8, 16, 64) if float(missing).is_integer()]
    values = [0, 1, *(value for value in (-1, 241, 0x7FFF, *wrapped) if dtype != "?" and _fits(value, dtype))]
    (shard,) = shards_of(tmp_path, np.array(values, dtype=object).astype(dtype)[:, None])
    assert scanned([shard], 2, 1, missing=missing).bad_rows.tolist() == []


def _fits(value, dtype):
    if dtype[0] in "iu":
        return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    return abs(value) <= float(np.finfo(dtype).max)


def test_nan_and_the_missing_value_are_both_bad():
    rows = np.array([[1, 2], [np.nan, 2], [-1, np.inf], [3, -1]], np.float32)
    assert bad_entries(rows, -1).tolist() == [[False, False], [True, False], [True, True], [False, True]]
    assert bad_rows(rows, -1).tolist() == [1, 2, 3]


def test_rows_that_are_all_missing_are_refused(tmp_path):
    shards = shards_of(tmp_path, np.full((3, 2), 9, np.uint8))
    with refused(65, "3 rows", "NaN, Inf or 9"):
        check_usable(shards, scanned(shards, 2, 1, missing=9), ScanSettings(1, 9))


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
@pytest.mark.parametrize(("dtype", "missing"), [("f4", np.nan), ("f4", -7), ("f8", np.nan), ("i2", -7), ("i8", -7)])
@pytest.mark.parametrize("impute", ["mean", "median"])
@pytest.mark.usefixtures("units_of_one_row")
def test_imputed_values_equal_the_mean_or_median(tmp_path, dtype, missing, impute):
    rows, bad = rows_with_gaps(np.random.default_rng(0), 97, dtype, missing)
    shards = shards_of(tmp_path, rows[:40], rows[40:])
    options = {"impute": impute, "missing": None if np.isnan(missing) else missing, "clip_quantile": 0.0}
    found = scanned(shards, 1000, 1, **options)
    assert (found.bad_rows.tolist(), found.clips) == (bad, False)
    good = np.delete(rows, bad, axis=0)
    for column, values in enumerate(good.T):
        present = np.array([float(value) for value in values if not is_gap(value, missing)])
        assert found.n_missing[column] == len(values) - len(present)
        if not len(present):
            assert (found.minimum[column], found.maximum[column], found.fill[column]) == (0, 0, 0)
            continue
        assert (found.minimum[column], found.maximum[column]) == (present.min(), present.max())
        fill = present.mean() if impute == "mean" else np.median(present)
        atol = 0.5 if dtype[0] == "i" else 1e-4
        np.testing.assert_allclose(found.fill[column], fill, atol=atol)
        assert found.fill[column] == np.array(found.fill[column]).astype(dtype)
    for block_rows, n_threads in ((1, 3), (2, 1), (7, 2), (40, 2)):
        with case(block_rows=block_rows, n_threads=n_threads):
            assert scanned(shards, block_rows, n_threads, **options).to_npz() == found.to_npz()
            clipped = {**options, "clip_quantile": 0.1}
            assert scanned(shards, block_rows, 2, **clipped).to_npz() == scanned(shards, 9, 1, **clipped).to_npz()


def test_clipped_ranges_are_quantiles_and_contain_the_fill(tmp_path):
    rows = np.random.default_rng(0).standard_cauchy((2001, 4)).astype(np.float32)
    rows[:, 2] = rows[:, 2] > 50  # nearly always 0
    rows[::7, 3] = np.nan
    shards = shards_of(tmp_path, rows)
    for q in (0.001, 0.01, 0.4):
        found = scanned(shards, 100, 2, clip_quantile=q, impute="mean")
        assert found.clips
        for column in (0, 1, 3):
            values = rows[~np.isnan(rows[:, column]), column]
            low = np.quantile(values, q, method="lower")
            assert (found.minimum[column], found.maximum[column]) == (low, -np.quantile(-values, q, method="lower"))
            clipped = np.clip(values.astype(float), found.minimum[column], found.maximum[column])
            np.testing.assert_allclose(found.fill[column], clipped.mean(), rtol=1e-4)
        assert (found.minimum[2], found.maximum[2]) == (0, 1), "the range is complete if nearly all values are equal"


def test_quantiles_of_a_sample_are_within_five_standard_errors(tmp_path, monkeypatch):
    """The limit is five standard errors of the rank, for sorted, periodic and random columns."""
    monkeypatch.setattr(module, "SAMPLED_VALUES", 3 * 2000)
    n = 100_000
    q = 0.02
    values = np.arange(n) / n
    rows = np.stack([values, (values * 16) % 1, np.random.default_rng(0).permutation(values)], axis=1)
    found = scanned(shards_of(tmp_path, rows), 5000, 2, clip_quantile=q)
    error = 5 * np.sqrt(q * (1 - q) / 2000) + 1 / 2000
    np.testing.assert_allclose(found.minimum, q, atol=error)
    np.testing.assert_allclose(found.maximum, 1 - q, atol=error)


def test_a_scan_with_imputation_is_restored_from_its_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    rows[3, 1] = np.nan
    found = scanned(shards_of(tmp_path, rows), 10, impute="median", clip_quantile=0.1)
    again = Scan.from_npz(found.to_npz())
    assert again.to_npz() == found.to_npz()
    assert again.scaler.clips
    np.testing.assert_array_equal(again.scaler.fill, found.fill)
    assert again.summary() == {"scale": "range", "narrow_columns": {}, "filled": {1: 1}}


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


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_unreadable_shards_count_as_bad_rows_for_any_blocks(tmp_path, options):
    for seed in range(8):
        shards, arrays, bad = random_shards(tmp_path, np.random.default_rng(seed), options)
        expected_arrays = [np.full_like(rows, np.nan) if i in bad else rows for i, rows in enumerate(arrays)]
        for block_rows, n_threads in ((1, 1), (2, 3), (3, 2), (100, 2)):
            counts = []
            with case(seed=seed, block_rows=block_rows):
                found = scanned(shards, block_rows, n_threads, counts.append, max_unreadable=6)
                check(found, expected_arrays)
                assert list(found.unreadable) == bad
                assert [i for i, digest in enumerate(found.digests) if digest is None] == bad
                assert all(f"file={shards[i].path} dataset=X rows=" in why for i, why in found.unreadable.items())
                assert sum(counts) == found.n_rows, "each row is reported once, although some are read twice"


def test_a_scan_can_drop_its_unreadable_shards(tmp_path):
    for seed in range(8):
        with case(seed=seed):
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


@pytest.mark.parametrize(("n_bad", "limit"), [(1, 0), (2, 1)])
def test_too_many_unreadable_shards_are_refused(tmp_path, n_bad, limit):
    shards = damaged_shards(tmp_path, n_bad)
    with refused(65, *(f"{i}.h5" for i in range(n_bad)), f"--max-bad {20 * n_bad}%"):
        scanned(shards, 3, 1, max_unreadable=limit)
    assert len(scanned(shards, 3, 1, max_unreadable=n_bad).unreadable) == n_bad


def test_the_error_about_an_unreadable_shard_names_its_rows(tmp_path):
    with refused(65, "0.h5 dataset=X rows=0:3"):
        scanned(damaged_shards(tmp_path, 1), 3, 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_never_bad_data(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, "broken")

    shards = damaged_shards(tmp_path, 0)
    monkeypatch.setattr(FILES, "preadv", fail)
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    with refused(74, "dataset=X rows=", "broken"):
        scanned(shards, 3, 1, max_unreadable=5)


def test_an_unreadable_shard_is_described_by_its_error(tmp_path):
    shards = damaged_shards(tmp_path, 2)
    words = describe_bad_rows(shards, scanned(shards, 3, 1, max_unreadable=2), SETTINGS)
    assert words.startswith(f"file={shards[0].path} dataset=X rows=0:3")
    assert mentions(words, "8 of 20", 2)


# -- the file of a scan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bad", [0, 2])
def test_a_scan_is_restored_from_its_file(tmp_path, n_bad):
    found = scanned(damaged_shards(tmp_path, n_bad), 3, 1, max_unreadable=2)
    again = Scan.from_npz(found.to_npz())
    assert (again.n_rows, again.unreadable) == (found.n_rows, found.unreadable)
    for name in ("minimum", "maximum", "bad_rows", "spread", "inner"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name), strict=True)


def test_a_scan_without_training_has_the_same_ranges_and_bad_rows(tmp_path):
    shards = damaged_shards(tmp_path, 2)
    settings = {"max_unreadable": 2, "impute": "median", "scale": "auto"}
    full = scanned(shards, 3, 1, **settings)
    brief = scanned(shards, 3, 1, **settings, for_training=False)
    for name in ("minimum", "maximum", "bad_rows", "fill", "n_missing"):
        np.testing.assert_array_equal(getattr(brief, name), getattr(full, name), strict=True)
    assert brief.unreadable == full.unreadable
    assert (brief.hints, brief.narrow.tolist()) == ((), [])
    assert not np.isfinite(brief.spread).any()
    assert Scan.from_npz(brief.to_npz()).unreadable == full.unreadable


def _pickled():
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array([{"n_rows": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"text", _pickled(), pack({}, {}), pack({"minimum": np.zeros(2)}, {"n_rows": 1, "unreadable": []})],
    ids=["empty", "text", "pickle", "nothing", "half"],
)
def test_invalid_scans_are_refused(data):
    with pytest.raises(ValueError, match=r"\b(shardpress|scan)\b"):
        Scan.from_npz(data)


# -- tasks -------------------------------------------------------------------------------------------------------


def plain_values(found):
    return [each.tolist() if isinstance(each, np.ndarray) else each for each in vars(found).values()]


@pytest.mark.process
def test_a_task_gives_the_same_results_in_a_fresh_process(tmp_path, monkeypatch):
    arrays = [numbered(size, first=9 * size, dtype=np.float32) for size in (9, 5, 8)]
    arrays[0][3, 1] = np.nan
    arrays[1][0] = -1
    arrays[2][7] = np.inf
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    for path, rows in zip(paths, arrays, strict=True):
        write_shard(path, rows, fletcher32=True, chunks=(2, 2))
    damage(paths[1], chunk=1)
    shards = open_shards([str(path) for path in paths])
    tasks = []

    def recording(work, *rest):
        tasks.extend(work)
        return reduce(work, *rest)

    monkeypatch.setattr(module, "reduce", recording)
    found = scanned(shards, 2, 2, missing=-1, max_unreadable=1)
    assert len(tasks) == 5 + 3 + 4 + 5 + 4, "readable blocks are read again"
    local = [work(task) for work, task in tasks]
    remote = run_in_fresh_process(tasks)
    assert [plain_values(each) for each in remote] == [plain_values(each) for each in local]
    assert (found.bad_rows.tolist(), list(found.unreadable)) == ([3, *range(9, 14), 21], [1])


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
            for name in ("minimum", "maximum", "spread", "inner", "fill", "n_missing", "center", "factor"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.process
def test_hints_judge_the_selected_rows_unless_most_are_bad(tmp_path):
    rows = np.random.default_rng(0).normal(size=(400, 7)).astype(np.float32)
    rows[:150, 3] = np.nan
    shards = shards_of(tmp_path, rows[:60], rows[60:])
    for stop, words in ((290, "150 of 290 rows"), (310, "--n-features 6"), (400, "--n-features 6")):
        with case(stop):
            (hint,) = scanned(shards, 50, 2, fitted=np.arange(400) < stop).hints
            assert words in hint
