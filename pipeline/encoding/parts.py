"""Which rows make a part, and what is known of a part whose features stand in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.output.records import Entry, Record
from pipeline.scan.drift import Outside
from pipeline.shards.shard import Block, Shard

__all__ = ["LISTED", "Part", "PartFacts", "plan_parts"]


LISTED = 20
"""Columns in which a part's rows lie outside a range that its record keeps, at most: there are thousands of parts."""


@dataclass(frozen=True)
class Part:
    """A row range of one input shard whose features are committed together.

    Attributes
    ----------
    number : int
        The shard's place in the input.
    source : Block
        The rows it is made from.
    """

    number: int
    source: Block

    @property
    def key(self) -> str:
        """Its name; in the order of the names, parts are in the order of the input's rows."""
        return _key(self.number, self.source.start)


@dataclass(frozen=True)
class PartFacts:
    """A part whose features stand in a file.

    Its commit record and its line of the manifest are made of this, and nothing else knows what stands in them.

    Attributes
    ----------
    entry : Entry
        The file.
    n_rows, n_bad, n_outside : int
        Rows; those whose features do not count; good ones outside the range of the model's training rows.
    shard : int
        Its source's place in the input.
    start, stop : int
        Rows of the dataset.
    dtype, max_error : str, float or None
        Of the features as they are stored, and how far one is off at most from what the encoder gave; None where they
        are stored as they come from it.
    bad : tuple of dict
        With quarantine, ``row``, ``columns`` and ``reason`` of each bad row.
    outside : tuple of Outside
        The columns in which rows lie farthest outside that range, and how many values do.
    """

    entry: Entry
    n_rows: int
    n_bad: int
    n_outside: int
    shard: int
    path: str
    dataset: str
    start: int
    stop: int
    dtype: str | None = None
    max_error: float | None = None
    bad: tuple[dict[str, Any], ...] = ()
    outside: tuple[Outside, ...] = ()

    @classmethod
    def of(cls, record: Record) -> PartFacts:
        """What `record` has made a record of."""
        facts = dict(record.facts)  # a record stays as it was read
        bad = facts.pop("bad", ())
        outside = facts.pop("outside", ())
        return cls(record.entry, **facts, bad=tuple(bad), outside=tuple(Outside(*each) for each in outside))

    def record(self, fingerprint: str) -> Record:
        """What commits it; `fingerprint` is of everything that decides its features."""
        # Empty lists stay out: a record of a part without bad rows is as short as it can be, and there are thousands.
        lists = {name: list(found) for name in ("bad", "outside") if (found := getattr(self, name))}
        return Record(_key(self.shard, self.start), fingerprint, self.entry, {**self._numbers(), **lists})

    def line(self) -> dict[str, Any]:
        """What the manifest says of it; the lists stay in the record."""
        return {**vars(self.entry), **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name not in ("entry", "bad", "outside")}
        return {name: value for name, value in facts.items() if value is not None}


def plan_parts(
    shards: Sequence[Shard], part_rows: int, there: Sequence[PartFacts]
) -> tuple[list[Part], list[PartFacts]]:
    """Parts for the rows that no committed one holds, in their order; and committed ones that count for nothing.

    Committed parts may be of another size: what they hold stays, whatever the memory or the threads are now. Only those
    that overlap an earlier one are for nothing.
    """
    missing: list[Part] = []
    overlapping: list[PartFacts] = []
    of_shard: dict[int, list[PartFacts]] = {}
    for part in sorted(there, key=lambda part: part.start):  # so that the one that begins first is kept
        of_shard.setdefault(part.shard, []).append(part)
    for number, shard in enumerate(shards):
        first = 0
        gaps = list[tuple[int, int]]()
        for part in of_shard.get(number, []):
            if part.start < first or part.stop > shard.n_rows:  # made with parts of other sizes, by two runs
                overlapping.append(part)
                continue
            gaps.append((first, part.start))
            first = part.stop
        gaps.append((first, shard.n_rows))
        missing += [Part(number, block) for gap in gaps for block in Block(shard, *gap).cut(part_rows)]
    return missing, overlapping


def _key(shard: int, start: int) -> str:
    return f"part-{shard:06d}-{start:012d}"  # as many digits as keep the order of the numbers
