"""What a run has come to, as plain values of bounded size, for report.json."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ShardpressError, shown
from pipeline.features import categories_of
from pipeline.report.sampled.measures import measured
from pipeline.report.sampled.sample import Looking, Made, drawn
from pipeline.scan.drift import Outside, farthest
from pipeline.scan.ranges import Scan
from pipeline.scan.scaler import bad_entries
from pipeline.shards.rows import read
from pipeline.shards.shard import Shard, block_of, first_rows

__all__ = ["Drifted", "bad_told", "drift_told", "inputs_told", "last_told", "looked_at"]

log = logging.getLogger(__name__)

_SITTINGS = 3  # that are told of, beside this one
_FIRST, _WORST = 10, 3  # of many shards, rows and columns; of the columns of one shard


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
        "columns": str(first.columns),
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
        return {**told, "column": None, "name": None, "value": str(error)}
    fills = scan is not None and scan.fill is not None
    columns = np.flatnonzero(bad_entries(row, missing, block.shard.stored_dtype, fills)[0])
    column = int(columns[0]) if len(columns) else None
    if column is None:
        return {**told, "column": None, "name": None, "value": None}
    name = block.shard.columns.name_of(column)
    return {**told, "column": column, "name": name, "value": str(row[0, column])}


@dataclass(frozen=True)
class Drifted:
    """What is known of a part whose rows were held against a model's range.

    Attributes
    ----------
    shard : int
        Its source's place in the input.
    outside : tuple of Outside
        Of some columns, the farthest ones.
    is_whole : bool
        Whether these are all.
    """

    shard: int
    n_rows: int
    n_outside: int
    outside: tuple[Outside, ...]
    is_whole: bool


def drift_told(shards: Sequence[Shard], parts: Sequence[Drifted], on_drift: str) -> dict[str, Any]:
    """By column and by shard, how many values lie outside a model's range and how far; the first of many.

    Of columns those with the most values come first, of shards those with the most rows.
    """
    by_shard: dict[int, list[Drifted]] = {}
    for part in parts:
        by_shard.setdefault(part.shard, []).append(part)
    found = {i: farthest(one for part in mine for one in part.outside) for i, mine in by_shard.items()}
    columns = sorted(farthest(one for listed in found.values() for one in listed), key=lambda one: -one.n_values)
    n_outside = {i: sum(part.n_outside for part in mine) for i, mine in by_shard.items()}
    touched = sorted((i for i, n in n_outside.items() if n), key=lambda i: (-n_outside[i], i))
    n_shards = Counter(one.column for listed in found.values() for one in listed)
    return {
        "on_drift": on_drift,
        "n_rows": sum(part.n_rows for part in parts),
        "n_outside": sum(n_outside.values()),
        "n_columns": len(columns),
        "n_shards": len(touched),
        "is_whole": all(part.is_whole for part in parts),
        "columns": [{**_column_told(shards[0], one), "n_shards": n_shards[one.column]} for one in columns[:_FIRST]],
        "shards": [
            {
                "file": shards[i].path,
                "n_rows": sum(part.n_rows for part in by_shard[i]),
                "n_outside": n_outside[i],
                "farthest": [_column_told(shards[i], one) for one in found[i][:_WORST]],
            }
            for i in touched[:_FIRST]
        ],
    }


def _column_told(shard: Shard, one: Outside) -> dict[str, Any]:
    return {**one._asdict(), "name": shard.columns.name_of(one.column), "excess": one.distance}


def last_told(directory: Path, fingerprint: str) -> dict[str, Any]:
    """What earlier runs in an output directory have left in its report, shortly.

    Parameters
    ----------
    fingerprint : str
        Of this run's request: a report of the very same request is its own, from a sitting before.

    Returns
    -------
    dict
        ``last``, the run that made other results there, or None; and ``sittings``, what this run's own ones before have
        taken, a few at most.
    """
    try:
        report = json.loads((directory / "report.json").read_bytes())
        made = report.get("made", "before")
        if report.get("fingerprints", {}).get("request") == fingerprint:
            sittings = [*report.get("sittings", []), {"made": made, "stages": report["stages"]}]
            return {"last": report.get("last"), "sittings": sittings[-_SITTINGS:]}
        return {"last": {"made": made, "summary": report["summary"], "config": report["config"]}, "sittings": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is somebody else's
        return {"last": None, "sittings": []}


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
