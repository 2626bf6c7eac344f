"""Tests of the attribute with the categories of a dataset of codes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.categories import ATTRIBUTE, array_of, attribute_value, read_categories
from tests.support.cases import case

LISTS = {
    "none": [],
    "texts": ["T cell", "größe", ""],
    "one text": ["x"],
    "bytes that are not UTF-8": ["a\udcff"],
    "integers": [3, -(2**62)],
    "floats": [0.1, 1e300],
    "bools": [True, False],
    "many texts": [f"category {i}" for i in range(10_000)],
    "many integers": list(range(60_000)),
    "many floats": [i / 3 for i in range(20_000)],
    "a long text": ["ö" * 50_000, "\udcff"],
}


def stored(path: Path, value: np.ndarray | str) -> list[object] | None:
    """Return the categories that are read from an attribute with this value."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("codes", data=np.zeros(3, "i1"))
        dataset.attrs[ATTRIBUTE] = value
    with h5py.File(path) as file:
        return read_categories(file["codes"].id)


def test_categories_are_read_as_they_were_written(tmp_path: Path) -> None:
    for name, categories in LISTS.items():
        with case(name):
            found = stored(tmp_path / "x.h5", attribute_value(categories))
            assert found == categories
            assert array_of(found).tolist() == categories


def test_short_lists_are_arrays_and_long_lists_are_json() -> None:
    for name, categories in LISTS.items():
        with case(name):
            assert isinstance(attribute_value(categories), str) == name.startswith(("many", "a long"))


def test_other_attributes_of_the_same_name_are_not_categories(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        others = {
            "table": np.zeros((2, 2)),
            "number": 5,
            "reference": file.create_group("group").ref,
            "texts of variable length": ["a", "b"],
        }
        for name, value in others.items():
            dataset = file.create_dataset(name, data=np.zeros(3, "i1"))
            dataset.attrs[ATTRIBUTE] = value
            with case(name):
                assert read_categories(dataset.id) is None


def test_text_that_is_not_a_list_is_an_error(tmp_path: Path) -> None:
    for text in ("fish", '{"a": 1}', "[" * 10):
        with case(text), pytest.raises(ValueError, match=r"."):
            stored(tmp_path / "x.h5", text)
