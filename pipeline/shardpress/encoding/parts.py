"""Division of the rows into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import structs

from shardpress.hdf5.shard import Block, Shard
from shardpress.result.records import Part, Range, in_order


class Piece(NamedTuple):
    """Rows of one shard in a part."""

    shard: int  # position of the shard
    source: Block


class PartSize(NamedTuple):
    """Largest size of a part. Rows of a shard are divided only at multiples of `step_rows`."""

    n_rows: int
    n_shards: int
    step_rows: int


def plan_parts(shards: Sequence[Shard], existing: Iterable[Part], size: PartSize) -> list[list[Piece]]:
    """Divide all rows that are in no existing part, in row order. Existing parts do not overlap."""
    parts: list[list[Piece]] = []
    room = 0  # rows that the last part can still take
    for number, start, stop in _gaps(shards, existing):
        while start < stop:
            end = stop if stop - start <= room else (start + room) // size.step_rows * size.step_rows
            if end <= start or len(parts[-1]) == size.n_shards:
                parts.append([])
                room = size.n_rows
                continue
            parts[-1].append(Piece(number, Block(shards[number], start, end)))
            room -= end - start
            start = end
    return parts


def without_overlaps(parts: Sequence[Part], shards: Sequence[Shard]) -> list[Part]:
    """Return the parts without ranges that overlap earlier ones, or extend past the end of their shard.

    Interrupted runs with parts of other sizes leave such ranges.
    """
    ends = [0] * len(shards)
    used = set()
    for part, each in in_order(parts):
        if ends[each.shard] <= each.start and each.stop <= shards[each.shard].n_rows:
            ends[each.shard] = each.stop
            used.add((part.file, each.first))
    found = []
    for part in parts:
        ranges = [each for each in part.ranges if (part.file, each.first) in used]
        if ranges:
            found.append(structs.replace(part, ranges=ranges))
    return found


def _gaps(shards: Sequence[Shard], parts: Iterable[Part]) -> Iterator[tuple[int, int, int]]:
    """Yield the position of a shard and a first row and end for all rows that no part contains."""
    by_shard: dict[int, list[Range]] = {}
    for _, each in in_order(parts):
        by_shard.setdefault(each.shard, []).append(each)
    for number, shard in enumerate(shards):
        first = 0
        for each in by_shard.get(number, []):
            if first < each.start:
                yield number, first, each.start
            first = each.stop
        if first < shard.n_rows:
            yield number, first, shard.n_rows
