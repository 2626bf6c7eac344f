"""Parts, which are row ranges whose features are committed together, and facts about encoded parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from shardpress.output.records import Entry, Record
from shardpress.scan.drift import Outside
from shardpress.shards.shard import Block, Shard

MAX_LISTED_COLUMNS = 20
"""Largest number of columns outside the range to store in a part's record. A run can have thousands of records."""

_LISTS = ("bad", "outside")  # fields that are stored in commit records only


@dataclass(frozen=True)
class Part:
    """A row range of one input shard whose features are committed together."""

    number: int  # index of the shard in the input, or in the order of arrival if shards were appended
    source: Block

    @property
    def key(self) -> str:
        """Name of the part. Sorting parts by name puts them in row order."""
        return _key(self.number, self.source.start)


@dataclass(frozen=True)
class PartFacts:
    """Facts about one encoded part: the contents of its commit record and of its line in the manifest."""

    entry: Entry
    n_rows: int
    n_bad: int  # bad rows, whose features are NaN
    n_outside: int  # good rows with values outside the range of the model's training rows
    shard: int  # number of the shard, as in `Part`
    path: str  # file of the shard
    dataset: str
    start: int  # first row in the shard
    stop: int
    # dtype of the stored features; None if they are stored exactly as the encoder returned them
    dtype: str | None = None
    # largest difference between a stored feature and the encoder's result; None without `dtype`
    max_error: float | None = None
    bad: tuple[dict[str, Any], ...] = ()  # ``row``, ``columns`` and ``reason`` of each bad row
    outside: tuple[Outside, ...] = ()  # columns with values outside the range, the farthest first
    append_id: int | None = None  # number of the append, from 1 on; None for parts of the run that trained the model
    # row ranges of the shard with fill values for unreadable ones, by the names of extras in the part
    lost: dict[str, list[list[int]]] | None = None

    @property
    def key(self) -> str:
        return _key(self.shard, self.start)

    @classmethod
    def from_record(cls, record: Record) -> PartFacts:
        """Return the facts that the method `record` stored in a commit record."""
        facts = dict(record.facts)  # a copy, because the record must not change
        bad = facts.pop("bad", ())
        outside = facts.pop("outside", ())
        columns = tuple(Outside(*each) for each in outside)
        return cls(record.entry, **facts, bad=tuple(bad), outside=columns)

    def record(self, fingerprint: str) -> Record:
        """Return the commit record. `fingerprint` covers everything that determines the features."""
        facts = self._numbers()
        # Omit empty lists, because a run can have thousands of records and most parts have no bad rows.
        if self.bad:
            facts["bad"] = list(self.bad)
        if self.outside:
            facts["outside"] = list(self.outside)
        return Record(self.key, fingerprint, self.entry, facts)

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> PartFacts:
        """Return the facts in a part's line of a manifest."""
        entry = Entry(line["file"], line["n_bytes"], line["blake3"])
        return cls(entry, **{name: value for name, value in line.items() if name in _IN_LINES})

    def line(self) -> dict[str, Any]:
        """Return the part's line in the manifest, which omits the lists."""
        return {**vars(self.entry), **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        """Return all facts that are not None, except the file and the lists."""
        left_out = ("entry", *_LISTS)
        return {name: value for name, value in vars(self).items() if name not in left_out and value is not None}


_IN_LINES = frozenset(field.name for field in fields(PartFacts)) - {"entry", *_LISTS}
"""Names of the facts in a line of a manifest, in addition to those of the entry."""


def plan_parts(
    shards: Sequence[Shard], part_rows: int, committed: Sequence[PartFacts], numbers: Sequence[int] | None = None
) -> tuple[list[Part], list[PartFacts]]:
    """Plan parts of at most `part_rows` rows for all rows that are not committed yet, in row order.

    The sizes of committed parts can differ from `part_rows`, because the memory or the number of threads may have
    changed. All committed parts are kept, except parts that overlap an earlier one or extend past the end of their
    shard: these are returned as well. The numbers of the shards are by default their indices, see `Part`.
    """
    parts_of_shard = _by_shard(committed)
    missing: list[Part] = []
    overlapping: list[PartFacts] = []
    if numbers is None:
        numbers = range(len(shards))
    for number, shard in zip(numbers, shards, strict=True):
        gaps, unused = _gaps(shard, parts_of_shard.get(number, []))
        overlapping += unused
        for start, stop in gaps:
            blocks = Block(shard, start, stop).cut(part_rows)
            missing += [Part(number, block) for block in blocks]
    return missing, overlapping


def _by_shard(parts: Sequence[PartFacts]) -> dict[int, list[PartFacts]]:
    """Return the parts of each shard, sorted by first row."""
    by_shard: dict[int, list[PartFacts]] = {}
    for part in sorted(parts, key=lambda part: part.start):
        by_shard.setdefault(part.shard, []).append(part)
    return by_shard


def _gaps(shard: Shard, parts: Sequence[PartFacts]) -> tuple[list[tuple[int, int]], list[PartFacts]]:
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


def _key(shard: int, start: int) -> str:
    return f"part-{shard:06d}-{start:012d}"  # padded, so that names sort like numbers
