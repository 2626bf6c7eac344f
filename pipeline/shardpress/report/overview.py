"""Facts about a run for its report: its input, bad data, drift, and a sample of its rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from shardpress.base.errors import printable, short_list
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import Shard
from shardpress.model.labels import LabelChoice
from shardpress.report.measures import measure
from shardpress.report.sampling import PartSource, SampleSpec, draw_sample
from shardpress.report.worst import find_worst
from shardpress.result.facts import (
    BadDataFacts,
    BadFile,
    BadFiles,
    BadRow,
    BadRows,
    ColumnDrift,
    Drift,
    InputFacts,
    Owner,
    SampleFacts,
    ShardDrift,
)
from shardpress.result.records import BadValues, Outside, Range, ShardFacts
from shardpress.scan.drift import MAX_LISTED_COLUMNS, farthest

log = logging.getLogger(__name__)

_MAX_LISTED = 10  # shards, rows and columns


def input_facts(shards: Sequence[Shard]) -> InputFacts:
    first = shards[0]
    return InputFacts(
        n_shards=len(shards),
        n_rows=sum(shard.n_rows for shard in shards),
        n_bytes=sum(shard.n_rows * shard.row_bytes for shard in shards),
        dataset=first.dataset,
        dtype=first.stored_dtype,
        shape=list(first.shape),
        columns=str(first.columns),
        extras=[extra.name for extra in first.extras][:_MAX_LISTED],
        files=[shard.path for shard in shards[:_MAX_LISTED]],
    )


# -- bad data ------------------------------------------------------------------------------------------------------


def bad_shards(refused: Sequence[BadFile], ranges: Sequence[Range], shards: Sequence[ShardFacts]) -> list[BadFile]:
    """Return the files that were left out, which are `refused`, and those that could not be read."""
    paths = {shard.id: shard.path for shard in shards}
    bad_files = list(refused)
    for rows in ranges:
        if rows.is_unreadable and rows.start == 0:
            bad_files.append(BadFile(paths[rows.shard], rows.bad[0].reason))
    return bad_files


def bad_data_facts(
    bad_files: Sequence[BadFile],
    ranges: Sequence[Range],
    shards: Sequence[ShardFacts],
    columns: Columns,
    n_uncompared: int,
) -> BadDataFacts:
    """Return the number of bad shards and of bad rows, with details about the first few of each."""
    bad_rows = []
    for rows in ranges:
        if not rows.is_unreadable:
            bad_rows += [(rows, bad) for bad in rows.bad if bad.dataset is None]
    by_id = {shard.id: shard for shard in shards}
    first = [_bad_row(by_id[rows.shard], bad, columns) for rows, bad in bad_rows[:_MAX_LISTED]]
    return BadDataFacts(
        BadFiles(len(bad_files), list(bad_files[:_MAX_LISTED])), BadRows(len(bad_rows), first), n_uncompared
    )


def _bad_row(shard: ShardFacts, bad: BadValues, columns: Columns) -> BadRow:
    column = next(iter(bad.columns), None)
    name = None if column is None else columns.name_of(column)
    return BadRow(shard.path, shard.dataset, shard.first_row + bad.start, column, name, bad.reason)


# -- drift ---------------------------------------------------------------------------------------------------------


def drift_facts(
    shards: Sequence[ShardFacts], names: Columns, ranges: Sequence[Range], on_drift: Literal["pass", "clip", "raise"]
) -> Drift:
    """Return facts about values outside the range of a model, by column and by shard."""
    n_rows: Counter[str] = Counter()
    n_outside: Counter[str] = Counter()
    for rows in ranges:
        n_rows[rows.shard] += rows.n_rows
        n_outside[rows.shard] += rows.n_outside
    affected = sorted((shard for shard in shards if n_outside[shard.id]), key=lambda shard: -n_outside[shard.id])
    columns = farthest(column for rows in ranges for column in rows.outside)
    return Drift(
        on_drift=on_drift,
        n_rows=n_rows.total(),
        n_outside=n_outside.total(),
        n_columns=len(columns),
        n_shards=len(affected),
        is_whole=all(len(rows.outside) < MAX_LISTED_COLUMNS for rows in ranges),
        columns=_first_columns(names, columns, ranges),
        shards=[ShardDrift(shard.path, n_rows[shard.id], n_outside[shard.id]) for shard in affected[:_MAX_LISTED]],
    )


def _first_columns(names: Columns, columns: Sequence[Outside], ranges: Sequence[Range]) -> list[ColumnDrift]:
    """Return facts about the columns with the most values outside the range, with the number of affected shards."""
    shards_and_columns = {(rows.shard, outside.column) for rows in ranges for outside in rows.outside}
    n_shards = Counter(column for _, column in shards_and_columns)
    most_first = sorted(columns, key=lambda column: -column.n_values)
    return [
        ColumnDrift(
            column=outside.column,
            name=names.name_of(outside.column),
            value=outside.value,
            low=outside.low,
            high=outside.high,
            n_values=outside.n_values,
            excess=outside.distance,
            n_shards=n_shards[outside.column],
        )
        for outside in most_first[:_MAX_LISTED]
    ]


# -- a sample of rows ----------------------------------------------------------------------------------------------


def sample_facts(
    parts: Sequence[PartSource], spec: SampleSpec, choice: LabelChoice, has_errors: bool
) -> SampleFacts | None:
    """Return measurements of a sample of rows, or None if there are too few rows or if a measurement fails.

    If the errors of all rows are stored (`has_errors`), the worst of all rows are listed. A failure is only logged as a
    warning, because the features are already complete.
    """
    try:
        sample = draw_sample(parts, spec)
        if sample is None:
            return None
        facts = measure(sample, parts, spec, choice)
        worst = find_worst(parts, spec, choice, facts.points.dataset) if has_errors else None
        if worst is not None:
            facts = replace(facts, worst=worst.rows, owners=worst.owners, n_of_worst=worst.n_rows)
        _warn_of_owners(facts.owners)
        return facts
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")
        log.warning("report: measuring a sample of rows failed, so its figures are missing: %s", reason)
        return None


def _warn_of_owners(rows: Sequence[Owner]) -> None:
    if not rows:
        return
    places = [
        f"file={printable(row.file)} dataset={printable(row.dataset)} row={row.row} "
        f"({row.share:.0%} of feature {row.feature})"
        for row in rows
    ]
    log.warning(
        "report: a few rows have more than half of the variance of a feature. Their errors can be small, although they "
        "are unlike all others: %s. Check these rows; if they are damaged, train without them (--fit-on)",
        short_list(places, _MAX_LISTED),
    )
