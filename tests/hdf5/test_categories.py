"""Tests of the attribute with the categories of a dataset of codes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from shardpress.hdf5.categories import ATTRIBUTE, array_of, attribute_value, read_categories
from tests.support.cases import each


@each(
    "categories, is_long",
    [
        ([], False),
        (["a\udcff"], False),  # bytes that are not UTF-8
        ([3, -(2**62)], False),
        ([True, False], False),
        ([i / 3 for i in range(20_000)], True),
        (["ö" * 50_000, "\udcff"], True),
    ],
)
def test_categories_are_read_as_they_were_written(tmp_path: Path, categories: list[object], is_long: bool) -> None:
    value = attribute_value(categories)
    assert isinstance(value, str) == is_long, "long lists are JSON"
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["codes"] = np.zeros(3, "i1")
        file["codes"].attrs[ATTRIBUTE] = value
        found = read_categories(file["codes"].id)
    assert found == categories
    assert array_of(found).tolist() == categories
