"""Scan of some or all rows for `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Shard
from shardpress.scan.blocks import ScanBlock, ScanSettings, merge_stats, pieces_of, scan_pieces
from shardpress.scan.ranges import Scan, scan_from_stats, stride_for


def preview_rows(
    shards: Sequence[Shard],
    settings: ScanSettings,
    n_threads: int,
    n_bytes: int | None,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Scan:
    """Scan random blocks of about `n_bytes` bytes, or all rows if it is None. Unreadable shards are in the result.

    `advance` is called with the number of rows of each finished task.

    Raises
    ------
    ReadFailed, NotPermitted, SystemLimit
        If a system call fails.
    """
    settings = replace(settings, max_unreadable=len(shards))
    task = partial(scan_pieces, settings, stride_for(shards))
    tasks = [(task, [piece]) for piece in _random_pieces(shards, settings.block_rows, n_bytes)]
    with threads(n_threads) as pool:
        stats = compute(tasks, pool, n_threads, lambda stats_of_task: advance(stats_of_task.n_rows))
    return scan_from_stats(merge_stats(stats), settings, shards)


def _random_pieces(shards: Sequence[Shard], block_rows: int, n_bytes: int | None) -> list[ScanBlock]:
    """Return the pieces in row order."""
    pieces = pieces_of(shards, block_rows)
    if n_bytes is None:
        return pieces
    n_pieces = max(1, n_bytes // (block_rows * shards[0].row_bytes))
    chosen = np.random.default_rng(0).permutation(len(pieces))[:n_pieces]
    return [pieces[i] for i in np.sort(chosen)]
