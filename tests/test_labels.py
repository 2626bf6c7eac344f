"""Tests of labels: which extra is chosen, and how its values become codes."""

from __future__ import annotations

import numpy as np

from shardpress.labels import NONE, LabelChoice
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
    for named, n_labels in (("obs/batch", 2), ("types", 100), ("obs/y", 3)):
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
