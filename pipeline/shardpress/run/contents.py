"""Digests of the content of a file whose size, times or inode differ, to compare it with earlier content."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from msgspec import structs

from shardpress.base.errors import DataError, NoInput
from shardpress.hdf5.shard import Block, Shard
from shardpress.result.records import ShardFacts
from shardpress.shards.conversion import Conversion
from shardpress.shards.digests import ExtrasDigest
from shardpress.shards.rows import read_in_pieces


def with_content(facts: ShardFacts, shard: Shard, conversion: Conversion, names: Collection[str]) -> ShardFacts:
    """Return the facts about a shard with the digests of its rows and of some extras; unchanged if it is damaged."""
    shard = with_extras(shard, names)
    try:
        rows = conversion.digest(Block(shard, 0, shard.n_rows))
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
