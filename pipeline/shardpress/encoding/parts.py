"""Division of the rows into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs

from shardpress.hdf5.shard import Block, Shard
from shardpress.result.records import Part, Range, in_order


class PartRows(NamedTuple):
    """Rows of one shard in a part."""

    shard: str  # id of the shard
    source: Block


class PartSize(NamedTuple):
    """Largest size of a part. Rows of a shard are divided only at multiples of `step_rows`."""

    n_rows: int
    n_shards: int
    step_rows: int


def plan_parts(shards: Mapping[str, Shard], existing: Iterable[Part], size: PartSize) -> list[list[PartRows]]:
    """Divide all rows that are in no existing part, in row order. Existing parts do not overlap.

    The shards are given by their ids, in the order of the rows.
    """
    parts: list[list[PartRows]] = []
    room = 0  # rows that the last part can still take
    for shard_id, start, stop in _gaps(shards, existing):
        while start < stop:
            end = stop if stop - start <= room else (start + room) // size.step_rows * size.step_rows
            if end <= start or len(parts[-1]) == size.n_shards:
                parts.append([])
                room = size.n_rows
                continue
            parts[-1].append(PartRows(shard_id, Block(shards[shard_id], start, end)))
            room -= end - start
            start = end
    return parts


def without_overlaps(parts: Sequence[Part], shards: Mapping[str, Shard]) -> list[Part]:
    """Return the parts without ranges that overlap earlier ones, or extend past the end of their shard.

    Interrupted runs with parts of other sizes leave such ranges.
    """
    ends = dict.fromkeys(shards, 0)
    used = set()
    for part, rows in in_order(parts, shards):
        if ends[rows.shard] <= rows.start and rows.stop <= shards[rows.shard].n_rows:
            ends[rows.shard] = rows.stop
            used.add((part.file, rows.first))
    remaining = []
    for part in parts:
        ranges = [rows for rows in part.ranges if (part.file, rows.first) in used]
        if ranges:
            remaining.append(structs.replace(part, ranges=ranges))
    return remaining


def _gaps(shards: Mapping[str, Shard], parts: Iterable[Part]) -> Iterator[tuple[str, int, int]]:
    """Yield the id of a shard and a first row and end for all rows that no part contains."""
    by_shard: dict[str, list[Range]] = {shard_id: [] for shard_id in shards}
    for _, rows in in_order(parts, shards):
        by_shard[rows.shard].append(rows)
    for shard_id, shard in shards.items():
        first = 0
        for rows in by_shard[shard_id]:
            if first < rows.start:
                yield shard_id, first, rows.start
            first = rows.stop
        if first < shard.n_rows:
            yield shard_id, first, shard.n_rows
