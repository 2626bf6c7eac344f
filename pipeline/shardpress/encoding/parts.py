"""Division of the rows into parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardpress.records import Part, part_key
from shardpress.shards.shard import Block, Shard

MAX_LISTED_COLUMNS = 20
"""Largest number of columns outside the range to store in a part's record. A run can have thousands of records."""


@dataclass(frozen=True)
class PartRange:
    """A row range of one input shard whose features are written to one file."""

    shard: int  # position of the shard
    source: Block

    @property
    def key(self) -> str:
        """Name of the part. Sorting parts by name puts them in row order."""
        return part_key(self.shard, self.source.start)


def in_order(parts: Iterable[Part]) -> list[Part]:
    """Return parts in the order of their rows."""
    return sorted(parts, key=lambda part: (part.shard, part.start))


def plan_parts(shards: Sequence[Shard], part_rows: int, existing: Sequence[Part]) -> tuple[list[PartRange], list[Part]]:
    """Plan parts of at most `part_rows` rows for all rows that are not encoded yet, in row order.

    The sizes of existing parts can differ from `part_rows`, because the memory or the number of threads may have
    changed. All existing parts are kept, except parts that overlap an earlier one or extend past the end of their
    shard: these are returned as well.
    """
    parts_of_shard = _by_shard(existing)
    missing: list[PartRange] = []
    overlapping: list[Part] = []
    for number, shard in enumerate(shards):
        gaps, unused = _gaps(shard, parts_of_shard.get(number, []))
        overlapping += unused
        for start, stop in gaps:
            blocks = Block(shard, start, stop).cut(part_rows)
            missing += [PartRange(number, block) for block in blocks]
    return missing, overlapping


def _by_shard(parts: Sequence[Part]) -> dict[int, list[Part]]:
    """Return the parts of each shard, sorted by first row."""
    by_shard: dict[int, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part.start):
        by_shard.setdefault(part.shard, []).append(part)
    return by_shard


def _gaps(shard: Shard, parts: Sequence[Part]) -> tuple[list[tuple[int, int]], list[Part]]:
    """Return the row ranges that parts, sorted by first row, do not cover, and the parts that do not fit."""
    gaps = []
    overlapping = []
    first = 0
    for part in parts:
        if part.start < first or part.stop > shard.n_rows:  # written by two runs with different part sizes
            overlapping.append(part)
            continue
        gaps.append((first, part.start))
        first = part.stop
    gaps.append((first, shard.n_rows))
    return gaps, overlapping
