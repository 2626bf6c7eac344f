"""Tests of parts: rows that are not encoded yet."""

from __future__ import annotations

from pathlib import Path

from shardpress.encoding.parts import plan_parts
from shardpress.records import Entry, Part, part_key
from tests.support.helpers import numbered_shards


def part(shard: int, start: int, stop: int) -> Part:
    entry = Entry(f"parts/{part_key(shard, start)}-{'0' * 32}.h5", 7, "b")
    return Part(entry, stop - start, 1, 2, shard, "a.h5", "X", start, stop)


def test_committed_parts_of_any_size_are_kept(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 10, 0, 7)
    existing = [part(2, 0, 7), part(0, 4, 6), part(0, 2, 5)]
    missing, overlapping = plan_parts(shards, 4, existing)
    places = [(each.shard, each.source.start, each.source.stop) for each in missing]
    assert places == [(0, 0, 2), (0, 5, 9), (0, 9, 10)]
    assert overlapping == [existing[1]]


def test_parts_beyond_a_shorter_shard_are_not_used(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 5, 5)
    existing = [part(1, 0, 4), part(1, 4, 8), part(0, 0, 5)]
    missing, overlapping = plan_parts(shards, 4, existing)
    assert [(each.key, each.source.stop) for each in missing] == [(part_key(1, 4), 5)]
    assert overlapping == [existing[1]]
