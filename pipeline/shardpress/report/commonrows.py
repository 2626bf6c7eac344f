"""Rows that two runs have in common: rows with the same number in the same input file."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardpress.records import Part, ShardFacts
from shardpress.report.rows import read_features, select_rows
from shardpress.result import Result

_ROWS = 4096
_BYTES = 2**26  # maximum size of the features of each run, in float64


@dataclass(frozen=True)
class EncodedRows:
    """The parts of a run, which may not be published yet."""

    directory: Path
    parts: Sequence[Part]
    n_features: int
    encoder: str  # fingerprint
    shards: Sequence[ShardFacts]

    @classmethod
    def of(cls, result: Result) -> EncodedRows:
        return cls(result.directory, result.parts, result.n_features, result.encoder, result.facts.request.shards)


def common_pieces(a: EncodedRows, b: EncodedRows) -> list[Piece]:
    """Return the common rows of two runs, without files that have changed between them."""
    changed = changed_files(a, b)
    return [piece for piece in all_pieces(a.parts, b.parts) if piece.name not in changed]


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

    @classmethod
    def of(cls, a: Part, b: Part) -> Piece:
        """Return the rows that are in both of two parts."""
        start = max(a.start, b.start)
        stop = min(a.stop, b.stop)
        return cls(
            name=Path(a.path).name,
            parts=(a.file, b.file),
            starts=(start - a.start, start - b.start),
            n_rows=stop - start,
        )

    def read(self, a: Path, b: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read some rows of both runs. Return their features, and a mask of the rows that are valid in both."""
        features_a, valid_a = read_features(a / self.parts[0], rows + self.starts[0])
        features_b, valid_b = read_features(b / self.parts[1], rows + self.starts[1])
        return features_a, features_b, valid_a & valid_b


def all_pieces(a: Sequence[Part], b: Sequence[Part]) -> Iterator[Piece]:
    """Yield pieces that contain all common rows, in the order of A."""
    by_name = _has_unique_names(a) and _has_unique_names(b)
    parts_of_file: dict[tuple[str, str], list[Part]] = {}
    for part in sorted(b, key=lambda part: part.start):
        parts_of_file.setdefault(_source(part, by_name), []).append(part)
    for part in a:
        others = parts_of_file.get(_source(part, by_name), [])
        for other in _overlapping(part, others):
            yield Piece.of(part, other)


def _overlapping(part: Part, others: Sequence[Part]) -> Sequence[Part]:
    """Return the parts of the same file in `others`, which are sorted by start, that overlap a part."""
    first = bisect_right(others, part.start, key=lambda other: other.stop)  # fast even with thousands of parts
    last = bisect_left(others, part.stop, key=lambda other: other.start)
    return others[first:last]


def _source(part: Part, by_name: bool) -> tuple[str, str]:
    """Return the key that identifies a source across runs, without the directory if the names of files are unique."""
    path = part.path
    return Path(path).name if by_name else path, part.dataset


def _has_unique_names(parts: Sequence[Part]) -> bool:
    names = {_source(part, by_name=True) for part in parts}
    paths = {_source(part, by_name=False) for part in parts}
    return len(names) == len(paths)


def changed_files(a: EncodedRows, b: EncodedRows) -> set[str]:
    """Return the names of input files whose size or modification time differs between two runs."""
    before = _file_states(a)
    now = _file_states(b)
    return {name for name in before.keys() & now.keys() if before[name] != now[name]}


def _file_states(rows: EncodedRows) -> dict[str, tuple[str, int, int]]:
    return {shard.file: shard.identity for shard in rows.shards}  # changed files that were read again come later


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
