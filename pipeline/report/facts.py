"""Facts about a run as plain values of bounded size, for report.json."""

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
from pipeline.report.measures import measured
from pipeline.report.sample import Looking, Made, drawn
from pipeline.scan.drift import Outside, farthest
from pipeline.scan.ranges import Scan
from pipeline.scan.scaler import bad_entries
from pipeline.shards.rows import read
from pipeline.shards.shard import Shard, block_of, first_rows

__all__ = ["Drifted", "bad_told", "drift_told", "inputs_told", "last_told", "looked_at"]

log = logging.getLogger(__name__)

_MAX_SITTINGS = 3  # earlier ones that are listed
_MAX_LISTED = 10  # of many shards, rows and columns
_MAX_COLUMNS_OF_SHARD = 3


def inputs_told(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return facts about the input."""
    first = shards[0]
    return {
        "n_shards": len(shards),
        "n_rows": sum(shard.n_rows for shard in shards),
        "n_bytes": sum(shard.n_rows * shard.row_bytes for shard in shards),
        "dataset": first.dataset,
        "dtype": first.stored_dtype,
        "shape": list(first.shape),
        "columns": str(first.columns),
        "riders": [rider.name for rider in first.riders][:_MAX_LISTED],
        "files": [shard.path for shard in shards[:_MAX_LISTED]],
    }


# -- bad data ------------------------------------------------------------------------------------------------------


def bad_told(
    shards: Sequence[Shard], refused: Sequence[Mapping[str, str]], scan: Scan | None, missing: float | None
) -> dict[str, Any]:
    """Return the first bad shards and rows, and their numbers.

    Parameters
    ----------
    refused : sequence of mapping
        Files that were left out: ``file`` and ``reason``.
    """
    bad_shards = list(refused)
    bad_rows = np.empty(0, np.int64)
    if scan is not None:
        bad_shards += [{"file": shards[i].path, "reason": reason} for i, reason in sorted(scan.unreadable.items())]
        bad_rows = _bad_rows_of_good_shards(shards, scan)
    rows = [_bad_row(shards, int(number), scan, missing) for number in bad_rows[:_MAX_LISTED]]
    return {
        "shards": {"n": len(bad_shards), "first": bad_shards[:_MAX_LISTED]},
        "rows": {"n": len(bad_rows), "first": rows},
    }


def _bad_rows_of_good_shards(shards: Sequence[Shard], scan: Scan) -> np.ndarray:
    """Return the numbers of bad rows in shards that are not bad as a whole."""
    shard_of_row = np.searchsorted(first_rows(shards), scan.bad_rows, side="right") - 1
    return scan.bad_rows[~np.isin(shard_of_row, list(scan.unreadable))]


def _bad_row(shards: Sequence[Shard], number: int, scan: Scan | None, missing: float | None) -> dict[str, Any]:
    """Return where a bad row is, and its first bad entry."""
    block = block_of(shards, first_rows(shards), number, number + 1)
    shard = block.shard
    facts = {"file": shard.path, "dataset": shard.dataset, "row": block.start}
    no_entry = {"column": None, "name": None, "value": None}
    try:
        row = read(block)
    except ShardpressError as error:  # it could be read by the scan
        return {**facts, **no_entry, "value": str(error)}
    is_filled = scan is not None and scan.fill is not None
    columns = np.flatnonzero(bad_entries(row, missing, shard.stored_dtype, is_filled)[0]).tolist()
    if not columns:
        return {**facts, **no_entry}
    column = columns[0]
    return {**facts, "column": column, "name": shard.columns.name_of(column), "value": str(row[0, column])}


# -- drift ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drifted:
    """Values of a part that are outside a model's range.

    Attributes
    ----------
    shard : int
        Index of the part's shard in the input.
    outside : tuple of Outside
        The columns with the farthest values.
    is_whole : bool
        Whether these are all columns with such values.
    """

    shard: int
    n_rows: int
    n_outside: int
    outside: tuple[Outside, ...]
    is_whole: bool


def drift_told(shards: Sequence[Shard], parts: Sequence[Drifted], on_drift: str) -> dict[str, Any]:
    """Return how many values are outside a model's range and how far, by column and by shard; the first of many.

    The columns with most values come first, and the shards with most rows.
    """
    drifted = _drift_by_shard(shards, parts)
    touched = [shard for shard in drifted if shard.n_outside]
    touched.sort(key=lambda shard: (-shard.n_outside, shard.number))
    columns = farthest(column for shard in drifted for column in shard.columns)
    columns.sort(key=lambda column: -column.n_values)
    n_shards = Counter(column.column for shard in drifted for column in shard.columns)
    return {
        "on_drift": on_drift,
        "n_rows": sum(part.n_rows for part in parts),
        "n_outside": sum(shard.n_outside for shard in drifted),
        "n_columns": len(columns),
        "n_shards": len(touched),
        "is_whole": all(part.is_whole for part in parts),
        "columns": [
            {**_column_facts(shards[0], column), "n_shards": n_shards[column.column]}
            for column in columns[:_MAX_LISTED]
        ],
        "shards": [shard.facts() for shard in touched[:_MAX_LISTED]],
    }


@dataclass(frozen=True)
class _ShardDrift:
    """Values of one shard that are outside a model's range, in all of its columns."""

    shard: Shard
    number: int
    n_rows: int
    n_outside: int
    columns: Sequence[Outside]

    def facts(self) -> dict[str, Any]:
        """Return plain values, with the farthest columns only."""
        return {
            "file": self.shard.path,
            "n_rows": self.n_rows,
            "n_outside": self.n_outside,
            "farthest": [_column_facts(self.shard, column) for column in self.columns[:_MAX_COLUMNS_OF_SHARD]],
        }


def _drift_by_shard(shards: Sequence[Shard], parts: Sequence[Drifted]) -> list[_ShardDrift]:
    """Add up the parts of each shard."""
    by_shard: dict[int, list[Drifted]] = {}
    for part in parts:
        by_shard.setdefault(part.shard, []).append(part)
    return [
        _ShardDrift(
            shard=shards[number],
            number=number,
            n_rows=sum(part.n_rows for part in parts_of_shard),
            n_outside=sum(part.n_outside for part in parts_of_shard),
            columns=farthest(column for part in parts_of_shard for column in part.outside),
        )
        for number, parts_of_shard in by_shard.items()
    ]


def _column_facts(shard: Shard, column: Outside) -> dict[str, Any]:
    return {**column._asdict(), "name": shard.columns.name_of(column.column), "excess": column.distance}


# -- earlier runs, and a sample of rows ----------------------------------------------------------------------------


def last_told(directory: Path, fingerprint: str) -> dict[str, Any]:
    """Return what the report in an output directory says about earlier runs.

    Parameters
    ----------
    fingerprint : str
        Of this run's request: a report of the same request belongs to this run, from an earlier sitting.

    Returns
    -------
    dict
        ``last``, the run that made other results there, or None; and ``sittings``, the stages of a few earlier sittings
        of this run.
    """
    try:
        report = json.loads((directory / "report.json").read_bytes())
        made = report.get("made", "before")
        if report.get("fingerprints", {}).get("request") != fingerprint:
            last = {"made": made, "summary": report["summary"], "config": report["config"]}
            return {"last": last, "sittings": []}
        sittings = [*report.get("sittings", []), {"made": made, "stages": report["stages"]}]
        return {"last": report.get("last"), "sittings": sittings[-_MAX_SITTINGS:]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no report, or another program's
        return {"last": None, "sittings": []}


def looked_at(made: Sequence[Made], looking: Looking) -> dict[str, Any] | None:
    """Return what a sample of the rows shows; None if there are too few rows or if the sample fails.

    A failure is a warning and has no other consequences, since the features are finished.
    """
    try:
        sample = drawn(made, looking)
        if sample is None:
            return None
        return measured(sample, made, looking.model, categories_of(made[0].file))
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}")
        log.warning("report: rows could not be looked at once more, so there are no pictures of them: %s", reason)
        return None
