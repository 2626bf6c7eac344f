"""Tests of the text form of conditions."""

from __future__ import annotations

import pytest

from shardpress.settings.condition import Condition
from tests.support.cases import case, each

CONDITIONS = {
    "split==train": Condition("split", "==", ("train",)),
    " split  ==  train ": Condition("split", "==", ("train",)),
    "obs/cell type != 'T cell'": Condition("obs/cell type", "!=", ("T cell",)),
    "quality<=0.5": Condition("quality", "<=", ("0.5",)),
    'split not  in ("a", "b")': Condition("split", "not in", ("a", "b")),
    "fold in [1]": Condition("fold", "in", ("1",)),
    "within in x": Condition("within", "in", ("x",)),
}


def test_conditions_are_parsed_and_written_in_one_form() -> None:
    for text, condition in CONDITIONS.items():
        with case(text):
            assert Condition.parse(text) == condition
            assert Condition.parse(str(condition)) == condition


@each("text", ["", "split=train", "==train", "split==", "split===x", "split in a,,b", "split in ()"])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="split==train"):
        Condition.parse(text)
