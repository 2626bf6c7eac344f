"""Shards with equal rows under different names, such as a file that was copied into the input twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from shardpress.errors import DataError
from shardpress.formats import digest
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard

_SAMPLED_ROWS = 16  # rows of a shard that are compared first
_SAMPLED_BYTES = 2**16  # bytes of these rows, unless one row is larger
_BLOCK_BYTES = 2**23


def find_twins(shards: Sequence[Shard]) -> Iterator[tuple[Shard, Shard]]:
    """Yield the first shard with some rows, and each later shard with equal rows.

    Only shards of the same shape, dtype and stored size are read: first a few rows of each, then all rows of the shards
    with equal samples. A shard that cannot be read has no twin.
    """
    non_empty = [shard for shard in shards if shard.n_rows]
    for alike in _group_by_key(non_empty, _stored_key):
        for similar in _group_by_key(alike, _digest_of_sample):
            for first, *others in _group_by_key(similar, _digest_of_rows):
                yield from ((first, other) for other in others)


def _group_by_key(shards: Sequence[Shard], key_of: Callable[[Shard], Hashable]) -> list[list[Shard]]:
    """Return groups of two or more shards with equal keys. Leave out shards whose key is None."""
    groups: dict[Hashable, list[Shard]] = {}
    for shard in shards:
        key = key_of(shard)
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


def _digest_of_sample(shard: Shard) -> str | None:
    """Return the digest of a few rows from the middle of a shard, because the first rows may be padding."""
    n_rows = max(1, min(_SAMPLED_ROWS, _SAMPLED_BYTES // shard.row_bytes, shard.n_rows))
    start = (shard.n_rows - n_rows) // 2
    return _digest_of(Block(shard, start, start + n_rows))


def _digest_of_rows(shard: Shard) -> str | None:
    return _digest_of(Block(shard, 0, shard.n_rows))


def _digest_of(rows: Block) -> str | None:
    """Return the digest of some rows, or None if they cannot be read."""
    n_rows = max(1, _BLOCK_BYTES // rows.shard.row_bytes)
    try:
        return digest(read(block).tobytes() for block in rows.cut(n_rows))
    except DataError:
        return None
