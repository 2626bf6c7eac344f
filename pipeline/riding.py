"""What rides along with the rows of all shards: labels, ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.errors import shown
from pipeline.gate import LeftOut, Rider, Shard
from pipeline.rawread import read_across, read_values

__all__ = ["chunk_rows", "log_riding", "read_rider"]

log = logging.getLogger(__name__)

_NAMED, _LEFT_OUT, MOST_WARNED = 20, 10, 10  # in a line of the log; lines
_LONGEST = 80  # characters of a name or reason


def read_rider(shard: Shard, rider: Rider, start: int, stop: int) -> np.ndarray:
    """A riding dataset's values for rows `start` to `stop`: shape (stop - start,); raises like `read_values`."""
    if _lies_across(rider, shard.n_rows):
        dtype = rider.layout.dtype
        return read_across(shard, rider.layout, start, np.empty((stop - start, 1), dtype=dtype)).reshape(-1)
    values = read_values(shard, rider.layout, start, stop, rider.layout.dtype)
    return values.reshape(stop - start, *values.shape[len(rider.layout.shape) :])  # of an array for each row, that


def chunk_rows(shard: Shard, rider: Rider) -> int | None:
    """Rows of a chunk; None where there are no chunks."""
    chunks = rider.layout.chunks
    return chunks[-1 if _lies_across(rider, shard.n_rows) else 0] if chunks else None


def _lies_across(rider: Rider, n_rows: int) -> bool:
    """Whether its axes of length 1 come first, as MATLAB's do."""
    return rider.layout.shape[0] != n_rows


# -- told at the start -------------------------------------------------------------------------------------------


def log_riding(shards: Sequence[Shard]) -> None:
    """Say what rides along and what does not, and why: of each name once, however many shards there are."""
    riding = dict.fromkeys(rider.name for shard in shards for rider in shard.riders)
    left_out = _left_out(shards)
    told = f"riding along: {_some(map(_cut, riding), _NAMED)}"
    if left_out:
        reasons = (f"{_cut(each.name)} ({_cut(each.reason.rstrip('.'))})" for each, _ in left_out.values())
        told += f"; left out: {_some(reasons, _LEFT_OUT)}"
    log.info("input: %s", told)
    missed = [found for found in left_out.values() if found[0].is_missed]
    for each, among in missed[:MOST_WARNED]:
        more = f", in {len(among)} shards" if len(among) > 1 else ""
        log.warning(
            "file=%s dataset=%s: %s, does not ride along%s",
            *(shown(among[0].path), shown(each.name), shown(each.reason.rstrip(".")), more),
        )
    if len(missed) > MOST_WARNED:
        log.warning("%d more datasets do not ride along", len(missed) - MOST_WARNED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """What does not ride along, by name: what is said of the first, and in which shards."""
    found: dict[str, tuple[LeftOut, list[Shard]]] = {}
    for shard in shards:
        for each in shard.left_out:
            found.setdefault(each.name, (each, []))[1].append(shard)
    return found


def _some(names: Iterable[str], n: int) -> str:
    every = list(names)
    more = f" and {len(every) - n} more" if len(every) > n else ""
    return (", ".join(every[:n]) or "nothing") + more


def _cut(words: str) -> str:
    return shown(words if len(words) <= _LONGEST else words[:_LONGEST] + "...")
