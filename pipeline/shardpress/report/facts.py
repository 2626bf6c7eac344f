"""Facts about a run for its report, as plain values of bounded size."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpress.errors import ShardpressError, printable
from shardpress.features import categories_of
from shardpress.records import Outside
from shardpress.report.measures import LabelChoice, measure
from shardpress.report.sample import PartSource, SampleSpec, draw_sample
from shardpress.result import Result
from shardpress.scan.drift import farthest
from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import bad_entries
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard, block_of, first_rows

log = logging.getLogger(__name__)

_MAX_LISTED = 10  # shards, rows and columns


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

    `refused` are files that were left out, each with the keys ``file`` and ``reason``. `missing` marks missing entries,
    in addition to NaN.
    """
    bad_shards = list(refused)
    bad_rows: dict[str, Any] = {"n": 0, "first": []}
    if scan is not None:
        unreadable = sorted(scan.unreadable.items())
        bad_shards += [{"file": shards[i].path, "reason": reason} for i, reason in unreadable]
        numbers = _bad_rows_of_good_shards(shards, scan)
        first = [_bad_row(shards, number, scan, missing) for number in numbers[:_MAX_LISTED].tolist()]
        bad_rows = {"n": len(numbers), "first": first}
    return {"shards": {"n": len(bad_shards), "first": bad_shards[:_MAX_LISTED]}, "rows": bad_rows}


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
    """Values of a part that are outside the range of a model."""

    shard: int  # index
    n_rows: int
    n_outside: int  # good rows with values outside the range
    outside: Sequence[Outside]  # the columns whose values are farthest outside
    is_whole: bool  # whether `outside` lists all columns with values outside


def drift_facts(shards: Sequence[Shard], parts: Sequence[PartDrift], on_drift: str) -> dict[str, Any]:
    """Return facts about values outside the range of a model, by column and by shard.

    Only the columns with the most values outside the range and the shards with the most affected rows are listed.
    """
    n_rows: Counter[int] = Counter()
    n_outside: Counter[int] = Counter()
    for part in parts:
        n_rows[part.shard] += part.n_rows
        n_outside[part.shard] += part.n_outside
    affected = sorted((i for i in n_outside if n_outside[i]), key=lambda i: (-n_outside[i], i))
    columns = farthest(column for part in parts for column in part.outside)
    return {
        "on_drift": on_drift,
        "n_rows": n_rows.total(),
        "n_outside": n_outside.total(),
        "n_columns": len(columns),
        "n_shards": len(affected),
        "is_whole": all(part.is_whole for part in parts),
        "columns": _first_columns(shards[0], columns, parts),
        "shards": [
            {"file": shards[i].path, "n_rows": n_rows[i], "n_outside": n_outside[i]} for i in affected[:_MAX_LISTED]
        ],
    }


def _first_columns(shard: Shard, columns: Sequence[Outside], parts: Sequence[PartDrift]) -> list[dict[str, Any]]:
    """Return facts about the columns with the most values outside the range, with the number of affected shards."""
    shards_and_columns = {(part.shard, each.column) for part in parts for each in part.outside}
    n_shards = Counter(column for _, column in shards_and_columns)
    most_first = sorted(columns, key=lambda column: -column.n_values)
    facts = []
    for each in most_first[:_MAX_LISTED]:
        name = shard.columns.name_of(each.column)
        facts.append({**each._asdict(), "name": name, "excess": each.distance, "n_shards": n_shards[each.column]})
    return facts


# -- the last run, and a sample of rows ------------------------------------------------------------------------------


def last_run_facts(base: Result | None, fingerprint: str) -> dict[str, Any] | None:
    """Return facts about the last run in an output directory whose request had another fingerprint, or None."""
    if base is None:
        return None
    if base.fingerprint == fingerprint:  # an earlier attempt at this run
        last: dict[str, Any] | None = base.facts.report.get("last")
        return last
    return {"made": base.facts.made, "summary": base.facts.summary, "config": base.facts.config}


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
