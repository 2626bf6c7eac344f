"""Summary of a run in a few sentences, and the section about warnings, bad data and drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardpress.errors import quantity
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.words import column, count, cut, number, path, percent
from shardpress.text import exact_duration

_MAX_LISTED = 10
_ACTIONS = {
    "pass": "were encoded unchanged",
    "clip": "were clipped to this range",
    "raise": "would have stopped the run",
}


def verdict(report: Mapping[str, Any]) -> str:
    """Return a few sentences about the run and its features."""
    summary = report["summary"]
    judgment = report["judgment"]
    n_notices, _ = _notices(report)
    end = ""
    if n_notices:
        end = f"There {'is' if n_notices == 1 else 'are'} {quantity(n_notices, 'warning')}."
    elif judgment["is_good"]:
        end = "No action is needed."
    columns = f"{count(summary['n_rows'])} rows of {count(summary['n_inputs'])} columns"
    features = quantity(summary["n_features"], "feature")
    duration = exact_duration(sum(summary["seconds"].values()))
    done = f"Encoded {columns} into {features} per row in {duration}."
    appended = summary.get("appended")
    if appended:
        new = f"Encoded {quantity(appended['n_rows'], 'row')} in {duration} and added them to the results"
        done = f"{new}, which have {columns} and {features} per row."
    parts = (done, _supervision(report), judgment["error"], judgment["classifier"], judgment["explained"], end)
    return " ".join(part for part in parts if part)


def _supervision(report: Mapping[str, Any]) -> str:
    """Return a sentence about the targets that trained the features, or an empty string."""
    target = report.get("target")
    if not target:
        return ""
    rows = "all rows" if target["fit_on"] is None else f"the rows with {cut(target['fit_on'])}"
    return f"The features are supervised: they were trained with the values of {cut(target['name'])} in {rows}."


def status(report: Mapping[str, Any]) -> str:
    """Return the state of the run in one or two words."""
    n_notices, _ = _notices(report)
    if n_notices:
        return "Action needed"
    if not report["judgment"]["is_good"]:
        return "Check the features"
    return "OK"


# -- warnings and problems ------------------------------------------------------------------------------------------


def _notices(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the number of warnings, and the texts of the first warnings with their advice."""
    warnings = report["warnings"]
    lines = [str(line) for line in warnings["first"]]
    return warnings["n"], [_sentence(line) for line in lines[:_MAX_LISTED]]


def _sentence(line: str) -> str:
    """Return a line of the log with an initial capital, unless it begins with a location such as ``file=``."""
    is_place = "=" in line.split(" ")[0]
    if not is_place:
        line = line[:1].upper() + line[1:]
    return cut(line, 500)


def action_needed(report: Mapping[str, Any]) -> Section:
    """Return the section about warnings and problems: the number of each kind, and the first ten."""
    items = [*_warnings(report), *_bad_data(report.get("bad", {}))]
    if not report.get("appends"):  # the section about appended rows includes their drift
        items += drift(report.get("drift"))
    if not report["judgment"]["is_good"]:
        items.append(f"The features need attention, see the summary. {report['judgment']['suggestion']}")
    gave_up = report["summary"].get("gave_up")
    if gave_up:
        items.append(cut(gave_up))
    if not items:
        items.append("None.")
    items += _reused_results(report)
    return Section("Action needed", tuple(items))


def _reused_results(report: Mapping[str, Any]) -> Iterator[Item]:
    reused = report.get("taken_over")
    if reused:
        names = "; ".join(cut(each) for each in reused[:_MAX_LISTED])
        yield f"Results reused from an earlier run: {names}."


def _warnings(report: Mapping[str, Any]) -> Iterator[Item]:
    n, lines = _notices(report)
    yield from lines
    if n > len(lines):
        yield f"{count(n - len(lines))} more warnings are in run.log."


def _bad_data(bad: Mapping[str, Any]) -> Iterator[Item]:
    rows = bad.get("rows", {}).get("first")
    if rows:
        title = f"Bad rows: {_first(rows, bad['rows']['n'])}"
        yield Table.of(title, "file, row, column, value", [_bad_row(each) for each in rows])
    shards = bad.get("shards", {}).get("first")
    if shards:
        title = f"Bad shards: {_first(shards, bad['shards']['n'])}"
        yield Table.of(title, "file, reason", [(path(each["file"]), cut(each["reason"], 160)) for each in shards])


def _bad_row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    return path(facts["file"]), count(facts["row"]), column(facts), cut(facts["value"], 24)


def _first(listed: Sequence[object], n: int) -> str:
    """Return the number of items. If only some of them are listed, also return the number of listed items."""
    if n <= len(listed):
        return count(n)
    return f"the first {len(listed)} of {count(n)}"


# -- drift ---------------------------------------------------------------------------------------------------------


def drift(facts: Mapping[str, Any] | None) -> Iterator[Item]:
    """Yield a sentence and tables about rows outside the range of a given model. Yield nothing if no row is outside."""
    if not facts or not facts["n_outside"]:
        return
    yield _drift_sentence(facts)
    columns = [_drift_of_column(each) for each in facts["columns"]]
    title = f"Drift by column: {_first(columns, facts['n_columns'])}"
    yield Table.of(title, "column, values outside, shards, training range, farthest value, distance in ranges", columns)
    shards = [(path(each["file"]), count(each["n_outside"]), count(each["n_rows"])) for each in facts["shards"]]
    title = f"Drift by shard: {_first(shards, facts['n_shards'])}"
    yield Table.of(title, "file, rows outside, rows", shards)


def _drift_sentence(facts: Mapping[str, Any]) -> str:
    n_outside = facts["n_outside"]
    n_rows = facts["n_rows"]
    share = percent(n_outside / max(1, n_rows))
    note = ""
    if not facts["is_whole"]:
        note = " Only the 20 farthest columns of each part are counted, so the numbers of values are lower bounds."
    return (
        f"Drift: {count(n_outside)} of {count(n_rows)} rows ({share}) are outside the range of the "
        f"rows that the model was trained on; they {_ACTIONS[facts['on_drift']]}.{note}"
    )


def _drift_of_column(facts: Mapping[str, Any]) -> tuple[str, ...]:
    is_constant = facts["high"] <= facts["low"]  # distances in units of an empty range are meaningless
    return (
        column(facts),
        count(facts["n_values"]),
        count(facts["n_shards"]),
        f"{number(facts['low'])} to {number(facts['high'])}",
        number(facts["value"]),
        "-" if is_constant else number(facts["excess"]),
    )
