"""Rows that two runs have in common: rows with the same number in shards with the same content."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardpress.records import Part, Range, ShardFacts, with_digests
from shardpress.report.rows import read_features, select_rows
from shardpress.result import Result

_ROWS = 4096
_BYTES = 2**26  # maximum size of the features of each run, in float64


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a run, which may not be published yet."""

    directory: Path
    ranges: Sequence[tuple[Part, Range]]  # in the order of the rows
    n_features: int
    encoder: str  # fingerprint
    shards: Sequence[ShardFacts]  # with digests

    @classmethod
    def of(cls, result: Result) -> EncodedRows:
        shards = with_digests(result.shards, result.parts)
        return cls(result.directory, result.ranges, result.n_features, result.encoder, shards)


def default_rows(n_features: tuple[int, int]) -> int:
    """Return the largest number of rows to compare, given the numbers of features of two runs."""
    return min(_ROWS, _BYTES // (8 * max(n_features)))


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one input file that are in one part of A and in one part of B."""

    name: str  # of the input file
    parts: tuple[str, str]
    starts: tuple[int, int]  # the first row within each part
    n_rows: int

    def read(self, a: Path, b: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read some rows of both runs. Return their features, and a mask of the rows that are valid in both."""
        features_a, valid_a, _ = read_features(a / self.parts[0], rows + self.starts[0])
        features_b, valid_b, _ = read_features(b / self.parts[1], rows + self.starts[1])
        return features_a, features_b, valid_a & valid_b


def common_pieces(a: EncodedRows, b: EncodedRows) -> list[Piece]:
    """Return pieces that contain all common rows, in the order of A."""
    pairs = _same_shards(a.shards, b.shards)
    by_shard: dict[int, list[tuple[Part, Range]]] = {}
    for part, each in b.ranges:
        by_shard.setdefault(each.shard, []).append((part, each))
    pieces = []
    for part, each in a.ranges:
        name = a.shards[each.shard].name
        others = by_shard.get(pairs.get(each.shard, -1), [])
        for other_part, other in _overlapping(each, others):
            start = max(each.start, other.start)
            n_rows = min(each.stop, other.stop) - start
            starts = (each.first + start - each.start, other.first + start - other.start)
            pieces.append(Piece(name, (part.file, other_part.file), starts, n_rows))
    return pieces


def _same_shards(a: Sequence[ShardFacts], b: Sequence[ShardFacts]) -> dict[int, int]:
    """Return the position in B of each shard of A whose rows are the same: first at the same path, then anywhere."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for key in (_content_at_place, _content):
        free: dict[Hashable, list[int]] = {}
        for j in reversed(range(len(b))):
            if j not in taken:
                free.setdefault(key(b[j]), []).append(j)
        for i, shard in enumerate(a):
            found = free.get(key(shard))
            if i not in pairs and found and shard.rows is not None:
                pairs[i] = found.pop()
                taken.add(pairs[i])
    return pairs


def _content(shard: ShardFacts) -> Hashable:
    return shard.kind, shard.rows


def _content_at_place(shard: ShardFacts) -> Hashable:
    return shard.place, shard.kind, shard.rows


def _overlapping(rows: Range, others: Sequence[tuple[Part, Range]]) -> Sequence[tuple[Part, Range]]:
    """Return the ranges of the same shard in `others`, which are sorted by start, that overlap a range."""
    first = bisect_right(others, rows.start, key=lambda pair: pair[1].stop)  # fast even with thousands of ranges
    last = bisect_left(others, rows.stop, key=lambda pair: pair[1].start)
    return others[first:last]


def n_changed(a: EncodedRows, b: EncodedRows) -> int:
    """Return the number of input files that are in both runs, but with other rows."""
    before = {shard.place: _content(shard) for shard in a.shards}
    return sum(before.get(shard.place, _content(shard)) != _content(shard) for shard in b.shards)


def read_pieces(a: Path, b: Path, pieces: Sequence[Piece], n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of A and of B for up to `n_rows` rows. Rows that are bad in either run are left out."""
    selection = select_rows([piece.n_rows for piece in pieces], n_rows)
    found = []
    for piece, rows in zip(pieces, selection, strict=True):
        if len(rows):
            features_a, features_b, is_valid = piece.read(a, b, rows)
            found.append((features_a[is_valid], features_b[is_valid]))
    if not found:
        return np.empty((0, 0)), np.empty((0, 0))
    return np.concatenate([features for features, _ in found]), np.concatenate([features for _, features in found])
