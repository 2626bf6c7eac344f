"""Digests of input files, and of the datasets with their rows."""

from __future__ import annotations

from collections.abc import Sequence

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.errors import DataError, NoInput
from shardpress.hdf5.files import Identity
from shardpress.hdf5.values import dataset_digest, file_digest
from shardpress.shards.shard import Shard


def file_digests(shards: Sequence[Shard], n_threads: int) -> list[str | None]:
    """Return the digest of each shard's file, or None if it is unknown. A file with several shards is read once."""
    files = {shard.path: shard.identity for shard in shards}
    with threads(n_threads) as pool:
        found = compute([(_digest_of_file, each) for each in files.items()], pool, n_threads)
    by_path = dict(zip(files, found, strict=True))
    return [by_path[shard.path] for shard in shards]


def _digest_of_file(file: tuple[str, Identity]) -> str | None:
    return digest_of(*file)


def digest_of(path: str, identity: Identity) -> str | None:
    """Return the digest of a file; None if it has been replaced since it was opened.

    The shard of a replaced file is then treated as bad.
    """
    try:
        return file_digest(path, identity)
    except (DataError, NoInput):
        return None


def digests_of_rows(shards: Sequence[Shard], n_threads: int) -> list[str | None]:
    """Return the digest of the dataset with the rows of each shard, or None if it is unknown."""
    if not shards:
        return []
    with threads(n_threads) as pool:
        return compute([(_digest_of_rows, shard) for shard in shards], pool, n_threads)


def _digest_of_rows(shard: Shard) -> str | None:
    try:
        return dataset_digest(shard.path, shard.identity, shard.layouts)
    except (DataError, NoInput):
        return None
