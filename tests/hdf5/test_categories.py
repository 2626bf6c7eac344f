"""Tests of the attribute with the categories of a dataset of codes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.categories import ATTRIBUTE, array_of, attribute_value, read_categories
from tests.support.cases import each


def stored(path: Path, value: object) -> list[object] | None:
    """Return the categories that are read from an attribute with this value."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("codes", data=np.zeros(3, "i1"))
        dataset.attrs[ATTRIBUTE] = file["codes"].ref if isinstance(value, str) and value == "reference" else value
    with h5py.File(path) as file:
        return read_categories(file["codes"].id)


@each(
    "categories, is_long",
    [
        ([], False),
        (["T cell", "größe", ""], False),
        (["a\udcff"], False),  # bytes that are not UTF-8
        ([3, -(2**62)], False),
        ([0.1, 1e300], False),
        ([True, False], False),
        ([f"category {i}" for i in range(10_000)], True),
        ([i / 3 for i in range(20_000)], True),
        (["ö" * 50_000, "\udcff"], True),
    ],
)
def test_categories_are_read_as_they_were_written(tmp_path: Path, categories: list[object], is_long: bool) -> None:
    value = attribute_value(categories)
    assert isinstance(value, str) == is_long, "long lists are JSON"
    found = stored(tmp_path / "x.h5", value)
    assert found == categories
    assert array_of(found).tolist() == categories


@each("value", [np.zeros((2, 2)), 5, "reference", ["a", "b"]])
def test_other_attributes_of_the_same_name_are_not_categories(tmp_path: Path, value: object) -> None:
    assert stored(tmp_path / "x.h5", value) is None


@each("text", ["fish", '{"a": 1}', "[" * 10])
def test_text_that_is_not_a_list_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        stored(tmp_path / "x.h5", text)
