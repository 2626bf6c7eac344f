"""Tests of labels: which extra is chosen, and how its values become codes."""

from __future__ import annotations

import numpy as np

from shardpress.model.labels import NONE, LabelChoice, has_label, remark_on_missing
from tests.support.cases import each

LABELS = {
    "integers": ({"y": np.arange(60) % 3}, ("y", ("0", "1", "2"))),
    "texts": ({"kind": np.array(["b", "a"] * 30, object)}, ("kind", ("a", "b"))),
    "a usual name first": ({"a": np.arange(60) % 2, "target": np.arange(60) % 3}, ("target", ("0", "1", "2"))),
    "ids": ({"row_id": np.arange(60)}, None),
    "measurements": ({"y": np.linspace(0, 1, 60)}, None),
    "one label": ({"y": np.zeros(60, int)}, None),
    "not a mask": ({"y_present": np.arange(60) % 2 == 0}, ("y_present", ("False", "True"))),
    "the smallest integer": ({"y": np.array([-128, 127] * 30, "i1")}, ("y", ("-128", "127"))),
    "batches and ids": ({"batchId": np.arange(60) % 2, "CV-fold": np.arange(60) % 2, "id": np.arange(60) % 9}, None),
    "names that contain a word": ({"kidney": np.arange(60) % 2}, ("kidney", ("0", "1"))),
}


@each("extras, expected", LABELS.values())
def test_labels_are_distinguished_from_other_extras(extras: dict[str, np.ndarray], expected: object) -> None:
    found = LabelChoice().find(extras, {})
    assert (found and (found.name, found.names)) == expected


def test_codes_are_named_by_category_and_missing_ones_ignored() -> None:
    found = LabelChoice(categories={"y": np.array([b"cat", b"dog"], object)}).find({"y": np.array([0, 1, -1] * 5)}, {})
    assert found is not None
    assert found.names == ("cat", "dog")
    assert found.codes.tolist() == [0, 1, NONE] * 5
    found = LabelChoice().find({"y": np.array([0, 1, np.nan, np.inf, -np.inf] * 5)}, {})
    assert found is not None
    assert (found.names, found.codes.tolist()) == (("0", "1"), [0, 1, NONE, NONE, NONE] * 5)


def test_named_labels_are_used_even_if_they_are_a_batch_but_no_others() -> None:
    many = np.arange(600) % 100
    extras = {"obs_batch": np.arange(600) % 2, "types": many, "y": many % 3, "depth": np.linspace(0, 1, 600)}
    for named, n_labels in (("obs_batch", 2), ("types", 100), ("y", 3)):
        found = LabelChoice(named=named).find(extras, {})
        assert found is not None
        assert len(found.names) == n_labels
    assert LabelChoice(named="depth").find(extras, {}) is None
    assert LabelChoice(named="other").find(extras, {}) is None


def test_rows_without_a_value_have_no_label() -> None:
    values = np.array([0, 1, 255] * 20, "u1")
    extras = {"y_present": values < 255, "y": values, "z": values}
    found = LabelChoice(masks={"y": "y_present"}).find(extras, {})
    assert found is not None
    assert (found.name, found.codes.tolist()) == ("y", [0, 1, NONE] * 20)
    lost = np.arange(60) < 3
    found = LabelChoice(named="z", masks={"y": "y_present"}).find(extras, {"z": lost})
    assert found is not None
    assert found.codes.tolist() == [NONE] * 3 + [0, 1, 2] * 19


MISSING: dict[str, tuple[np.ndarray, str | None, list[bool]]] = {
    "nothing": (np.array([-1, 255, 0]), None, [True, True, True]),
    "an integer": (np.array([-1, 255, 0]), "-1", [False, True, True]),
    "an integer that the dtype lacks": (np.array([255, 0], "u1"), "-1", [True, True]),
    "a large integer": (np.array([2**63 - 1, 2**63 - 2]), str(2**63 - 1), [False, True]),
    "an integer in floats": (np.array([-999.0, 0.5, np.nan]), "-999", [False, True, False]),
    "a number in exponents": (np.array([1000, 0]), "1e3", [False, True]),
    "a text in numbers": (np.array([-1, 0]), "unknown", [True, True]),
    "a number in texts": (np.array(["-1", "1", ""], object), "-1", [False, True, False]),
    "a Boolean": (np.array([False, True]), "0", [False, True]),
}


@each("values, missing, expected", MISSING.values())
def test_only_the_missing_label_nan_and_empty_strings_are_missing(
    values: np.ndarray, missing: str | None, expected: list[bool]
) -> None:
    assert has_label(values, missing).tolist() == expected


def test_a_category_is_missing_by_its_name() -> None:
    codes = np.array([0, 1, 2, -1])
    assert has_label(codes, None, [b"a", "unknown", 3]).tolist() == [True, True, True, False]
    assert has_label(codes, "unknown", [b"a", "unknown", 3]).tolist() == [True, False, True, False]
    assert has_label(codes, "3", [b"a", "unknown", 3]).tolist() == [True, True, False, False]


# The most frequent label, its share in thirtieths, the number of other labels, and the dtype.
REMARKS = {
    **{f"{label}": (label, 16, 2, "i8", True) for label in (-1, -9, -99, -999, 99, 999)},
    "255 of uint8": (255, 16, 2, "u1", True),
    "whole floats": (-1, 16, 2, "f4", True),
    "255 of int16": (255, 16, 2, "i2", False),
    "zero": (0, 28, 2, "i8", False),
    "half": (-1, 15, 2, "i8", False),
    "one other label": (-1, 29, 1, "i8", False),
    "another number": (7, 16, 2, "i8", False),
}


@each("label, n, n_others, dtype, expected", REMARKS.values())
def test_a_frequent_label_can_look_like_no_label(label: int, n: int, n_others: int, dtype: str, expected: bool) -> None:
    others = np.arange(1, 31 - n) % n_others + 1
    values = np.concatenate([np.full(n, label), others]).astype(dtype)
    extras = {"y": values}
    labels = LabelChoice().as_labels("y", extras, {})
    remark = LabelChoice().remark(labels, extras)
    assert (f"--missing-label {label}" in remark) == expected
    assert bool(remark) == expected
    others_only = LabelChoice(missing=str(label))
    assert not others_only.remark(others_only.as_labels("y", extras, {}), extras)
    texts = {"y": values.astype(int).astype(str).astype(object)}
    assert not LabelChoice().remark(LabelChoice().as_labels("y", texts, {}), texts)


def test_no_labels_are_no_remark() -> None:
    assert not remark_on_missing([], np.array([], np.int64), [np.dtype("i8")])
