"""Shards with equal rows under different names, such as a file that was copied into the input twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from shardpress.errors import DataError, printable
from shardpress.formats import digest
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard

_SAMPLED_ROWS = 16  # rows of a shard that are compared first
_SAMPLED_BYTES = 2**16  # bytes of these rows, unless one row is larger
_BLOCK_BYTES = 2**23
_MOST_SAMPLED = 1000  # shards of equal shape that are compared by a sample


@dataclass(frozen=True)
class Twins:
    """Two shards with equal rows, in the order of the input."""

    first: Shard
    second: Shard
    n_compared: int  # rows of each shard

    def __str__(self) -> str:
        names = f"file={printable(self.first.path)} and file={printable(self.second.path)}"
        if self.n_compared == self.first.n_rows:
            return f"{names}: both hold the same {self.n_compared} rows. Remove one of them if it is a copy."
        return (
            f"{names}: may hold the same {self.first.n_rows} rows; {self.n_compared} of them were compared and are "
            "equal. Compare all rows with `shardpress inspect --all`."
        )


def find_twins(shards: Sequence[Shard], compares_all: bool) -> Iterator[Twins]:
    """Yield each shard whose rows are equal to those of an earlier shard, with the first such shard.

    Only shards of the same shape, dtype and stored size are read: first a few rows of each, then, if `compares_all`,
    all rows of the shards with equal samples. A shard that cannot be read has no twin.
    """
    non_empty = [shard for shard in shards if shard.n_rows]
    for alike in _group_by_key(non_empty, map(_stored_key, non_empty)):
        if not compares_all:
            alike = alike[:_MOST_SAMPLED]
        samples = [_sample(shard) for shard in alike]
        for equal in _group_by_key(alike, map(_digest_of, samples)):
            if compares_all:
                yield from _equal_in_all_rows(equal)
            else:
                yield from (Twins(equal[0], other, len(samples[0])) for other in equal[1:])


def _equal_in_all_rows(shards: Sequence[Shard]) -> Iterator[Twins]:
    digests = [_digest_of(Block(shard, 0, shard.n_rows)) for shard in shards]
    for equal in _group_by_key(shards, digests):
        yield from (Twins(equal[0], other, other.n_rows) for other in equal[1:])


def _group_by_key(shards: Sequence[Shard], keys: Iterable[Hashable]) -> list[list[Shard]]:
    """Return groups of two or more shards with equal keys. Leave out shards whose key is None."""
    groups: dict[Hashable, list[Shard]] = {}
    for shard, key in zip(shards, keys, strict=True):
        if key is not None:
            groups.setdefault(key, []).append(shard)
    return [group for group in groups.values() if len(group) > 1]


def _stored_key(shard: Shard) -> Hashable:
    """Return a key that shards with equal rows share, from facts that are known without reading rows."""
    n_stored = 0
    for layout in shard.layouts:
        if layout.index is None:
            n_stored += layout.n_bytes
        else:
            n_stored += int(layout.index[1].sum())
    return shard.shape, shard.stored_dtype, shard.form, n_stored


def _sample(shard: Shard) -> Block:
    """Return a few rows from the middle of a shard, because the first rows may be padding."""
    n_rows = max(1, min(_SAMPLED_ROWS, _SAMPLED_BYTES // shard.row_bytes, shard.n_rows))
    start = (shard.n_rows - n_rows) // 2
    return Block(shard, start, start + n_rows)


def _digest_of(rows: Block) -> str | None:
    """Return the digest of some rows, or None if they cannot be read."""
    n_rows = max(1, _BLOCK_BYTES // rows.shard.row_bytes)
    try:
        return digest(read(block).tobytes() for block in rows.cut(n_rows))
    except DataError:
        return None
