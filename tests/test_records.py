"""Tests of records: they are restored exactly, and values of another form are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from shardpress.columns import Columns
from shardpress.records import (
    Entry,
    Generation,
    MapFacts,
    Outside,
    Part,
    Request,
    RunFacts,
    ShardFacts,
    Stat,
    from_json,
    part_key,
    plain,
    to_json,
)
from tests.support.cases import case
from tests.support.parts import run_facts

ENTRY = Entry("parts/größe \udcff.h5", 7, "b" * 64)
PART = Part(
    ENTRY,
    5,
    1,
    2,
    3,
    "in/a\udcff.h5",
    "X",
    5,
    10,
    dtype="float16",
    max_error=0.5,
    bad=[{"row": 5, "columns": [1], "reason": "nan"}],
    outside=[Outside(1, 2.5, 0.0, 1.0, 3)],
    append_id=2,
    lost={"y": [[5, 6]]},
    rows="c" * 32,
    extras="d" * 32,
)
SHARD = ShardFacts("/in/a.h5", "X", [9, 4], "f8", Stat(10, 20, 30, 40), "e" * 64, "c" * 32, "d" * 32)
REQUEST = Request([SHARD], {"scale": 1}, {"epochs": 2}, {"dtype": "float32"})
RECORDS: list[Any] = [
    PART,
    Generation(2, "f" * 64, 9, "0" * 64),
    MapFacts(2, "f" * 64, [0.5, None], 9, 3, "words", {"labels": "y"}),
    REQUEST,
    run_facts(request=REQUEST, trained=["c" * 32], views=[ENTRY]),
]


def test_records_are_restored_from_json() -> None:
    for record in RECORDS:
        assert from_json(to_json(record), type(record)) == record
    assert from_json(to_json(RECORDS[:1]), list[Part]) == [PART]


def test_numbers_that_are_not_finite_are_restored() -> None:
    numbers = [math.nan, math.inf, -math.inf]
    found = from_json(to_json(run_facts(summary={"numbers": numbers})), RunFacts)
    assert repr(found.summary["numbers"]) == repr(numbers)
    worst = replace(PART, max_error=math.inf, outside=[Outside(1, math.inf, 0.0, 1.0, 3)])
    assert from_json(to_json(worst), Part) == worst


def damaged(value: Any) -> Iterator[Any]:
    """Yield copies of plain values of which one, at any depth, has another type, or a field is missing."""
    others = [None, True, 3, 2.5, "x", [[]], {"x": []}]
    yield from (other for other in others if type(other) is not type(value))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        copy = value.copy()
        for each in damaged(child):
            copy[key] = each
            yield copy


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_values_of_another_type_are_refused_or_kept(record: Any) -> None:
    """Fields of free form accept any values of JSON. All other fields keep their types."""
    kind = type(record)
    n_refused = 0
    for content in damaged(plain(record)):
        try:
            found = from_json(json.dumps(content).encode(), kind)
        except ValueError:
            n_refused += 1
            continue
        with case(content):
            assert msgspec.convert(plain(found), kind) == found
    assert n_refused > 20


def test_records_without_a_required_field_are_refused() -> None:
    for record in RECORDS:
        content = plain(record)
        required = [field.name for field in msgspec.structs.fields(record) if field.required]
        assert required
        for name in required:
            others = {key: value for key, value in content.items() if key != name}
            with case(type(record), name), pytest.raises(ValueError, match=name):
                from_json(json.dumps(others).encode(), type(record))


def test_parts_are_sorted_by_name() -> None:
    places = [(0, 0), (0, 99), (0, 100), (2, 5), (10, 0), (999_999, 10**11)]
    assert sorted(part_key(*place) for place in places) == [part_key(*place) for place in places]
    assert PART.key == part_key(3, 5)


def test_distance_from_a_range_is_relative_to_its_width() -> None:
    columns = Columns(("a", "b"), "columns")
    for value, low, high, distance in [(3.0, 0.0, 2.0, 0.5), (-4.0, 0.0, 2.0, 2.0), (9.0, 5.0, 5.0, 0.0)]:
        outside = Outside(1, value, low, high, 3)
        assert outside.distance == distance
        assert f"{value:g}" in outside.described(columns)
        assert "b" in outside.described(columns)
