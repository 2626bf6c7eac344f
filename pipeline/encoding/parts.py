"""Parts: row ranges whose features are committed together, and the facts about committed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.output.records import Entry, Record
from pipeline.scan.drift import Outside
from pipeline.shards.shard import Block, Shard

__all__ = ["MAX_LISTED_COLUMNS", "Part", "PartFacts", "plan_parts"]

MAX_LISTED_COLUMNS = 20
"""Largest number of columns with values outside the range in the record of a part; there are thousands of parts."""


@dataclass(frozen=True)
class Part:
    """A row range of one input shard whose features are committed together.

    Attributes
    ----------
    number : int
        Index of the shard in the input.
    source : Block
        The rows of the part.
    """

    number: int
    source: Block

    @property
    def key(self) -> str:
        """The part's name. Sorting parts by name sorts them in the order of the input's rows."""
        return _key(self.number, self.source.start)


@dataclass(frozen=True)
class PartFacts:
    """Facts about one encoded part.

    Only this class knows the contents of a part's commit record and of its line in the manifest.

    Attributes
    ----------
    entry : Entry
        The part's file.
    n_rows : int
        Number of rows.
    n_bad : int
        Number of bad rows, whose features are NaN.
    n_outside : int
        Number of good rows outside the range of the model's training rows.
    shard : int
        Index of the shard in the input.
    path, dataset : str
        The shard's file, and the dataset that holds its rows.
    start, stop : int
        Row range in the shard.
    dtype : str or None
        Dtype of the stored features, or None if they are stored exactly as the encoder returned them.
    max_error : float or None
        Largest difference between a stored feature and the encoder's result, or None as for `dtype`.
    bad : tuple of dict
        With quarantine, ``row``, ``columns`` and ``reason`` of each bad row.
    outside : tuple of Outside
        The columns in which rows lie farthest outside the range, with the number of such values.
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
    def from_record(cls, record: Record) -> PartFacts:
        """Return the facts that `record` has put into a commit record."""
        facts = dict(record.facts)  # a copy, because the record must not change
        bad = facts.pop("bad", ())
        outside = facts.pop("outside", ())
        columns = tuple(Outside(*each) for each in outside)
        return cls(record.entry, **facts, bad=tuple(bad), outside=columns)

    def record(self, fingerprint: str) -> Record:
        """Return the commit record; the fingerprint covers everything that determines the features."""
        facts = self._numbers()
        # Empty lists are left out: there are thousands of records, and most parts have no bad rows.
        if self.bad:
            facts["bad"] = list(self.bad)
        if self.outside:
            facts["outside"] = list(self.outside)
        return Record(_key(self.shard, self.start), fingerprint, self.entry, facts)

    def line(self) -> dict[str, Any]:
        """Return the part's line of the manifest, which does not repeat the lists."""
        return {**vars(self.entry), **self._numbers()}

    def _numbers(self) -> dict[str, Any]:
        """Return all facts except the file, the lists, and None."""
        left_out = ("entry", "bad", "outside")
        return {name: value for name, value in vars(self).items() if name not in left_out and value is not None}


def plan_parts(
    shards: Sequence[Shard], part_rows: int, committed: Sequence[PartFacts]
) -> tuple[list[Part], list[PartFacts]]:
    """Plan parts for all rows that are not committed yet.

    The sizes of committed parts may differ from `part_rows`, since memory and threads may have changed. All of them are
    kept, except those that overlap an earlier part.

    Parameters
    ----------
    shards : sequence of Shard
    part_rows : int
        Largest number of rows of a new part.
    committed : sequence of PartFacts
        Parts of earlier runs.

    Returns
    -------
    missing : list of Part
        Parts to encode, in the order of the rows.
    overlapping : list of PartFacts
        Committed parts that are not used.
    """
    parts_of_shard = _by_shard(committed)
    missing: list[Part] = []
    overlapping: list[PartFacts] = []
    for number, shard in enumerate(shards):
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
    """Return the row ranges of a shard between its parts, sorted by first row, and the parts that do not fit."""
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
