"""A finished run that an append extends, with the changes of the append."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from shardpress.model import Model
from shardpress.records import FileContents, Part, Request, ShardFacts
from shardpress.result import Result
from shardpress.rowfacts import n_trained_shards
from shardpress.settings.config import Config
from shardpress.shards.shard import Shard
from shardpress.shards.sources import Source


@dataclass(frozen=True)
class FinishedRun:
    """The finished run that an append extends, and what the append changes.

    Shards are numbered in the order in which they arrived. A number is never used again.
    """

    config: Config  # of the append, with the settings of the finished run on which its rows depend
    result: Result
    parts: tuple[Part, ...]  # those that stay, in row order
    part: Shard | None  # one of these parts as a shard, with the extras of the index
    sources: tuple[Source, ...]  # files to encode: new or changed ones, others with damaged parts or to get extras
    numbers: tuple[int, ...]  # of each source
    dropped: tuple[int, ...]  # shards whose rows are removed
    contents: list[FileContents]  # of the files that stay
    same_rows: frozenset[int] = frozenset()  # sources with the same rows as before, whose features stay the same
    # Digests of the rows of changed files when they were encoded, as far as they are known.
    row_digests: Mapping[int, str] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        return self.result.model

    @property
    def shards(self) -> list[ShardFacts]:
        """Shards of the finished run, by their numbers."""
        return self.result.facts.request.shards

    @property
    def append_id(self) -> int:
        """Number of this append, from 1 on."""
        return 1 + len(self.result.facts.appends)

    @property
    def append_ids(self) -> dict[int, int]:
        """The append that added the rows of each source, by its number; 0 for the run that trained the model."""
        earlier = {part.shard: part.append_id for part in self.result.parts}
        return {number: earlier[number] if number in self.same_rows else self.append_id for number in self.numbers}

    @property
    def n_new(self) -> int:
        """Number of sources that are new."""
        n_before = len(self.shards)
        return sum(number >= n_before for number in self.numbers)

    @property
    def n_changed(self) -> int:
        """Number of sources whose rows replace earlier ones."""
        return len(self.numbers) - self.n_new - len(self.same_rows)

    def new_parts(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts of an append with new or changed rows."""
        return [part for part in parts if part.shard not in self.same_rows]

    def counts(self, parts: Sequence[Part]) -> dict[str, int]:
        """Return the numbers of files of each kind and of new rows, for reports."""
        return {
            "n_new": self.n_new,
            "n_changed": self.n_changed,
            "n_same": len(self.same_rows),
            "n_dropped": len(self.dropped),
            "n_rows": sum(part.n_rows for part in self.new_parts(parts)),
        }

    def request(self, added: Request) -> Request:
        """Return the request of the extended run, given the request of the new shards only."""
        before = self.result.facts.request
        shards = list(before.shards)
        for number in self.dropped:
            shards[number] = structs.replace(shards[number], dropped_by=self.append_id)
        for number, facts in zip(self.numbers, added.shards, strict=True):
            shards[number : number + 1] = [facts]  # adds it if the number is new
        return structs.replace(
            before,
            shards=shards,
            n_trained=n_trained_shards(before),
            encoding={**before.encoding, "include": added.encoding["include"]},
            folders=sorted({*before.folders, *added.folders}),
        )

    def recognizing(self, digests: Mapping[int, str | None]) -> FinishedRun:
        """Return a copy that recognizes changed files with the same rows, given the current digests of their rows."""
        same = [number for number, found in digests.items() if found == self.row_digests[number]]
        return replace(self, same_rows=self.same_rows.union(same))

    def without(self, refused: Collection[Path]) -> FinishedRun:
        """Return a copy without sources that cannot be read. If they have rows in the results, these are removed."""
        n_before = len(self.shards)
        remaining = [
            (number, source)
            for number, source in zip(self.numbers, self.sources, strict=True)
            if source.path not in refused
        ]
        earlier = [number for number, _ in remaining if number < n_before]
        removed = {number for number in self.numbers if number < n_before} - set(earlier)
        return replace(
            self,
            sources=tuple(source for _, source in remaining),
            numbers=(*earlier, *range(n_before, n_before + len(remaining) - len(earlier))),
            dropped=tuple(sorted({*self.dropped, *removed})),
            same_rows=self.same_rows.intersection(earlier),
        )
