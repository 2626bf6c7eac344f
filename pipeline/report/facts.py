"""What a run has come to, as plain values of bounded size, for report.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ShardpressError, shown
from pipeline.features import categories_of
from pipeline.report.sampled.measures import measured
from pipeline.report.sampled.sample import Looking, Made, drawn
from pipeline.scan.ranges import Scan
from pipeline.shards.rows import bad_entries, read
from pipeline.shards.shard import Shard, block_of, first_rows

__all__ = ["bad_told", "inputs_told", "last_told", "looked_at"]

log = logging.getLogger(__name__)

_FIRST = 10  # of many


def inputs_told(shards: Sequence[Shard]) -> dict[str, Any]:
    """What was read."""
    first = shards[0]
    return {
        "n_shards": len(shards),
        "n_rows": sum(shard.n_rows for shard in shards),
        "n_bytes": sum(shard.n_rows * shard.row_bytes for shard in shards),
        "dataset": first.dataset,
        "dtype": first.stored_dtype,
        "shape": list(first.shape),
        "riders": [rider.name for rider in first.riders][:_FIRST],
        "files": [shard.path for shard in shards[:_FIRST]],
    }


def bad_told(
    shards: Sequence[Shard], refused: Sequence[Mapping[str, str]], scan: Scan | None, missing: float | None
) -> dict[str, Any]:
    """The first bad shards and rows, and how many there are.

    Parameters
    ----------
    refused : sequence of mapping
        Files that were left out: ``file`` and ``reason``.
    """
    unreadable = {} if scan is None else scan.unreadable
    listed = [*refused, *({"file": shards[i].path, "reason": why} for i, why in sorted(unreadable.items()))]
    bad_rows = np.empty(0, np.int64) if scan is None else _beside(shards, scan)
    rows = [_bad_row(shards, int(number), scan, missing) for number in bad_rows[:_FIRST]]
    return {
        "shards": {"n": len(listed), "first": listed[:_FIRST]},
        "rows": {"n": len(bad_rows), "first": rows},
    }


def _beside(shards: Sequence[Shard], scan: Scan) -> np.ndarray:
    """Numbers of the bad rows that do not lie in a shard which is bad as a whole."""
    shard_of = np.searchsorted(first_rows(shards), scan.bad_rows, side="right") - 1
    return scan.bad_rows[~np.isin(shard_of, list(scan.unreadable))]


def _bad_row(shards: Sequence[Shard], number: int, scan: Scan | None, missing: float | None) -> dict[str, Any]:
    block = block_of(shards, first_rows(shards), number, number + 1)
    told = {"file": block.shard.path, "dataset": block.shard.dataset, "row": block.start}
    try:
        row = read(block)
    except ShardpressError as error:  # it was read a while ago
        return {**told, "column": None, "value": str(error)}
    fills = scan is not None and scan.fill is not None
    columns = np.flatnonzero(bad_entries(row, missing, block.shard.stored_dtype, fills)[0])
    column = int(columns[0]) if len(columns) else None
    return {**told, "column": column, "value": None if column is None else str(row[0, column])}


def last_told(directory: Path, fingerprint: str) -> dict[str, Any] | None:
    """What the last run in an output directory has left in its report, shortly; None without one.

    Parameters
    ----------
    fingerprint : str
        Of this run's request: a report of the very same request is its own, from a sitting that ended too early, and
        what it says of the last run is handed on.
    """
    try:
        report = json.loads((directory / "report.json").read_bytes())
        told = {key: report[key] for key in ("summary", "config")}
        if report.get("fingerprints", {}).get("request") == fingerprint:
            return report.get("last")
        return told | {"made": report.get("made", "before")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is somebody else's
        return None


def looked_at(made: Sequence[Made], looking: Looking) -> dict[str, Any] | None:
    """What a sample of the rows tells; None where there are too few, or a reason why it could not be taken.

    Whatever fails here is said and costs nothing else: the features are there.
    """
    try:
        sample = drawn(made, looking)
        return None if sample is None else measured(sample, made, looking.model, categories_of(made[0].file))
    except Exception as error:
        why = shown(f"{type(error).__name__}: {error}")
        log.warning("report: rows could not be looked at once more, so there are no pictures of them: %s", why)
        return None
