"""Facts about a run for report.json, as plain values of bounded size."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.errors import ShardpressError, printable
from shardpress.features import categories_of
from shardpress.report.measures import LabelChoice, measure
from shardpress.report.sample import PartSource, SampleSpec, draw_sample
from shardpress.scan.drift import Outside, farthest
from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import bad_entries
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard, block_of, first_rows

log = logging.getLogger(__name__)

_MAX_EARLIER_RUNS = 3
_MAX_LISTED = 10  # shards, rows and columns
_MAX_COLUMNS_OF_SHARD = 3


def input_facts(shards: Sequence[Shard]) -> dict[str, Any]:
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
        "extras": [extra.name for extra in first.extras][:_MAX_LISTED],
        "files": [shard.path for shard in shards[:_MAX_LISTED]],
    }


# -- bad data ------------------------------------------------------------------------------------------------------


def bad_data_facts(
    shards: Sequence[Shard], refused: Sequence[Mapping[str, str]], scan: Scan | None, missing: float | None
) -> dict[str, Any]:
    """Return the number of bad shards and of bad rows, with details about the first few of each.

    Parameters
    ----------
    refused : sequence of mapping
        Files that were left out, each with the keys ``file`` and ``reason``.
    missing : float or None
        Value that marks missing entries, in addition to NaN.
    """
    bad_shards = list(refused)
    bad_rows: dict[str, Any] = {"n": 0, "first": []}
    if scan is not None:
        unreadable = sorted(scan.unreadable.items())
        bad_shards += [{"file": shards[i].path, "reason": reason} for i, reason in unreadable]
        bad_rows = _bad_row_facts(shards, scan, missing)
    return {"shards": {"n": len(bad_shards), "first": bad_shards[:_MAX_LISTED]}, "rows": bad_rows}


def _bad_row_facts(shards: Sequence[Shard], scan: Scan, missing: float | None) -> dict[str, Any]:
    numbers = _bad_rows_of_good_shards(shards, scan)
    first = [_bad_row(shards, number, scan, missing) for number in numbers[:_MAX_LISTED].tolist()]
    return {"n": len(numbers), "first": first}


def _bad_rows_of_good_shards(shards: Sequence[Shard], scan: Scan) -> np.ndarray:
    """Return the numbers of bad rows. Rows of unreadable shards are not included."""
    shard_of_row = np.searchsorted(first_rows(shards), scan.bad_rows, side="right") - 1
    return scan.bad_rows[~np.isin(shard_of_row, list(scan.unreadable))]


def _bad_row(shards: Sequence[Shard], number: int, scan: Scan, missing: float | None) -> dict[str, Any]:
    """Return the location and the first bad entry of a bad row."""
    block = block_of(shards, first_rows(shards), number, number + 1)
    shard = block.shard
    facts = {"file": shard.path, "dataset": shard.dataset, "row": block.start}
    return {**facts, **_first_bad_entry(block, scan, missing)}


def _first_bad_entry(block: Block, scan: Scan, missing: float | None) -> dict[str, Any]:
    """Return the column, its name and the value of the first bad entry in a block of one row."""
    facts = {"column": None, "name": None, "value": None}
    try:
        row = read(block)
    except ShardpressError as error:  # the row was readable during the scan
        return {**facts, "value": str(error)}
    shard = block.shard
    is_bad = bad_entries(row, missing, shard.stored_dtype, scan.fill is not None)[0]
    columns = np.flatnonzero(is_bad).tolist()
    if not columns:
        return facts
    column = columns[0]
    return {"column": column, "name": shard.columns.name_of(column), "value": str(row[0, column])}


# -- drift ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartDrift:
    """Values of a part that are outside the range of a model.

    Attributes
    ----------
    shard : int
        Index of the shard that the part belongs to.
    n_rows : int
        Number of rows in the part.
    n_outside : int
        Number of good rows with values outside the range.
    outside : tuple of Outside
        Columns whose values are farthest outside the range.
    is_whole : bool
        Whether `outside` lists all columns with values outside the range.
    """

    shard: int
    n_rows: int
    n_outside: int
    outside: tuple[Outside, ...]
    is_whole: bool


def drift_facts(shards: Sequence[Shard], parts: Sequence[PartDrift], on_drift: str) -> dict[str, Any]:
    """Return facts about values outside the range of a model, by column and by shard.

    Only the columns with the most values outside the range and the shards with the most affected rows are listed.
    """
    drifts = _drift_by_shard(shards, parts)
    columns = farthest(column for drift in drifts for column in drift.columns)
    affected = [drift for drift in drifts if drift.n_outside]
    affected.sort(key=lambda drift: (-drift.n_outside, drift.number))
    return {
        "on_drift": on_drift,
        "n_rows": sum(part.n_rows for part in parts),
        "n_outside": sum(drift.n_outside for drift in drifts),
        "n_columns": len(columns),
        "n_shards": len(affected),
        "is_whole": all(part.is_whole for part in parts),
        "columns": _first_columns(shards[0], columns, drifts),
        "shards": [drift.facts() for drift in affected[:_MAX_LISTED]],
    }


@dataclass(frozen=True)
class _ShardDrift:
    """Values of one shard that are outside the range of a model."""

    shard: Shard
    number: int
    n_rows: int
    n_outside: int
    columns: Sequence[Outside]

    def facts(self) -> dict[str, Any]:
        """Return the facts as plain values. Only the columns with the farthest values are listed."""
        return {
            "file": self.shard.path,
            "n_rows": self.n_rows,
            "n_outside": self.n_outside,
            "farthest": [_column_facts(self.shard, column) for column in self.columns[:_MAX_COLUMNS_OF_SHARD]],
        }


def _first_columns(shard: Shard, columns: Sequence[Outside], drifts: Sequence[_ShardDrift]) -> list[dict[str, Any]]:
    """Return facts about the columns with the most values outside the range, with the number of affected shards."""
    n_shards = Counter(column.column for drift in drifts for column in drift.columns)
    most_first = sorted(columns, key=lambda column: -column.n_values)
    facts = []
    for column in most_first[:_MAX_LISTED]:
        facts.append({**_column_facts(shard, column), "n_shards": n_shards[column.column]})
    return facts


def _drift_by_shard(shards: Sequence[Shard], parts: Sequence[PartDrift]) -> list[_ShardDrift]:
    """Return the drift of each shard, summed over its parts."""
    by_shard: dict[int, list[PartDrift]] = {}
    for part in parts:
        by_shard.setdefault(part.shard, []).append(part)
    return [_sum_of_parts(shards[number], number, parts_of_shard) for number, parts_of_shard in by_shard.items()]


def _sum_of_parts(shard: Shard, number: int, parts: Sequence[PartDrift]) -> _ShardDrift:
    return _ShardDrift(
        shard=shard,
        number=number,
        n_rows=sum(part.n_rows for part in parts),
        n_outside=sum(part.n_outside for part in parts),
        columns=farthest(column for part in parts for column in part.outside),
    )


def _column_facts(shard: Shard, column: Outside) -> dict[str, Any]:
    return {**column._asdict(), "name": shard.columns.name_of(column.column), "excess": column.distance}


# -- earlier runs, and a sample of rows ----------------------------------------------------------------------------


def earlier_run_facts(directory: Path, fingerprint: str) -> dict[str, Any]:
    """Return facts about earlier runs from the report in an output directory.

    Parameters
    ----------
    fingerprint : str
        Fingerprint of the request of this run. A report with the same fingerprint describes an earlier attempt at this
        run, which has been resumed since.

    Returns
    -------
    dict
        ``last`` describes the last run in this directory that had a different request, or is None.
        ``attempts`` lists the stages of the last few earlier attempts at this run.
    """
    try:
        report = json.loads((directory / "report.json").read_bytes())
        return _facts_of_report(report, fingerprint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no report, or the file of another program
        return {"last": None, "attempts": []}


def _facts_of_report(report: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    made = report.get("made", "before")
    if report.get("fingerprints", {}).get("request") != fingerprint:
        last = {"made": made, "summary": report["summary"], "config": report["config"]}
        return {"last": last, "attempts": []}
    earlier = report.get("attempts", [])
    attempts = [*earlier, {"made": made, "stages": report["stages"]}]
    return {"last": report.get("last"), "attempts": attempts[-_MAX_EARLIER_RUNS:]}


def sample_facts(parts: Sequence[PartSource], spec: SampleSpec, choice: LabelChoice) -> dict[str, Any] | None:
    """Return measurements of a sample of rows, or None if there are too few rows or if a measurement fails.

    A failure is only logged as a warning, because the features are already complete.
    """
    try:
        sample = draw_sample(parts, spec)
        if sample is None:
            return None
        return measure(sample, parts, spec.model, categories_of(parts[0].file), choice)
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")
        log.warning("report: measuring a sample of rows failed, so its figures are missing: %s", reason)
        return None
