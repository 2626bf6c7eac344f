"""Tests of targets: their classes and numbers, for values of any kind in any shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.model.labels import NONE, LabelChoice, text_of
from shardpress.shards.open import open_shards
from shardpress.training.targets import MAX_CLASSES, Targets, read_targets, targets_of
from shardpress_kernels.network import Head
from tests.support.cases import each
from tests.support.helpers import refused

NAMES = ("b", "a", "", "c", "a", "b")


def read(
    folder: Path,
    *parts: Any,
    fitted: np.ndarray | None = None,
    categories: list[bytes] | None = None,
    missing: str | None = None,
) -> Targets:
    """Write the values to files with rows, and return their targets. None means a file without the values."""
    for i, values in enumerate(parts):
        with h5py.File(folder / f"{i}.h5", "w") as file:
            file["X"] = np.random.default_rng(i).random((3 if values is None else len(values), 2))
            if values is not None:
                file["y"] = values
            if categories is not None:
                file["__categories/y"] = categories
    return read_targets("y", open_shards([str(folder / "*.h5")]), fitted, missing, 2)


@pytest.mark.process
@each("kind", ["variable", "padded", "categories"])
def test_strings_are_classes_in_sorted_order(tmp_path: Path, kind: str) -> None:
    values: Any = np.array([name.encode() for name in NAMES], dtype="S7")
    categories = None
    if kind == "variable":
        values = np.array(NAMES, dtype=object)
    elif kind == "categories":
        values = np.array([0, 2, -1, 1, 2, 0], np.int8)
        categories = [b"b", b"c", b"a"]
    targets = read(tmp_path, values[:2], values[2:], categories=categories)
    assert targets.head == Head("classes", 3)
    assert targets.classes == ("a", "b", "c")
    assert targets.values.tolist() == [1, 0, -1, 2, 0, 1]
    assert targets.values.dtype == np.float32
    assert targets.share == pytest.approx(5 / 6)


@each("dtype, low, high", [("i8", -(2**63), 2**63 - 1), ("u8", 0, 2**64 - 1), ("?", 0, 1), ("f4", 0, 1)])
def test_few_whole_numbers_are_classes(tmp_path: Path, dtype: str, low: int, high: int) -> None:
    targets = read(tmp_path, np.array([high, low, high], dtype), None, np.array([low], dtype))
    assert targets.head == Head("classes", 2)
    assert targets.classes == (str(low), str(high))
    assert targets.values.tolist() == [1, 0, 1, -1, -1, -1, 0]


def test_floats_are_numbers_with_mean_zero_and_deviation_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1e6, 0.5, 400)
    values[[3, 7]] = [np.nan, np.inf]
    targets = read(tmp_path, values[:10], values[10:])
    assert targets.head == Head("numbers", 1)
    assert not targets.classes
    assert np.flatnonzero(np.isnan(targets.values)).tolist() == [3, 7]
    present = np.delete(values, [3, 7])
    np.testing.assert_allclose(np.delete(targets.values, [3, 7]), (present - present.mean()) / present.std(), rtol=1e-5)
    many = np.arange(60.0)
    assert targets_of("age", [many], [np.ones(60, dtype=bool)], 60).head.kind == "numbers"


def test_rows_that_are_left_out_and_shards_without_values_have_no_target(tmp_path: Path) -> None:
    fitted = np.array([True, False, True, True, True, True, True, False])
    targets = read(tmp_path, np.array([5, 6, 7]), None, np.array([7, 9]), fitted=fitted)
    assert targets.classes == ("5", "7")
    assert targets.values.tolist() == [0, -1, 1, -1, -1, -1, 1, -1]
    assert targets.share == pytest.approx(3 / 6)
    kept = targets.of_shards(open_shards([str(tmp_path / "*.h5")]), [0])
    assert kept.values.tolist() == [-1, -1, -1, 1, -1]


MISSING_LABELS = {
    "int8": (np.array([-1, 0, 1, -1], "i1"), "-1"),
    "uint8": (np.array([255, 0, 1, 255], "u1"), "255"),
    "float32": (np.array([0.1, 1, 2.5, np.nan], "f4"), "0.1"),
    "padded strings": (np.array([b"NA", b"a", b"b", b"  "], "S4"), "NA"),
    "strings": (np.array(["NA", "a", "b", ""], object), "NA"),
    "categories": (np.array([0, 1, 2, -1], "i1"), "NA"),
}


@pytest.mark.process
@each("kind", MISSING_LABELS)
def test_targets_and_labels_have_the_same_missing_values(tmp_path: Path, kind: str) -> None:
    values, missing = MISSING_LABELS[kind]
    has_categories = kind == "categories"
    targets = read(tmp_path, values, categories=[b"NA", b"a", b"b"] if has_categories else None, missing=missing)
    assert np.isfinite(targets.values).tolist() == [kind != "float32", True, True, kind != "float32"]
    if kind != "float32":
        assert targets.values.tolist() == [-1, 0, 1, -1]
    extras = {"y": np.array([text_of(value) for value in values], object) if values.dtype.kind == "S" else values}
    categories = {"y": np.array([b"NA", b"a", b"b"])} if has_categories else {}
    labels = LabelChoice(categories=categories, missing=missing).as_labels("y", extras, {})
    assert labels.codes.tolist() == [NONE, 0, 1, NONE]
    assert read(tmp_path, np.array([-1, 0, 1], "i1")).classes == ("-1", "0", "1")


def test_constant_numbers_too_many_classes_and_records_are_refused(tmp_path: Path) -> None:
    many = np.array([f"id{i}" for i in range(MAX_CLASSES + 1)], dtype=object)
    records = np.zeros(9, [("a", "i4")])
    for values in (np.full(9, 0.5), many, records):
        with refused(78, "y"):
            read(tmp_path, values)
