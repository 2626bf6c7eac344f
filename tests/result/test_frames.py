"""Tests of data frames: they have the values of the features and the extras, and pandas is optional."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd

from shardpress.result.features import Features
from tests.support.cases import case

N = 4
FEATURES = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
VALID = np.array([True, False, True, True])


def opened(extras: dict[str, np.ndarray], categories: dict[str, list[object]] | None = None) -> Features:
    arrays = {name: da.from_array(values, chunks=N) for name, values in extras.items()}
    names = {name: np.array(values) for name, values in (categories or {}).items()}
    return Features(da.from_array(FEATURES), da.from_array(VALID), arrays, {}, names)


def test_columns_are_features_then_valid_then_extras() -> None:
    every = opened({"y": np.arange(N, dtype=">i8"), "name": np.array(["a", "", "ö", "b"], object)})
    expected = pd.DataFrame(FEATURES, columns=["feature0", "feature1"])
    expected = expected.assign(valid=VALID, y=np.arange(N), name=["a", "", "ö", "b"])
    pd.testing.assert_frame_equal(every.to_pandas(), expected)
    only_valid = expected[VALID].drop(columns="valid").reset_index(drop=True)
    pd.testing.assert_frame_equal(every.to_pandas(only_valid=True), only_valid)


def test_categories_that_pandas_refuses_become_values() -> None:
    for categories in (["a", "a"], [0.5, np.nan]):
        with case(categories):
            found = opened({"kind": np.array([0, -1, 0, 0])}, {"kind": categories}).to_pandas()["kind"]
            assert found.tolist()[2:] == categories[:1] * 2
            assert found.isna().tolist() == [False, True, False, False]


def test_names_of_rows_become_the_index_and_names_of_columns_differ() -> None:
    cells = np.array(["c1", "c0", "c1", "c2"], object)
    numbers = np.arange(10, 14)
    for extras, index, columns in [
        ({"_index": cells}, cells, []),
        ({"_index": cells, "index": numbers}, cells, ["index"]),
        ({"index": np.zeros((N, 2))}, range(N), ["index"]),
        ({"feature0": numbers, "valid": numbers}, range(N), ["source_feature0", "source_valid"]),
    ]:
        with case(list(extras)):
            found = opened(extras).to_pandas()
            assert found.index.tolist() == list(index)
            assert list(found) == ["feature0", "feature1", "valid", *columns]


def test_bytes_that_are_not_utf8_are_escaped() -> None:
    names = np.array(["a\udcff", None, "c", "d"], object)
    found = opened({"name": names, "kind": np.zeros(N, "i1")}, {"kind": ["\udcff"]}).to_pandas()
    assert pd.isna(found["name"]).tolist() == [False, True, False, False]
    assert found["name"].dropna().tolist() == ["a\\udcff", "c", "d"]
    assert found["kind"].tolist() == ["\\udcff"] * N
