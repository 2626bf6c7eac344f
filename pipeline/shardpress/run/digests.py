"""Digests of input files, and of the datasets with their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.errors import DataError, NoInput
from shardpress.hdf5.files import Identity
from shardpress.hdf5.values import dataset_digest, file_digest
from shardpress.shards.shard import Shard


def file_digests(shards: Sequence[Shard], n_threads: int) -> list[str | None]:
    """Return the digest of each shard's file, or None if it is unknown. A file with several shards is read once."""
    files = {shard.path: shard.identity for shard in shards}
    found = _digests(lambda file: digest_of(*file), list(files.items()), n_threads)
    by_path = dict(zip(files, found, strict=True))
    return [by_path[shard.path] for shard in shards]


def digests_of_rows(shards: Sequence[Shard], n_threads: int) -> list[str | None]:
    """Return the digest of the dataset with the rows of each shard, or None if it is unknown."""
    return _digests(_digest_of_rows, shards, n_threads)


def digest_of(path: str, identity: Identity) -> str | None:
    """Return the digest of a file; None if it has been replaced since it was opened, so that its shard is bad."""
    try:
        return file_digest(path, identity)
    except (DataError, NoInput):
        return None


def _digest_of_rows(shard: Shard) -> str | None:
    try:
        return dataset_digest(shard.path, shard.identity, shard.layouts)
    except (DataError, NoInput):
        return None


def _digests(digest: Callable[[Any], str | None], items: Sequence[Any], n_threads: int) -> list[str | None]:
    if not items:
        return []
    with threads(n_threads) as pool:
        return compute([(digest, item) for item in items], pool, n_threads)
