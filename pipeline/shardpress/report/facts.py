"""Facts about a run for its report, as plain values of bounded size."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shardpress.base.errors import printable, short_list
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import Shard
from shardpress.model.labels import LabelChoice
from shardpress.report.measures import measure
from shardpress.report.sampling import PartSource, SampleSpec, draw_sample
from shardpress.report.worst import worst_facts
from shardpress.result.finished import Result
from shardpress.result.records import Outside, Range, ShardFacts
from shardpress.scan.drift import MAX_LISTED_COLUMNS, farthest

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


def bad_shards(
    refused: Sequence[Mapping[str, str]], ranges: Sequence[Range], shards: Sequence[ShardFacts]
) -> list[Mapping[str, str]]:
    """Return ``file`` and ``reason`` of the files that were left out, and of those that could not be read."""
    found = list(refused)
    for each in ranges:
        if each.is_unreadable and each.start == 0:
            found.append({"file": shards[each.shard].path, "reason": each.bad[0]["reason"]})
    return found


def bad_data_facts(
    refused: Sequence[Mapping[str, str]], ranges: Sequence[Range], shards: Sequence[ShardFacts], columns: Columns
) -> dict[str, Any]:
    """Return the number of bad shards and of bad rows, with details about the first few of each.

    `refused` are files that were left out, each with the keys ``file`` and ``reason``.
    """
    found = bad_shards(refused, ranges, shards)
    rows = []
    for each in ranges:
        if not each.is_unreadable:
            rows += [(each, bad) for bad in each.bad if isinstance(bad["row"], int)]  # others are ranges of extras
    first = [_bad_row(shards[each.shard], bad, columns) for each, bad in rows[:_MAX_LISTED]]
    return {
        "shards": {"n": len(found), "first": found[:_MAX_LISTED]},
        "rows": {"n": len(rows), "first": first},
    }


def _bad_row(shard: ShardFacts, bad: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the location, the first bad column and its value of a bad row."""
    column = next(iter(bad["columns"]), None)
    name = None if column is None else columns.name_of(column)
    location = {"file": shard.path, "dataset": shard.dataset, "row": shard.first_row + bad["row"]}
    return {**location, "column": column, "name": name, "value": bad["reason"]}


# -- drift ---------------------------------------------------------------------------------------------------------


def drift_facts(shards: Sequence[Shard], ranges: Sequence[Range], on_drift: str) -> dict[str, Any]:
    """Return facts about values outside the range of a model, by column and by shard.

    Only the columns with the most values outside the range and the shards with the most affected rows are listed.
    """
    n_rows: Counter[int] = Counter()
    n_outside: Counter[int] = Counter()
    for each in ranges:
        n_rows[each.shard] += each.n_rows
        n_outside[each.shard] += each.n_outside
    affected = sorted((i for i in n_outside if n_outside[i]), key=lambda i: (-n_outside[i], i))
    columns = farthest(column for each in ranges for column in each.outside)
    return {
        "on_drift": on_drift,
        "n_rows": n_rows.total(),
        "n_outside": n_outside.total(),
        "n_columns": len(columns),
        "n_shards": len(affected),
        "is_whole": all(len(each.outside) < MAX_LISTED_COLUMNS for each in ranges),
        "columns": _first_columns(shards[0], columns, ranges),
        "shards": [
            {"file": shards[i].path, "n_rows": n_rows[i], "n_outside": n_outside[i]} for i in affected[:_MAX_LISTED]
        ],
    }


def _first_columns(shard: Shard, columns: Sequence[Outside], ranges: Sequence[Range]) -> list[dict[str, Any]]:
    """Return facts about the columns with the most values outside the range, with the number of affected shards."""
    shards_and_columns = {(one.shard, each.column) for one in ranges for each in one.outside}
    n_shards = Counter(column for _, column in shards_and_columns)
    most_first = sorted(columns, key=lambda column: -column.n_values)
    facts = []
    for each in most_first[:_MAX_LISTED]:
        name = shard.columns.name_of(each.column)
        facts.append({**each._asdict(), "name": name, "excess": each.distance, "n_shards": n_shards[each.column]})
    return facts


# -- the last run, and a sample of rows ------------------------------------------------------------------------------


def last_run_facts(base: Result | None) -> dict[str, Any] | None:
    """Return facts about the run whose result a run replaces, or None."""
    if base is None:
        return None
    return {"made": base.facts.made, "summary": base.facts.summary, "config": base.facts.config}


def sample_facts(
    parts: Sequence[PartSource],
    spec: SampleSpec,
    choice: LabelChoice,
    has_errors: bool,
) -> dict[str, Any] | None:
    """Return measurements of a sample of rows, or None if there are too few rows or if a measurement fails.

    If the errors of all rows are stored (`has_errors`), the worst of all rows are listed. A failure is only logged as a
    warning, because the features are already complete.
    """
    try:
        sample = draw_sample(parts, spec)
        if sample is None:
            return None
        facts = measure(sample, parts, spec, choice)
        if has_errors:
            facts |= worst_facts(parts, spec, choice, facts["points"]["dataset"])
        _warn_of_owners(facts["owners"])
        return facts
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")
        log.warning("report: measuring a sample of rows failed, so its figures are missing: %s", reason)
        return None


def _warn_of_owners(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    places = [
        f"file={printable(row['file'])} dataset={printable(row['dataset'])} row={row['row']} "
        f"({row['share']:.0%} of feature {row['feature']})"
        for row in rows
    ]
    log.warning(
        "report: a few rows have more than half of the variance of a feature. Their errors can be small, although they "
        "are unlike all others: %s. Check these rows; if they are damaged, train without them (--fit-on)",
        short_list(places, _MAX_LISTED),
    )
