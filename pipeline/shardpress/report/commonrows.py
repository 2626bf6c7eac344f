"""Rows that two runs have in common: rows with the same number in shards with the same content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardpress.base.errors import DataError, printable, quantity
from shardpress.report.baselines import MIN_TEST_ROWS
from shardpress.report.recompute import read_features, select_rows
from shardpress.result.finished import Result, Use
from shardpress.result.records import Part, Range, ShardFacts

_MIN_ROWS = 6  # to hold out two of them
_ROWS = 4096
_BYTES = 2**26  # maximum size of the features of each run
_STRETCHES = 96  # of the common rows, of which every third one is held out
_ENOUGH = 300  # rows that measure an accuracy well


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a run, which may not be published yet."""

    directory: Path
    ranges: Sequence[tuple[Part, Range]]  # in the order of the rows
    n_features: int
    encoder: str  # fingerprint
    shards: Sequence[ShardFacts]  # with digests
    use: np.ndarray  # (n_rows,), numbers of `Use`
    is_supervised: bool  # whether targets of rows trained the features

    @classmethod
    def of(cls, result: Result) -> EncodedRows:
        return cls(
            directory=result.directory,
            ranges=result.ranges,
            n_features=result.n_features,
            encoder=result.encoder,
            shards=result.shards_with_digests,
            use=result.use(),
            is_supervised=result.model.target is not None,
        )

    def read(self, rows: np.ndarray, read: Callable[[Path, np.ndarray], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Read values of rows, given their numbers (n,) in the run, n > 0.

        `read` returns arrays, given a part and sorted positions in it. It is called once for each part.
        """
        ends = np.cumsum([of_part.n_rows for _, of_part in self.ranges])
        range_of = np.searchsorted(ends, rows, side="right")
        shifts = np.array([of_part.first + of_part.n_rows for _, of_part in self.ranges]) - ends
        positions = rows + shifts[range_of]
        files = np.array([part.file for part, _ in self.ranges])[range_of]
        order = np.lexsort((positions, files))
        values = [read(self.directory / file, positions[order[files[order] == file]]) for file in np.unique(files)]
        return [np.concatenate(arrays)[np.argsort(order)] for arrays in zip(*values, strict=True)]


@dataclass(frozen=True, eq=False)
class CommonRows:
    """Rows that are valid in both runs."""

    n_rows: int  # of all common rows, of which these are a selection without bad rows
    n_changed: int  # input files that are in both runs, but with other rows
    a: np.ndarray  # (n, n_features), float64
    b: np.ndarray
    is_held_out: np.ndarray  # bool (n,), rows that measure what the others determine
    trained_neither: bool  # whether the rows held out trained neither model
    rows_of_b: np.ndarray  # (n,), their numbers in run B


def read_common_rows(a: EncodedRows, b: EncodedRows, n_rows: int | None = None) -> CommonRows:
    """Read the features of up to `n_rows` common rows. Raise `DataError` if there are too few, or for unreadable parts.

    About a third of the rows is held out, in stretches, because neighbouring rows are similar. Only those that trained
    neither model are, if these are enough, or if the features are supervised, so that other rows would look too good.
    """
    pairs = _same_shards(a.shards, b.shards)
    sizes = [a.shards[i].shape[0] for i, _ in pairs]
    selection = select_rows(sizes, n_rows or min(_ROWS, _BYTES // (8 * max(a.n_features, b.n_features))))
    rows_a = _numbered(a, [i for i, _ in pairs], selection)
    rows_b = _numbered(b, [j for _, j in pairs], selection)
    if len(rows_a):
        features_a, valid_a = a.read(rows_a, lambda path, positions: read_features(path, positions)[:2])
        features_b, valid_b = b.read(rows_b, lambda path, positions: read_features(path, positions)[:2])
        is_valid = valid_a & valid_b
        rows_a = rows_a[is_valid]
        rows_b = rows_b[is_valid]
    if len(rows_a) < _MIN_ROWS:
        n_found = quantity(len(rows_a), "row")
        raise DataError(
            f"output={printable(a.directory)} and output={printable(b.directory)}: found {n_found} "
            f"with features in both, from input files with the same rows, expected at least {_MIN_ROWS}. Compare runs "
            "on the same files."
        )
    stretches = np.arange(len(rows_a)) * min(len(rows_a), _STRETCHES) // len(rows_a)
    is_third = stretches % 3 == 2
    is_unused = is_third & (a.use[rows_a] != Use.TRAINING) & (b.use[rows_b] != Use.TRAINING)
    has_unused = int(is_unused.sum()) >= (MIN_TEST_ROWS if a.is_supervised or b.is_supervised else _ENOUGH)
    return CommonRows(
        n_rows=sum(sizes),
        n_changed=_n_changed(a.shards, b.shards),
        a=features_a[is_valid].astype(np.float64),
        b=features_b[is_valid].astype(np.float64),
        is_held_out=is_unused if has_unused else is_third,
        trained_neither=has_unused,
        rows_of_b=rows_b,
    )


def _numbered(run: EncodedRows, shards: Sequence[int], selection: Sequence[np.ndarray]) -> np.ndarray:
    """Return the numbers (n,) of rows in a run, given shards and selected rows of each."""
    firsts = np.cumsum([0, *(shard.shape[0] for shard in run.shards)])
    return np.concatenate([np.empty(0, int), *(firsts[i] + rows for i, rows in zip(shards, selection, strict=True))])


def _same_shards(a: Sequence[ShardFacts], b: Sequence[ShardFacts]) -> list[tuple[int, int]]:
    """Return the positions of shards whose rows are known and the same. Each shard is in at most one pair."""
    free: dict[Hashable, list[int]] = defaultdict(list)
    for j in reversed(range(len(b))):
        free[_content(b[j])].append(j)
    return [(i, free[_content(shard)].pop()) for i, shard in enumerate(a) if shard.rows and free[_content(shard)]]


def _n_changed(a: Sequence[ShardFacts], b: Sequence[ShardFacts]) -> int:
    before = {shard.place: _content(shard) for shard in a}
    return sum(before.get(shard.place, _content(shard)) != _content(shard) for shard in b)


def _content(shard: ShardFacts) -> Hashable:
    return shard.kind, shard.rows
