"""A finished run that an append extends, with the changes of the append."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from shardpress.encoding.parts import PartFacts
from shardpress.model import Model
from shardpress.rowfacts import DROPPED
from shardpress.run.fingerprints import Request
from shardpress.settings.config import Config
from shardpress.shards.shard import Shard
from shardpress.shards.sources import Source


@dataclass(frozen=True)
class FinishedRun:
    """The finished run that an append extends, and what the append changes.

    Shards are numbered in the order in which they arrived. A number is never used again.

    Attributes
    ----------
    config : Config
        Settings of the append, with those of the finished run for everything that its rows depend on.
    manifest : dict
        Manifest of the finished run.
    model : Model
        Model of the finished run.
    parts : tuple of PartFacts
        Parts that stay, in row order.
    part : Shard or None
        One of these parts as a shard, with the extras of the index. None if no part stays.
    sources : tuple of Source
        Files to encode: new ones, changed ones, and those whose parts are damaged.
    numbers : tuple of int
        Number of each source.
    dropped : tuple of int
        Numbers of the shards whose rows are removed.
    copies : mapping of int to tuple of PartFacts
        Parts whose features are copied instead of computed, by the numbers of their shards: the rows are the same, but
        the extras can differ.
    reused : tuple of PartFacts
        Parts of the only source, if nothing is encoded: an append then only removes rows or adds files.
    row_digests : mapping of int to str
        Digests of the rows of changed files when they were encoded, by their numbers, if they are known.
    contents : list of dict
        Facts about the contents of the files that stay, as `shardpress.run.contents` stores them.
    """

    config: Config
    manifest: dict[str, Any]
    model: Model
    parts: tuple[PartFacts, ...]
    part: Shard | None
    sources: tuple[Source, ...]
    numbers: tuple[int, ...]
    dropped: tuple[int, ...]
    contents: list[dict[str, Any]]
    copies: Mapping[int, tuple[PartFacts, ...]] = field(default_factory=dict)
    reused: tuple[PartFacts, ...] = ()
    row_digests: Mapping[int, str] = field(default_factory=dict)

    @property
    def identities(self) -> list[dict[str, Any]]:
        """Identity of each shard by its number, as the request of the finished run stores it."""
        return list(self.manifest["request"]["inputs"]["shards"])

    @property
    def appends(self) -> list[dict[str, Any]]:
        """Facts about the earlier appends, in order."""
        return list(self.manifest.get("appends", []))

    @property
    def scans(self) -> list[dict[str, Any]]:
        """Fingerprint of the scan of each earlier append, or None, and the numbers of the shards that it encoded."""
        return list(self.manifest.get("scans", []))

    @property
    def append_id(self) -> int:
        """Number of this append, from 1 on."""
        return 1 + len(self.appends)

    @property
    def encoded_numbers(self) -> tuple[int, ...]:
        """Numbers of the sources whose rows are encoded, not copied or reused."""
        return () if self.reused else self.without_copies().numbers

    @property
    def n_new(self) -> int:
        """Number of sources that are new."""
        n_before = len(self.identities)
        return sum(number >= n_before for number in self.numbers)

    @property
    def n_changed(self) -> int:
        """Number of sources whose rows replace earlier ones."""
        return 0 if self.reused else len(self.numbers) - self.n_new - len(self.copies)

    def encoded(self, parts: Sequence[PartFacts]) -> list[PartFacts]:
        """Return the parts of an append whose features were computed, not copied."""
        return [] if self.reused else [part for part in parts if part.shard not in self.copies]

    def counts(self, parts: Sequence[PartFacts]) -> dict[str, int]:
        """Return the numbers of files that an append has added, replaced, copied and removed, and of encoded rows."""
        return {
            "n_new": self.n_new,
            "n_changed": self.n_changed,
            "n_copied": len(self.copies),
            "n_dropped": len(self.dropped),
            "n_rows": sum(part.n_rows for part in self.encoded(parts)),
        }

    def request(self, added: Request) -> Request:
        """Return the request of the extended run, given the request of the new shards only."""
        before = self.manifest["request"]
        shards = self.identities
        for number in self.dropped:
            shards[number] = {**shards[number], DROPPED: self.append_id}
        for number, identity in zip(self.numbers, added.inputs["shards"], strict=True):
            shards[number : number + 1] = [identity]  # adds it if the number is new
        n_trained = before["inputs"].get("n_trained", len(before["inputs"]["shards"]))
        return Request(
            inputs={"shards": shards, "n_trained": n_trained},
            scan=before["scan"],
            training=before["training"],
            encoding={**before["encoding"], **_extras_in(added.encoding)},
            folders=sorted({*before.get("folders", []), *added.folders}),
        )

    def copying(self, digests: Mapping[int, str | None]) -> FinishedRun:
        """Return a copy that copies the features of changed files whose rows are the same.

        Parameters
        ----------
        digests : mapping of int to str or None
            Current digests of the rows of the files in `row_digests`.
        """
        same = [number for number, found in digests.items() if found == self.row_digests[number]]
        by_shard = parts_by_shard([PartFacts.from_line(line) for line in self.manifest["parts"]])
        found = {number: by_shard.get(number, ()) for number in same}
        return replace(self, copies={**self.copies, **found})

    def without_copies(self) -> FinishedRun:
        """Return a copy without the sources whose features are copied."""
        is_encoded = [number not in self.copies for number in self.numbers]
        sources = tuple(compress(self.sources, is_encoded))
        numbers = tuple(compress(self.numbers, is_encoded))
        return replace(self, sources=sources, numbers=numbers, copies={})

    def without(self, refused: Collection[Path]) -> FinishedRun:
        """Return a copy without sources that cannot be read. If they have rows in the results, these are removed."""
        n_before = len(self.identities)
        sources = []
        numbers = []
        dropped = list(self.dropped)
        next_number = n_before
        for number, source in zip(self.numbers, self.sources, strict=True):
            if source.path in refused:
                if number < n_before:
                    dropped.append(number)
                continue
            if number >= n_before:
                number = next_number
                next_number += 1
            sources.append(source)
            numbers.append(number)
        remaining = set(numbers)
        return replace(
            self,
            sources=tuple(sources),
            numbers=tuple(numbers),
            dropped=tuple(sorted(dropped)),
            copies={number: parts for number, parts in self.copies.items() if number in remaining},
        )


def parts_by_shard(parts: Sequence[PartFacts]) -> dict[int, tuple[PartFacts, ...]]:
    """Return the parts of each shard in order, by the number of the shard."""
    found: dict[int, list[PartFacts]] = defaultdict(list)
    for part in parts:
        found[part.shard].append(part)
    return {number: tuple(of_shard) for number, of_shard in found.items()}


def _extras_in(encoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extras that a user has named, from the settings of the features in a request."""
    return {"include": encoding["include"]} if "include" in encoding else {}
