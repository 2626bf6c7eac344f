"""Tests of parts: rows that are not encoded yet, and facts about encoded parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardpress.encoding.parts import PartFacts, plan_parts
from shardpress.output.records import Entry, records_of, sealed
from shardpress.scan.drift import Outside
from tests.support.helpers import numbered_shards

FACTS = {"n_rows": 4, "n_bad": 1, "n_outside": 2, "shard": 3, "path": "a.h5", "dataset": "X", "start": 5, "stop": 9}


def part(shard: int, start: int, stop: int, **more: Any) -> PartFacts:
    entry = Entry(f"parts/part-{shard:06d}-{start:012d}-{'0' * 32}.h5", 7, "b")
    return PartFacts(entry, stop - start, 1, 2, shard, "a.h5", "X", start, stop, **more)


def test_committed_parts_of_any_size_are_kept(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 10, 0, 7)
    existing = [part(2, 0, 7), part(0, 4, 6), part(0, 2, 5)]
    missing, overlapping = plan_parts(shards, 4, existing)
    places = [(each.number, each.source.start, each.source.stop) for each in missing]
    assert places == [(0, 0, 2), (0, 5, 9), (0, 9, 10)]
    assert overlapping == [existing[1]]


def test_a_part_is_restored_from_its_record(tmp_path: Path) -> None:
    bad = {"row": 3, "columns": [1], "reason": "nan"}
    for each in (part(3, 5, 9), part(3, 5, 9, bad=(bad, bad), outside=(Outside(1, 2.5, 0.0, 1.0, 3),))):
        (tmp_path / "some.json").write_bytes(sealed([each.record("f" * 64)]))
        (again,) = records_of(tmp_path, "some.json")
        assert PartFacts.from_record(again) == each


def test_a_line_of_the_manifest_has_no_lists() -> None:
    line = part(3, 5, 9, bad=({"row": 3},), outside=(Outside(1, 2.5, 0.0, 1.0, 3),)).line()
    numbers = {
        "n_rows": 4,
        "n_bad": 1,
        "n_outside": 2,
        "shard": 3,
        "path": "a.h5",
        "dataset": "X",
        "start": 5,
        "stop": 9,
    }
    assert line == {"file": line["file"], "n_bytes": 7, "blake3": "b", **numbers}
