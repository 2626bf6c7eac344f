"""Shards with equal rows under different names, such as a file that was copied into the input twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from shardpress.errors import DataError, printable
from shardpress.formats import digest
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard

_SAMPLED_ROWS = 16  # rows of a shard that are compared first
_SAMPLED_BYTES = 2**16  # bytes of these rows, unless one row is larger
_BLOCK_BYTES = 2**23


@dataclass(frozen=True)
class Twins:
    """Two shards with equal rows.

    Attributes
    ----------
    first, second : Shard
        The shards in the order of the input.
    n_compared : int
        Number of rows that were compared in each shard.
    """

    first: Shard
    second: Shard
    n_compared: int

    def __str__(self) -> str:
        names = f"file={printable(self.first.path)} and file={printable(self.second.path)}"
        if self.n_compared == self.first.n_rows:
            return f"{names}: both hold the same {self.n_compared} rows. Remove one of them if it is a copy."
        return (
            f"{names}: may hold the same {self.first.n_rows} rows; {self.n_compared} of them were compared and are "
            "equal. Compare all rows with `shardpress inspect --all`."
        )


def find_twins(
    shards: Sequence[Shard], most_bytes: int | None = None, most_shards: int | None = None
) -> Iterator[Twins]:
    """Find shards with equal rows.

    Only shards of the same shape, dtype and stored size are read: first a few rows of each, then all rows of the
    shards with equal samples. A shard that cannot be read has no twin.

    Parameters
    ----------
    most_bytes : int, optional
        Bytes of rows to compare completely, over all shards. For further shards only a sample is compared.
    most_shards : int, optional
        Number of shards of one shape to read.

    Yields
    ------
    Twins
        Pair of a shard and the first shard that is equal to it.
    """
    n_left = most_bytes
    for sampled in _groups_with_equal_samples(shards, most_shards):
        n_bytes = len(sampled) * sampled[0].n_rows * sampled[0].row_bytes
        if n_left is not None and n_bytes > n_left:
            n_compared = len(_sample(sampled[0]))
            yield from _pairs(sampled, n_compared)
            continue
        if n_left is not None:
            n_left -= n_bytes
        digests = [_digest_of(shard, Block(shard, 0, shard.n_rows)) for shard in sampled]
        for equal in _group_by_key(sampled, digests):
            yield from _pairs(equal, equal[0].n_rows)


def _pairs(equal: Sequence[Shard], n_compared: int) -> Iterator[Twins]:
    for other in equal[1:]:
        yield Twins(equal[0], other, n_compared)


def _groups_with_equal_samples(shards: Sequence[Shard], most_shards: int | None) -> Iterator[list[Shard]]:
    """Yield groups of shards with equal samples of rows."""
    non_empty = [shard for shard in shards if shard.n_rows]
    for alike in _group_by_key(non_empty, [_stored_key(shard) for shard in non_empty]):
        compared = alike[:most_shards]
        yield from _group_by_key(compared, [_digest_of(shard, _sample(shard)) for shard in compared])


def _group_by_key(shards: Sequence[Shard], keys: Sequence[Hashable]) -> list[list[Shard]]:
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


def _digest_of(shard: Shard, rows: Block) -> str | None:
    """Return the digest of some rows of a shard, or None if they cannot be read."""
    n_rows = max(1, _BLOCK_BYTES // shard.row_bytes)
    try:
        return digest(read(block).tobytes() for block in rows.cut(n_rows))
    except DataError:
        return None
