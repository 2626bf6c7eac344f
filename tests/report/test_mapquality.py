"""Tests of the accuracy that a classifier keeps after a map: the rows with labels, and the rows that test it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.alignment import LinearMap
from shardpress.labels import NONE, LabelChoice, Labels
from shardpress.records import Entry, Part, Range, ShardFacts, Stat
from shardpress.report.commonrows import CommonRows, EncodedRows
from shardpress.report.mapquality import kept_accuracy, read_labels

N = 12
IDENTITY = LinearMap(np.eye(2), np.zeros(2), "b", "a")


def run_with_labels(folder: Path, **extras: Any) -> EncodedRows:
    """Return a run whose rows 0 to 4 are in a second part, where values of `y` in rows 1 and 2 could not be read."""
    parts = []
    for i, (start, stop) in enumerate([(5, N), (0, 5)]):
        with h5py.File(folder / f"{i}.h5", "w") as file:
            for name, values in extras.items():
                file[name] = values[start:stop]
        lost = {"y": [[1, 3]]} if i else {}
        parts.append(Part(Entry(f"{i}.h5", 0, ""), stop - start, [Range(0, 0, start, stop, lost=lost)]))
    ranges = [(part, part.ranges[0]) for part in reversed(parts)]
    shards = [ShardFacts("/0", "X", [N, 4], "<f4", Stat(9, 0, 0, 0))]
    return EncodedRows(folder, ranges, 2, "encoder", shards, np.zeros(N, np.uint8), is_supervised=False)


def test_labels_are_those_of_the_rows_that_have_one(tmp_path: Path) -> None:
    y = np.arange(N) % 4
    has_y = np.arange(N) != 7
    run = run_with_labels(tmp_path, y=y, has_y=has_y)
    rows = np.array([9, 7, 5, 4, 3, 2, 0])
    expected = [1, NONE, 1, 0, 3, NONE, 0]
    names = {"y": ("0", "1", "3"), "coded": ("a", "b", "d")}
    for categories, found_names in (({}, names["y"]), ({"y": np.array([b"a", b"b", b"c", b"d"])}, names["coded"])):
        found = read_labels(run, rows, LabelChoice(named="y", masks={"y": "has_y"}, categories=categories))
        assert found.names == found_names
        values = [NONE if code == NONE else int(("0", "1", "3")[code]) for code in found.codes]
        assert values == expected


def common_rows(features: np.ndarray, is_held_out: np.ndarray) -> CommonRows:
    n = len(features)
    return CommonRows(n, 0, features, features, is_held_out, False, np.arange(n))


@pytest.mark.parametrize("n_test", [29, 30])
def test_only_rows_that_are_held_out_and_have_a_label_are_tested(n_test: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 200)
    features = rng.normal(size=(200, 2)) + 9 * codes[:, None]
    codes[100:] = NONE
    features[100:] = 1e6
    is_held_out = (np.arange(200) < n_test) | (np.arange(200) >= 150)
    found = kept_accuracy(common_rows(features, is_held_out), Labels("y", ("0", "1"), codes), IDENTITY)
    if n_test < 30:
        assert found is None
    else:
        assert found == {"labels": "y", "n_test": 30, "accuracy": 1, "mapped": 1}


def test_a_wrong_map_loses_accuracy() -> None:
    codes = np.arange(90) % 2
    features = np.random.default_rng(0).normal(size=(90, 2)) + 9 * codes[:, None]
    common = common_rows(features, np.arange(90) >= 60)
    found = kept_accuracy(common, Labels("y", ("0", "1"), codes), LinearMap(-np.eye(2), np.full(2, 9.0), "b", "a"))
    assert found is not None
    assert found["accuracy"] == 1
    assert found["mapped"] < 0.1


def test_one_class_in_the_other_rows_is_no_classifier() -> None:
    codes = (np.arange(90) >= 60).astype(np.int64)
    common = common_rows(np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) >= 50)
    assert kept_accuracy(common, Labels("y", ("0", "1"), codes), IDENTITY) is None
