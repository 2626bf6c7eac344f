"""Comparison of the rows and extras of a result with those of files that have other times than before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from msgspec import structs

from shardpress.base.errors import DataError, NoInput
from shardpress.cluster.threads import check
from shardpress.hdf5.shard import Block, Shard, aligned
from shardpress.report.origin import preprocessing_of
from shardpress.report.recompute import check_failure, check_rows
from shardpress.result.features import FAILURES, reading
from shardpress.result.finished import Result, stored_name
from shardpress.result.records import BadValues, Part, Range, ShardFacts
from shardpress.shards.conversion import digest_of_rows
from shardpress.shards.digests import UNIT_ROWS, ExtrasDigest, bytes_of
from shardpress.shards.rows import read, read_extras, read_in_pieces, text_rows

_PIECE = 2**23  # bytes of rows or extras that are read at once


def with_content(
    facts: ShardFacts, shard: Shard, names: Collection[str], before: ShardFacts | None = None
) -> ShardFacts:
    """Return the facts about a shard with the digests of its rows and of some extras; unchanged if it is damaged.

    The rows are not read if only the master file has changed since `before`.
    """
    shard = with_extras(shard, names)
    rows = before.rows if before is not None and before.has_file_of(facts) else None
    try:
        rows = rows or digest_of_rows(Block(shard, 0, shard.n_rows))
        extras = _digest_of_extras(shard)
    except (DataError, NoInput):  # the run finds and reports this again
        return facts
    return structs.replace(facts, rows=rows, extras=extras)


def with_extras(shard: Shard, names: Collection[str]) -> Shard:
    """Return the shard with only some of its extras."""
    return replace(shard, extras=tuple(extra for extra in shard.extras if extra.name in names))


def _digest_of_extras(shard: Shard) -> str:
    digest = ExtrasDigest(0)
    for extra in shard.extras:
        digest.add(extra.name, read_in_pieces(Block(shard, 0, shard.n_rows), extra))
    return str(digest)


class Damage(NamedTuple):
    """Rows of a shard whose values or extras cannot be read."""

    n_rows: int
    reason: str  # the error of the first ones


def damage_of(shard: Shard, before: ShardFacts, result: Result) -> Damage | None:
    """Return what cannot be read of a shard, if all else is that of the result; otherwise None.

    `before` are the facts about its rows in the result. Rows are compared by their digest or, if some of them cannot be
    read, by their features; extras are compared by their values.
    """
    if before.rows is None:  # the result has no features of these rows
        return None
    pairs = [pair for pair in result.ranges if pair[1].shard == before.id]
    reasons: list[str] = []
    is_unread = _unreadable_rows(shard, reasons)
    if is_unread.any():
        checked = check_rows(
            result.directory,
            pairs,
            result.shards,
            lambda shard_id: shard,
            preprocessing_of(result),
            shard.n_rows,
        )
        has_rows = not checked.faults
    else:
        has_rows = digest_of_rows(Block(shard, 0, shard.n_rows)) == before.rows
    if not has_rows or not all(_has_extras(shard, pair, result, is_unread, reasons) for pair in pairs):
        return None
    return Damage(int(np.count_nonzero(is_unread)), reasons[0]) if reasons else None


def _unreadable_rows(shard: Shard, reasons: list[str]) -> np.ndarray:
    """Return a mask (n_rows,) of the rows that cannot be read, chunk by chunk, and add the errors to `reasons`."""
    is_unread = np.zeros(shard.n_rows, dtype=bool)
    n_at_once = shard.chunk_rows if shard.chunk_rows > 1 else UNIT_ROWS
    for start, stop in aligned(0, shard.n_rows, min(n_at_once, max(1, _PIECE // shard.row_bytes))):
        check()
        try:
            read(Block(shard, start, stop))
        except DataError as error:
            is_unread[start:stop] = True
            reasons.append(str(error))
    return is_unread


def _has_extras(
    shard: Shard, pair: tuple[Part, Range], result: Result, is_unread: np.ndarray, reasons: list[str]
) -> bool:
    """Return whether all extras that can be read are stored in a part, and add the others to `is_unread`."""
    part, rows = pair
    path = result.directory / part.file
    row_bytes = sum(extra.dtype.itemsize for extra in shard.extras)
    n_rows = min(_PIECE // max(1, row_bytes), text_rows(shard, _PIECE))
    try:
        with reading(path) as file:
            for block in Block(shard, rows.start, rows.stop).cut(max(1, n_rows)):
                reports: list[BadValues] = []
                values = read_extras(block, reports, check, warns=False)  # the stored values stay
                first = rows.first + block.start - rows.start
                stored = {name: file[stored_name(name)][first : first + len(block)] for name in values}
                lost = _lost_values(block, reports)
                for name, is_lost in lost.items():
                    is_unread[block.start : block.stop] |= is_lost
                    if not _are_equal(stored[name][~is_lost], values[name][~is_lost]):
                        return False
                reasons += [report.reason for report in reports]
    except FAILURES as error:
        check_failure(error, path)
        return False
    return True


def _lost_values(block: Block, reports: Sequence[BadValues]) -> dict[str, np.ndarray]:
    """Return a mask (len(block),) of the values of each extra that reports name. A mask is lost with its extra."""
    lost = {extra.name: np.zeros(len(block), dtype=bool) for extra in block.shard.extras}
    for extra in block.shard.extras:
        for report in reports:
            if extra.stored is not None and report.dataset == extra.stored.layout.name:
                lost[extra.name][report.start - block.start : report.stop - block.start] = True
        if extra.mask is not None:
            lost[extra.mask] = lost[extra.name]
    return lost


def _are_equal(stored: np.ndarray, values: np.ndarray) -> bool:
    same_dtype = stored if values.dtype.hasobject else stored.astype(values.dtype)
    return bytes(bytes_of(same_dtype)) == bytes(bytes_of(values))
