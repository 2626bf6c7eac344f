"""Tests of bad data: the result of a row depends only on that row and the settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.columns import NO_COLUMNS
from shardpress.encoding.bad_data import BadData
from shardpress.hdf5.shard import Block, Shard
from shardpress.records import Outside
from shardpress.scan.scaler import Scaler
from tests.support.cases import case
from tests.support.helpers import refused
from tests.support.logged import mentions

LOW = np.array([0.0, -1.0])
HIGH = np.array([1.0, 2.0])


def judge(
    bad_data: BadData,
    rows: Any,
    dtype: Any = np.float32,
    features: Any = 0.0,
    suspects: Any = None,
    stored_dtype: str | None = None,
) -> Any:
    """Return the judgement of rows 100, 101 and so on, and, as ``rows``, the rows that were encoded last."""
    array = np.array(rows, dtype=dtype)
    shard = Shard("a.h5", "X", (1000, array.shape[1]), stored_dtype or array.dtype.str)
    block = Block(shard, 100, 100 + len(array))
    encoded = [array]
    out = np.array(np.broadcast_to(np.asarray(features, np.float32), (len(array), 2)))
    bad, facts = bad_data.judge(block, (array, array), out, lambda rows, out: encoded.append(rows), suspects)
    assert np.isnan(out[bad]).all()
    return SimpleNamespace(
        bad=bad.tolist(),
        reasons=facts.bad,
        n_outside=facts.n_outside,
        outside=facts.outside,
        rows=encoded[-1],
        is_encoded_again=len(encoded) > 1,
    )


def with_range(on_drift: str, on_bad_data: str = "skip", low: np.ndarray = LOW, high: np.ndarray = HIGH) -> BadData:
    return BadData(on_bad_data, on_drift=on_drift, trained_on=Scaler(low, high))


# -- bad rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-9999, "-9999.0")], ids=str
)
def test_the_error_about_a_bad_row_names_its_place_in_the_file(value: float, word: str) -> None:
    with refused(65, "file=a.h5 dataset=X rows=100:103", word, "row 101, column 2"):
        judge(BadData(missing=-9999), [[1, 2, 3], [1, 2, value], [value, 2, 3]])


def test_bad_rows_are_reported_and_no_row_is_changed() -> None:
    rows = [[1, np.nan, 3], [np.inf, 5, np.nan], [1, 2, 3], [5, 3, 1]]
    judgement = judge(BadData("skip", missing=5), rows)
    assert not judgement.is_encoded_again
    assert (judgement.bad, judgement.n_outside) == ([0, 1, 3], 0)
    assert judgement.reasons == [
        {"row": 100, "columns": [1], "reason": "nan"},
        {"row": 101, "columns": [0, 1, 2], "reason": "inf"},
        {"row": 103, "columns": [0], "reason": "5.0"},
    ]
    (reason,) = judge(BadData("skip"), np.full((1, 5000), np.nan)).reasons
    assert reason["columns"] == list(range(20)), "the list is limited"


def test_integers_are_only_bad_if_they_equal_the_missing_value() -> None:
    rows = [[1, 255], [3, 4]]
    assert judge(BadData(), rows, np.uint8).bad == []
    assert judge(BadData("skip", missing=255), rows, np.uint8).bad == [0]
    assert judge(BadData("skip", missing=-1), rows, np.uint8).bad == []


def test_the_missing_value_is_compared_in_the_dtype_of_the_file() -> None:
    rows = np.array([[-9999, 1], [-10000, 1]], np.float32)  # the second value is exact in 16 bits
    assert judge(BadData("skip", missing=-9999), rows).bad == [0]
    assert judge(BadData("skip", missing=-9999), rows, stored_dtype="<f2").bad == [1]


# -- rows outside a model's range --------------------------------------------------------------------------------


def test_columns_outside_the_range_are_listed_with_extremes() -> None:
    judgement = judge(with_range("pass"), [[2, 8], [0, 0], [np.nan, 99], [-3, 0]])
    assert judgement.outside == [Outside(0, -3, 0, 1, 2), Outside(1, 8, -1, 2, 1)]
    assert mentions(judgement.outside[1].described(NO_COLUMNS), "column 1", 8, -1, 2, 2)
    assert judge(with_range("pass"), [[1, 2]]).outside == []


def test_rows_below_or_above_the_range_are_counted() -> None:
    """Bad rows are never outside the range, and rows on its edge are inside."""
    for outside in ([-0.5, 0], [0.5, -2], [1.5, 0], [0.5, 3]):
        for on_drift in ("pass", "clip"):
            judgement = judge(with_range(on_drift), [LOW, outside, [np.nan, 9], HIGH, [7, np.inf]])
            with case(outside, on_drift):
                assert (judgement.n_outside, judgement.bad) == (1, [2, 4])
                assert judgement.is_encoded_again == (on_drift == "clip")
    for rows in ([LOW, HIGH, [0.5, 0], [np.nan, 5]], [[7, np.inf]], np.empty((0, 2))):
        assert judge(with_range("raise"), rows).n_outside == 0


def test_the_error_about_a_row_outside_names_its_place() -> None:
    with refused(65, "rows=100:103", "2.5", "row 101, column 1", "-1 to 2", "--on-drift clip"):
        judge(with_range("raise"), [[0, 0], [0.5, 2.5], [7, 0]])


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "u8", "f4", "f8"])
def test_equal_values_are_clipped_equally(dtype: str) -> None:
    """Some limits have fractions or exceed the range of the dtype. Limits of integers were rounded inwards."""
    info: Any = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scale = float(rng.choice([1, 100, 1e5]))
        edges = np.sort(rng.normal(0, scale, (2, 4)), axis=0)
        rows = np.clip(rng.normal(0, 3 * scale, (20, 4)), float(info.min), float(info.max)).astype(dtype)
        rows[0] = info.min
        rows[1] = info.max
        edges[:, 3] = -1e300, 1e300
        found = judge(with_range("clip", low=edges[0], high=edges[1]), rows, dtype)
        with case(seed):
            np.testing.assert_array_equal(found.rows, np.clip(rows.astype(np.float64), *edges))


# -- rows that overflow ------------------------------------------------------------------------------------------


def test_rows_whose_features_overflow_are_bad() -> None:
    features = np.array([[0.5], [np.nan], [np.nan], [0.1]])
    rows = np.array([[1, 1], [np.nan, 1], [1e38, -1e38], [0, 0]])
    judgement = judge(BadData("skip"), rows, features=features)
    assert judgement.bad == [1, 2]
    assert judgement.reasons[-1] == {"row": 102, "columns": [], "reason": "overflows float32"}
    with refused(65, "a.h5 dataset=X", "row 102", "--on-bad-data skip"):
        judge(BadData(), rows[[0, 0, 2, 0]], features=features[[0, 0, 2, 0]])


def test_only_suspect_rows_are_checked_and_keep_their_numbers() -> None:
    features = np.ones((5, 2))
    features[3] = np.nan
    for suspects, bad in ((None, [3]), (np.array([1, 3]), [3]), (np.array([1, 2]), [])):
        judgement = judge(BadData("skip"), np.zeros((5, 3)), features=features, suspects=suspects)
        assert (judgement.bad, [reason["row"] for reason in judgement.reasons]) == (bad, [100 + row for row in bad])
    rows = np.array([[0, 0], [0, np.nan], [0, 0], [9, 0], [np.inf, 0]])
    judgement = judge(with_range("pass"), rows, suspects=np.array([1, 3, 4]))
    assert (judgement.bad, judgement.n_outside) == ([1, 4], 1)
    assert [reason["row"] for reason in judgement.reasons] == [101, 104]
