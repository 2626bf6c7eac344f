"""Tests of records: they are restored exactly, and values of another form are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from shardpress.columns import Columns
from shardpress.records import (
    Entry,
    Generation,
    MapFacts,
    Outside,
    Part,
    Range,
    Request,
    ShardFacts,
    Stat,
    from_json,
    in_order,
    plain,
    stretches_of,
    to_json,
)
from tests.support.cases import case, each
from tests.support.parts import run_facts

ENTRY = Entry("parts/größe \udcff.h5", 7, "b" * 64)
RANGE = Range(
    first=2,
    shard=3,
    start=5,
    stop=10,
    n_bad=1,
    n_outside=2,
    bad=[{"row": 5, "columns": [1], "reason": "nan"}],
    outside=[Outside(1, 2.5, 0.0, 1.0, 3)],
    append_id=2,
    lost={"y": [[5, 6]]},
    rows="c" * 32,
    extras="d" * 32,
)
PART = Part(ENTRY, 9, [RANGE], dtype="float16", max_error=0.5)
SHARD = ShardFacts("/in/a.h5", "X", [9, 4], "f8", Stat(10, 20, 30, 40), 7, "e" * 64, "c" * 32, "d" * 32)
REQUEST = Request([SHARD], {"scale": 1}, {"epochs": 2}, {"dtype": "float32"})
RECORDS: list[Any] = [
    PART,
    Generation(2, "f" * 64, 9, "0" * 64),
    MapFacts(2, "f" * 64, [0.5, None], 9, 3, {"labels": "y"}),
    REQUEST,
    run_facts(request=REQUEST, trained=["c" * 32]),
]


def test_records_are_restored_from_json() -> None:
    for record in RECORDS:
        assert from_json(to_json(record), type(record)) == record
    assert from_json(to_json(RECORDS[:1]), list[Part]) == [PART]


def damaged(value: Any) -> Iterator[Any]:
    """Yield copies of plain values of which one, at any depth, has another type, or a field is missing."""
    others = [None, True, 3, 2.5, "x", [[]], {"x": []}]
    yield from (other for other in others if type(other) is not type(value))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        copy = value.copy()
        for other in damaged(child):
            copy[key] = other
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


@each("seed", range(100))
def test_stretches_join_rows_that_follow_each_other(seed: int) -> None:
    """Stretches have the rows of the ranges in the order of the result, and are as long as possible."""
    rng = np.random.default_rng(seed)
    places = [(shard, start) for shard in range(4) for start in range(0, 6, 2)]
    if seed % 2:
        rng.shuffle(places)
    parts = []
    for number, some in enumerate(np.array_split(places, 3)):
        firsts = 2 * np.arange(len(some)) + np.cumsum(rng.random(len(some)) < 0.3)  # with dead rows between
        ranges = [
            Range(int(first), int(shard), int(start), int(start) + 2)
            for first, (shard, start) in zip(firsts, some, strict=True)
        ]
        parts.append(Part(Entry(f"{number}.h5", 7, "b"), 20, ranges))
    pairs = in_order(parts)
    assert [(used.shard, used.start) for _, used in pairs] == sorted(map(tuple, places))
    rows = [(part.file, used.first + i) for part, used in pairs for i in range(used.n_rows)]
    stretches = stretches_of(pairs)
    assert [(part.file, first + i) for part, first, n_rows in stretches for i in range(n_rows)] == rows
    for before, after in pairwise(stretches):
        assert (before.part.file, before.first + before.n_rows) != (after.part.file, after.first)


def test_distance_from_a_range_is_relative_to_its_width() -> None:
    columns = Columns(("a", "b"), "columns")
    for value, low, high, distance in [(3.0, 0.0, 2.0, 0.5), (-4.0, 0.0, 2.0, 2.0), (9.0, 5.0, 5.0, 0.0)]:
        outside = Outside(1, value, low, high, 3)
        assert outside.distance == distance
        assert f"{value:g}" in outside.described(columns)
        assert "b" in outside.described(columns)
