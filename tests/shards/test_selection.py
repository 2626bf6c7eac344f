"""Tests of conditions on the values of extras, compared with plain Python."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.settings.condition import Condition
from shardpress.shards.selection import fulfils
from tests.support.cases import case, each

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@each("dtype", ["i1", "u8", ">i4", "f4", "f8"])
def test_numbers_are_compared_as_in_python(dtype: str) -> None:
    values = np.array([0, 1, 2, 3, 3, 100]).astype(dtype)
    for name, compare in OPERATORS.items():
        for text in ("3", "2.5", "-1", "1e30", str(2**64)):
            with case(name, text):
                wanted = float(text)
                expected = [compare(float(value), wanted) for value in values]
                assert fulfils(Condition("x", name, (text,)), values).tolist() == expected
    large = np.array([2**53, 2**53 + 1, 2**63 - 1])
    found = fulfils(Condition("x", "==", (str(2**53 + 1),)), large)
    assert found.tolist() == [False, True, False], "integers are not rounded"


def test_nan_fulfils_no_condition() -> None:
    values = np.array([1.0, np.nan])
    for name in OPERATORS:
        assert not fulfils(Condition("x", name, ("0",)), values)[1]
    assert fulfils(Condition("x", "not in", ("0", "2")), values).tolist() == [True, False]


@each("as_bytes", [True, False])
def test_texts_and_sets_of_them_are_compared(as_bytes: bool) -> None:
    texts = ["train", "test", "", "träin"]
    values = np.array([text.encode() if as_bytes else text for text in texts], dtype=object)
    for wanted in (("train",), ("träin", "test"), ("trai",)):
        is_member = [text in wanted for text in texts]
        assert fulfils(Condition("split", "in", wanted), values).tolist() == is_member
        assert fulfils(Condition("split", "not in", wanted), values).tolist() == [not each for each in is_member]
    fixed = np.array([b"train", b"tr"], dtype="S8")
    assert fulfils(Condition("split", "!=", ("tr",)), fixed).tolist() == [True, False]


def test_codes_mean_their_categories() -> None:
    codes = np.array([0, 1, -1, 2, 1])
    assert fulfils(Condition("t", "==", ("b",)), codes, ("a", "b", "c")).tolist() == [False, True, False, False, True]
    assert fulfils(Condition("t", ">", ("15",)), codes, (10, 20, 30)).tolist() == [False, True, False, True, True]
    assert fulfils(Condition("t", "==", ("b",)), codes, np.array([b"a", b"b", b"c"])).tolist()[1]


def test_booleans_and_named_numbers_have_words() -> None:
    values = np.array([True, False])
    assert fulfils(Condition("flag", "==", ("true",)), values).tolist() == [True, False]
    assert fulfils(Condition("flag", "==", ("0",)), values).tolist() == [False, True]
    named = np.array([0, 1, 1], dtype=h5py.enum_dtype({"train": 0, "test": 1}, basetype="i1"))
    assert fulfils(Condition("split", "==", ("test",)), named).tolist() == [False, True, True]


def test_values_of_the_wrong_kind_are_refused() -> None:
    for name, text, values in (
        ("==", "train", np.arange(3)),
        ("==", "maybe", np.array([True])),
        ("<", "b", np.array(["a"], dtype=object)),
    ):
        with case(name, text), pytest.raises(ValueError, match="split"):
            fulfils(Condition("split", name, (text,)), values)
