"""Summary of a run in a few sentences, and the sections about warnings, bad data, drift and appended rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardpress.base.errors import quantity
from shardpress.base.text import exact_duration
from shardpress.model.about import TargetFacts
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.summary import Report
from shardpress.report.words import MINUTES, VERDICTS, column, cut, files_in_words, number, path, percent
from shardpress.result.facts import Append, BadDataFacts, ColumnDrift, Drift, Level, OneRun, WarningFacts
from shardpress.result.records import RunFacts

_MAX_LISTED = 10
_ACTIONS = {
    "pass": "were encoded unchanged",
    "clip": "were clipped to this range",
    "raise": "would have stopped the run",
}
_MAX_APPENDS = 40  # rows of the table
_RECENT = 7  # appends whose worst verdict the first line names
_WATCH = "Watch the new rows"


def verdict(report: Report) -> str:
    """Return a few sentences about the run and its features."""
    facts = report.facts
    summary = report.summary
    judgment = report.judgment
    n_warnings = facts.details.warnings.n
    columns = f"{summary.n_rows:,} rows of {summary.n_inputs:,} columns"
    features = quantity(summary.n_features, "feature")
    duration = exact_duration(summary.total_seconds)
    done = f"Encoded {columns} into {features} per row in {duration}."
    if summary.appended is not None:
        new = f"Encoded {quantity(summary.appended.n_rows, 'row')} in {duration} and added them to the results"
        done = f"{new}, which have {columns} and {features} per row."
    end = "No action is needed." if status(report) in ("OK", _WATCH) else ""
    if n_warnings:
        end = f"There {'is' if n_warnings == 1 else 'are'} {quantity(n_warnings, 'warning')}."
    sentences = (
        _recent_verdict(facts.appends),
        done,
        _supervision(report.target),
        summary.kept_start,
        judgment.error,
        judgment.classifier,
        judgment.explained,
        _measured_by(facts),
        end,
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _measured_by(facts: RunFacts) -> str:
    """Return which run measured the sample of rows, unless it was the last one."""
    number_of_run = facts.rows.sample_run
    return "" if number_of_run == facts.last.number else f"Run {number_of_run} measured these numbers."


def _supervision(target: TargetFacts | None) -> str:
    """Return a sentence about the targets that trained the features, or an empty string."""
    if target is None:
        return ""
    rows = "all rows" if target.fit_on is None else f"the rows with {cut(target.fit_on)}"
    return f"The features are supervised: they were trained with the values of {cut(target.name)} in {rows}."


def status(report: Report) -> str:
    """Return the state of the run, and of the rows of recent appends, in a few words."""
    facts = report.facts
    n_warnings = facts.details.warnings.n
    if report.summary.verdict == "watch":
        n_warnings -= 1  # this verdict is a warning that requires no action
    _, worst = _worst_append(facts.appends)
    if n_warnings or worst == "retrain":
        return "Action needed"
    if not report.judgment.is_good:
        return "Check the features"
    return _WATCH if worst == "watch" else "OK"


def _worst_append(appends: Sequence[OneRun]) -> tuple[int, Level]:
    """Return the number of the last one of the recent appends with the worst verdict, and this verdict."""
    levels = list(VERDICTS)
    recent = [run.append for run in appends[-_RECENT:] if run.append is not None]
    verdicts = [(append.id, append.verdict.level) for append in recent if append.verdict is not None]
    return max(reversed(verdicts), key=lambda verdict: levels.index(verdict[1]), default=(0, "keep"))


def _recent_verdict(appends: Sequence[OneRun]) -> str:
    """Return a sentence about the recent append with the worst verdict, or an empty string if all keep the model."""
    append_id, worst = _worst_append(appends)
    if worst == "keep":
        return ""
    n = min(_RECENT, len(appends))
    return f"The worst verdict of the last {quantity(n, 'append')} is {worst} (append {append_id})."


# -- warnings and problems ------------------------------------------------------------------------------------------


def action_needed(report: Report) -> Section:
    """Return the section about warnings and problems: the number of each kind, and the first ten."""
    facts = report.facts
    items = [*_warnings(facts.details.warnings), *_bad_data(facts.rows.bad)]
    if not facts.appends:  # the section about appended rows includes their drift
        items += _drift(facts.rows.drift)
    if not report.judgment.is_good:
        items.append(f"The features need attention, see the summary. {report.judgment.suggestion}")
    if report.summary.gave_up:
        items.append(cut(report.summary.gave_up))
    if not items:
        items.append("None.")
    taken_over = facts.details.taken_over
    if taken_over:
        names = "; ".join(cut(name) for name in taken_over[:_MAX_LISTED])
        items.append(f"Results reused from an earlier run: {names}.")
    return Section("Action needed", tuple(items))


def _warnings(warnings: WarningFacts) -> Iterator[Item]:
    lines = warnings.first[:_MAX_LISTED]
    for line in lines:
        yield cut(line, 500)
    if warnings.n > len(lines):
        yield f"{warnings.n - len(lines):,} more warnings are in run.log."


def _bad_data(bad: BadDataFacts) -> Iterator[Item]:
    rows = bad.rows.first
    if rows:
        cells = [(path(row.file), row.row, column(row.column, row.name), cut(row.value, 24)) for row in rows]
        yield Table.of(f"Bad rows: {_first(rows, bad.rows.n)}", "file, row, column, value", cells)
    shards = bad.shards.first
    if shards:
        reasons = [(path(shard.file), cut(shard.reason, 160)) for shard in shards]
        yield Table.of(f"Bad shards: {_first(shards, bad.shards.n)}", "file, reason", reasons)
    if bad.n_uncompared:
        yield (
            f"{quantity(bad.n_uncompared, 'earlier row')} could not be compared with the input, because it cannot "
            "be read. Their features and extras stay in the results."
        )


def _first(listed: Sequence[object], n: int) -> str:
    """Return the number of items. If only some of them are listed, also return the number of listed items."""
    return f"{n:,}" if n <= len(listed) else f"the first {len(listed)} of {n:,}"


# -- drift ---------------------------------------------------------------------------------------------------------


def _drift(drift: Drift | None) -> Iterator[Item]:
    """Yield a sentence and tables about rows outside the range of a given model. Yield nothing if no row is outside."""
    if drift is None or not drift.n_outside:
        return
    share = percent(drift.n_outside / max(1, drift.n_rows))
    note = ""
    if not drift.is_whole:
        note = " Only the 20 farthest columns of each part are counted, so the numbers of values are lower bounds."
    yield (
        f"Drift: {drift.n_outside:,} of {drift.n_rows:,} rows ({share}) are outside the range of the rows that the "
        f"model was trained on; they {_ACTIONS[drift.on_drift]}.{note}"
    )
    columns = [_drift_of_column(of_column) for of_column in drift.columns]
    title = f"Drift by column: {_first(columns, drift.n_columns)}"
    yield Table.of(title, "column, values outside, shards, training range, farthest value, distance in ranges", columns)
    shards = [(path(of_shard.file), of_shard.n_outside, of_shard.n_rows) for of_shard in drift.shards]
    title = f"Drift by shard: {_first(shards, drift.n_shards)}"
    yield Table.of(title, "file, rows outside, rows", shards)


def _drift_of_column(drift: ColumnDrift) -> tuple[object, ...]:
    distance = drift.excess if drift.high > drift.low else None  # the unit is the range
    range_ = f"{number(drift.low)} to {number(drift.high)}"
    name = column(drift.column, drift.name)
    return name, drift.n_values, drift.n_shards, range_, drift.value, distance


# -- appended rows -------------------------------------------------------------------------------------------------


def appends(facts: RunFacts) -> Section | None:
    """Return the section about appends: the verdict on the last one, and a history; or None if there are none."""
    pairs = [(run.made, run.append) for run in facts.appends if run.append is not None]
    if not pairs:
        return None
    rows = [_append(made, append) for made, append in reversed(pairs[-_MAX_APPENDS:])]
    columns = "append, time, files, rows, verdict, error ratio, outside"
    table = Table.of("Appends, the last one first", columns, rows)
    _, last = pairs[-1]
    return Section("Appended rows", (*_last_verdict(last), *_drift(facts.rows.drift), table))


def _last_verdict(last: Append) -> Iterator[Item]:
    verdict = last.verdict
    if verdict is None:
        yield "The last append has no verdict: it added no rows, or the training of the model held out no rows."
        return
    rows = quantity(last.n_rows, "row")
    yield f"Verdict on the last append ({rows}): {verdict.level}. {VERDICTS[verdict.level]}."
    for reason in verdict.reasons:
        yield cut(reason, 500)


def _append(made: str, append: Append) -> tuple[object, ...]:
    verdict = append.verdict
    outside = None if verdict is None else verdict.outside_share
    return (
        append.id,
        cut(made[:MINUTES]),
        files_in_words(append) or None,
        append.n_rows,
        None if verdict is None else verdict.level,
        None if verdict is None else verdict.error_ratio,
        None if outside is None else percent(outside),
    )
