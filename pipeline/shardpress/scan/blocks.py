"""Tasks of a scan. They compute and merge statistics of blocks of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from shardpress.base.errors import DataError
from shardpress.cluster.threads import check
from shardpress.hdf5.shard import ArrayShard, Block, Shard, first_rows
from shardpress.model.scaler import bad_rows, missing_entries
from shardpress.scan.column_sample import sample_positions
from shardpress.shards.conversion import AS_STORED, Conversion
from shardpress.shards.digests import Digest
from shardpress.shards.rows import keep_chunks, read_in_pieces

_NO_ROWS = np.empty(0, dtype=np.int64)


class ScanBlock(NamedTuple):
    """A block of rows for a scan."""

    number: int  # of the shard in the input
    first_row: int  # global number of the first row of the shard
    block: Block
    is_fitted: np.ndarray | None = None  # mask (len(block),) of the rows to fit to. None: all rows

    def with_fitted(self, fitted: np.ndarray | None) -> ScanBlock:
        """Return the piece with its part of a mask (n_rows,) of all rows."""
        if fitted is None:
            return self
        first = self.first_row + self.block.start
        return self._replace(is_fitted=fitted[first : first + len(self.block)])


class ScanTask(tuple[ScanBlock, ...]):
    """Consecutive pieces that one task scans."""

    def __str__(self) -> str:
        first = self[0].block
        last = self[-1].block
        if first == last:
            return str(first)
        return f"{first} to {last}"


def pieces_of(shards: Sequence[Shard], block_rows: int) -> list[ScanBlock]:
    """Return all rows as pieces of at most `block_rows` rows, in row order."""
    starts = first_rows(shards).tolist()
    pieces = []
    for number, shard in enumerate(shards):
        pieces += [ScanBlock(number, starts[number], block) for block in Block(shard, 0, shard.n_rows).cut(block_rows)]
    return pieces


@dataclass(frozen=True)
class ScanSettings:
    """Settings of a scan."""

    block_rows: int  # rows that a task holds in memory at once
    missing: float | None = None  # marks missing entries, in addition to NaN
    max_unreadable: int | None = None  # unreadable shards to tolerate. None: the first one raises an error
    clip_quantile: float = 0.0  # share of each column's values to exclude from the range at either end
    impute: str | None = None  # "mean" or "median" replaces missing values. None: rows with missing values are bad
    scale: str = "range"  # as in `shardpress.scan.scaling.scaled_as`, or "auto"
    chunk_bytes: int = 0  # size of the cache of decompressed chunks in each process
    missing_indicator: bool = False  # each column with missing values gets an indicator
    # False if no model will be trained. The scan then has nothing that needs a sample of the rows, except for clipped
    # ranges and fill values.
    for_training: bool = True
    checks_extras: bool = False  # extras are read, too, so that damaged ones are found before a training
    conversion: Conversion = AS_STORED

    @property
    def fills(self) -> bool:
        return self.impute is not None

    @property
    def needs_sample(self) -> bool:
        """True if the scan needs a sample of the rows. Copying the sample takes as long as the rest of the scan."""
        return self.for_training or self.fills or self.clip_quantile > 0


@dataclass(frozen=True)
class BlockStats:
    """Statistics of the rows of some blocks. All but `n_rows` and `bad_rows` describe only the good rows to fit to."""

    n_rows: int  # including bad rows
    n_fitted: int
    minimum: np.ndarray  # (n_inputs,), float64; Inf if there is no row
    maximum: np.ndarray  # (n_inputs,), float64; -Inf if there is no row
    bad_rows: np.ndarray  # int64, sorted global numbers
    n_missing: np.ndarray  # (n_inputs,), int64, missing values of each column
    sample: np.ndarray  # (n, n_inputs), float64, with NaN for missing values
    unreadable: Mapping[int, str] = field(default_factory=dict)  # reasons by the number of the shard in the input
    digests: Mapping[int, int] = field(default_factory=dict)  # of rows, by the number of the shard
    damaged_extras: Mapping[int, str] = field(default_factory=dict)  # reasons by the number of the shard


def scan_pieces(settings: ScanSettings, stride: int, pieces: Sequence[ScanBlock]) -> BlockStats:
    """Return the statistics of a task's pieces, with a sample of one row of each stratum of `stride` rows.

    If unreadable shards are tolerated, an unreadable block contributes only the reason of the failure.
    """
    stats = []
    # Reuse the memory of the last block, because new pages would take half as long as the scan of a block.
    n_bytes = max(len(piece.block) * settings.conversion.row_bytes(piece.block.shard) for piece in pieces)
    memory = np.empty(n_bytes, np.uint8)
    keep_chunks(settings.chunk_bytes)
    for piece in pieces:
        check()
        block = piece.block
        try:
            digest = None if isinstance(block.shard, ArrayShard) else Digest()  # no later run recognizes an array
            rows = settings.conversion.read(block, memory, digest)
            of_block = _stats_of_rows(settings, stride, piece, rows)
            stats.append(of_block if digest is None else replace(of_block, digests={piece.number: digest.value}))
            reason = _damage_of_extras(block) if settings.checks_extras else None
            if reason is not None:
                stats[-1] = replace(stats[-1], damaged_extras={piece.number: reason})
        except DataError as error:
            if settings.max_unreadable is None:
                raise
            # `scan` discards this pass, and with it the statistics of the other blocks of this shard.
            reasons = {piece.number: str(error)}
            stats.append(_without_fitted_rows(len(block), block.shard.n_inputs, _NO_ROWS, reasons))
    return merge_stats(stats)


def _damage_of_extras(block: Block) -> str | None:
    """Return the error of the first extra that cannot be read, or None."""
    for extra in block.shard.extras:
        if extra.stored is None or (extra.stored.layout.kind == "contiguous" and extra.codes is None):
            continue  # nothing would reveal damage
        try:
            for _ in read_in_pieces(block, extra, check):
                pass
        except DataError as error:
            return str(error)
    return None


def stats_of_unreadable(shards: Sequence[Shard], unreadable: Mapping[int, str]) -> BlockStats:
    """Return the statistics of unreadable shards, whose rows are all bad."""
    firsts = first_rows(shards)
    numbers = [np.arange(firsts[i], firsts[i + 1]) for i in sorted(unreadable)]
    bad = np.concatenate([_NO_ROWS, *numbers])
    return _without_fitted_rows(len(bad), shards[0].n_inputs, bad, unreadable)


def merge_stats(stats: Sequence[BlockStats]) -> BlockStats:
    """Merge the statistics of blocks, which must be in row order."""
    return BlockStats(
        n_rows=sum(part.n_rows for part in stats),
        n_fitted=sum(part.n_fitted for part in stats),
        minimum=np.minimum.reduce([part.minimum for part in stats]),
        maximum=np.maximum.reduce([part.maximum for part in stats]),
        bad_rows=np.sort(np.concatenate([part.bad_rows for part in stats])),
        n_missing=np.sum([part.n_missing for part in stats], axis=0),
        sample=np.concatenate([part.sample for part in stats]),
        unreadable=_first_reasons([part.unreadable for part in stats]),
        digests=_summed(stats),
        damaged_extras=_first_reasons([part.damaged_extras for part in stats]),
    )


def _summed(stats: Sequence[BlockStats]) -> dict[int, int]:
    digests: dict[int, Digest] = {}
    for part in stats:
        for number, value in part.digests.items():
            digests.setdefault(number, Digest()).add(value)
    return {number: digest.value for number, digest in digests.items()}


def _first_reasons(all_reasons: Sequence[Mapping[int, str]]) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for some_reasons in all_reasons:
        for number, reason in some_reasons.items():
            reasons.setdefault(number, reason)
    return dict(sorted(reasons.items()))


def _stats_of_rows(settings: ScanSettings, stride: int, piece: ScanBlock, rows: np.ndarray) -> BlockStats:
    first_row = piece.first_row + piece.block.start
    stored = piece.block.shard.stored_dtype
    bad = _NO_ROWS
    n_missing = np.zeros(rows.shape[1], dtype=np.int64)
    minimum = rows.min(axis=0)  # in the dtype of the rows, because a conversion would copy the block
    maximum = rows.max(axis=0)
    # NaN and Inf propagate into the minimum or maximum, so most blocks need no second check.
    may_be_bad = settings.missing is not None or not (np.isfinite(minimum).all() and np.isfinite(maximum).all())
    if may_be_bad:
        bad = bad_rows(rows, settings.missing, stored, settings.fills)
    left_out = _left_out(bad, piece.is_fitted)
    if len(left_out) == len(rows):  # the minimum of an empty array is undefined
        return _without_fitted_rows(len(rows), rows.shape[1], first_row + bad)
    if may_be_bad or len(left_out):
        minimum, maximum, n_missing = _range_and_missing(settings, rows, left_out, stored)
    return BlockStats(
        n_rows=len(rows),
        n_fitted=len(rows) - len(left_out),
        minimum=minimum.astype(np.float64),
        maximum=maximum.astype(np.float64),
        bad_rows=first_row + bad,
        n_missing=n_missing,
        sample=_sample(settings, stride, first_row, rows, left_out, stored),
    )


def _left_out(bad: np.ndarray, is_fitted: np.ndarray | None) -> np.ndarray:
    """Return the sorted positions of the rows that are bad or not fitted to."""
    if is_fitted is None:
        return bad
    return np.union1d(bad, np.flatnonzero(~is_fitted))


def _range_and_missing(
    settings: ScanSettings, rows: np.ndarray, left_out: np.ndarray, stored: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the minimum, maximum and number of missing values of each column in the other rows, which are good."""
    good = rows
    if len(left_out):
        good = np.delete(rows, left_out, axis=0)
    if not settings.fills:
        return good.min(axis=0), good.max(axis=0), np.zeros(rows.shape[1], dtype=np.int64)
    is_missing = missing_entries(good, settings.missing, stored)
    minimum, maximum = _range_of_present(good, is_missing)
    return minimum, maximum, is_missing.sum(axis=0, dtype=np.int64)


def _sample(
    settings: ScanSettings, stride: int, first_row: int, rows: np.ndarray, left_out: np.ndarray, stored: str
) -> np.ndarray:
    """Return the sampled rows, except those that are left out, as float64 with NaN for missing values."""
    if not settings.needs_sample:
        return np.empty((0, rows.shape[1]))
    positions = np.setdiff1d(sample_positions(first_row, len(rows), stride), left_out)
    chosen = rows[positions]
    sample = chosen.astype(np.float64)
    if settings.fills:
        sample[missing_entries(chosen, settings.missing, stored)] = np.nan
    return sample


def _range_of_present(rows: np.ndarray, is_missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum and maximum of the values that are not missing. For empty columns, return Inf and -Inf."""
    lowest, highest = _limits_of(rows.dtype)
    minimum = rows.min(axis=0, where=~is_missing, initial=highest).astype(np.float64)
    maximum = rows.max(axis=0, where=~is_missing, initial=lowest).astype(np.float64)
    is_empty = is_missing.all(axis=0)
    minimum[is_empty] = np.inf
    maximum[is_empty] = -np.inf
    return minimum, maximum


def _limits_of(dtype: np.dtype) -> tuple[float, float]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def _without_fitted_rows(
    n_rows: int, n_inputs: int, bad_rows: np.ndarray, unreadable: Mapping[int, str] | None = None
) -> BlockStats:
    """Return statistics of rows that are bad or not fitted to. They do not change the range in a merge."""
    return BlockStats(
        n_rows=n_rows,
        n_fitted=0,
        minimum=np.full(n_inputs, np.inf),
        maximum=np.full(n_inputs, -np.inf),
        bad_rows=bad_rows,
        n_missing=np.zeros(n_inputs, dtype=np.int64),
        sample=np.empty((0, n_inputs)),
        unreadable=dict(unreadable or {}),
    )
