"""Summary of a run in a few sentences, and the sections about warnings, bad data, drift and appended rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardpress.base.errors import quantity
from shardpress.base.text import exact_duration
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.words import VERDICTS, column, cut, number, path, percent

_MAX_LISTED = 10
_ACTIONS = {
    "pass": "were encoded unchanged",
    "clip": "were clipped to this range",
    "raise": "would have stopped the run",
}
_MAX_APPENDS = 40  # rows of the table
_RECENT = 7  # appends whose worst verdict the first line names
_WATCH = "Watch the new rows"
_MINUTES = 16  # characters of a date and a time without seconds


def verdict(report: Mapping[str, Any]) -> str:
    """Return a few sentences about the run and its features."""
    summary = report["summary"]
    judgment = report["judgment"]
    n_warnings = report["warnings"]["n"]
    columns = f"{summary['n_rows']:,} rows of {summary['n_inputs']:,} columns"
    features = quantity(summary["n_features"], "feature")
    duration = exact_duration(sum(summary["seconds"].values()))
    done = f"Encoded {columns} into {features} per row in {duration}."
    appended = summary.get("appended")
    if appended:
        new = f"Encoded {quantity(appended['n_rows'], 'row')} in {duration} and added them to the results"
        done = f"{new}, which have {columns} and {features} per row."
    end = "No action is needed." if status(report) in ("OK", _WATCH) else ""
    if n_warnings:
        end = f"There {'is' if n_warnings == 1 else 'are'} {quantity(n_warnings, 'warning')}."
    supervision = _supervision(report.get("target"))
    parts = (
        _recent_verdict(report),
        done,
        supervision,
        summary.get("kept_start", ""),
        judgment["error"],
        judgment["classifier"],
        judgment["explained"],
        end,
    )
    return " ".join(part for part in parts if part)


def _supervision(target: Mapping[str, Any] | None) -> str:
    """Return a sentence about the targets that trained the features, or an empty string."""
    if not target:
        return ""
    rows = "all rows" if target["fit_on"] is None else f"the rows with {cut(target['fit_on'])}"
    return f"The features are supervised: they were trained with the values of {cut(target['name'])} in {rows}."


def status(report: Mapping[str, Any]) -> str:
    """Return the state of the run, and of the rows of recent appends, in a few words."""
    n_warnings = report["warnings"]["n"]
    appended = report["summary"].get("appended")
    if appended and report["summary"].get("verdict") == "watch":
        n_warnings -= 1  # this verdict is a warning that requires no action
    worst = _worst_append(report)
    if n_warnings or (worst and worst["drift"]["verdict"] == "retrain"):
        return "Action needed"
    if not report["judgment"]["is_good"]:
        return "Check the features"
    return _WATCH if worst and worst["drift"]["verdict"] == "watch" else "OK"


def _worst_append(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the last one of the recent appends with the worst verdict, or None if there is no verdict."""
    recent = [each for each in (report.get("appends") or [])[-_RECENT:] if each["drift"]]
    return max(reversed(recent), key=lambda each: list(VERDICTS).index(each["drift"]["verdict"]), default=None)


def _recent_verdict(report: Mapping[str, Any]) -> str:
    """Return a sentence about the recent append with the worst verdict, or an empty string if all keep the model."""
    worst = _worst_append(report)
    if worst is None or worst["drift"]["verdict"] == "keep":
        return ""
    n = min(_RECENT, len(report["appends"]))
    verdict = worst["drift"]["verdict"]
    return f"The worst verdict of the last {quantity(n, 'append')} is {verdict} (append {worst['id']})."


# -- warnings and problems ------------------------------------------------------------------------------------------


def action_needed(report: Mapping[str, Any]) -> Section:
    """Return the section about warnings and problems: the number of each kind, and the first ten."""
    items = [*_warnings(report["warnings"]), *_bad_data(report.get("bad", {}))]
    if not report.get("appends"):  # the section about appended rows includes their drift
        items += _drift(report.get("drift"))
    if not report["judgment"]["is_good"]:
        items.append(f"The features need attention, see the summary. {report['judgment']['suggestion']}")
    gave_up = report["summary"].get("gave_up")
    if gave_up:
        items.append(cut(gave_up))
    if not items:
        items.append("None.")
    reused = report.get("taken_over")
    if reused:
        names = "; ".join(cut(each) for each in reused[:_MAX_LISTED])
        items.append(f"Results reused from an earlier run: {names}.")
    return Section("Action needed", tuple(items))


def _warnings(warnings: Mapping[str, Any]) -> Iterator[Item]:
    lines = warnings["first"][:_MAX_LISTED]
    for line in map(str, lines):
        is_place = "=" in line.split(" ")[0]  # such as ``file=``, which keeps its small letter
        yield cut(line if is_place else f"{line[:1].upper()}{line[1:]}", 500)
    if warnings["n"] > len(lines):
        yield f"{warnings['n'] - len(lines):,} more warnings are in run.log."


def _bad_data(bad: Mapping[str, Any]) -> Iterator[Item]:
    rows = bad.get("rows", {}).get("first")
    if rows:
        cells = [(path(each["file"]), each["row"], column(each), cut(each["value"], 24)) for each in rows]
        yield Table.of(f"Bad rows: {_first(rows, bad['rows']['n'])}", "file, row, column, value", cells)
    shards = bad.get("shards", {}).get("first")
    if shards:
        reasons = [(path(each["file"]), cut(each["reason"], 160)) for each in shards]
        yield Table.of(f"Bad shards: {_first(shards, bad['shards']['n'])}", "file, reason", reasons)
    if bad.get("n_uncompared"):
        yield (
            f"{quantity(bad['n_uncompared'], 'earlier row')} could not be compared with the input, because it cannot "
            "be read. Their features and extras stay in the results."
        )


def _first(listed: Sequence[object], n: int) -> str:
    """Return the number of items. If only some of them are listed, also return the number of listed items."""
    return f"{n:,}" if n <= len(listed) else f"the first {len(listed)} of {n:,}"


# -- drift ---------------------------------------------------------------------------------------------------------


def _drift(facts: Mapping[str, Any] | None) -> Iterator[Item]:
    """Yield a sentence and tables about rows outside the range of a given model. Yield nothing if no row is outside."""
    if not facts or not facts["n_outside"]:
        return
    share = percent(facts["n_outside"] / max(1, facts["n_rows"]))
    note = ""
    if not facts["is_whole"]:
        note = " Only the 20 farthest columns of each part are counted, so the numbers of values are lower bounds."
    yield (
        f"Drift: {facts['n_outside']:,} of {facts['n_rows']:,} rows ({share}) are outside the range of the "
        f"rows that the model was trained on; they {_ACTIONS[facts['on_drift']]}.{note}"
    )
    columns = [_drift_of_column(each) for each in facts["columns"]]
    title = f"Drift by column: {_first(columns, facts['n_columns'])}"
    yield Table.of(title, "column, values outside, shards, training range, farthest value, distance in ranges", columns)
    shards = [(path(each["file"]), each["n_outside"], each["n_rows"]) for each in facts["shards"]]
    title = f"Drift by shard: {_first(shards, facts['n_shards'])}"
    yield Table.of(title, "file, rows outside, rows", shards)


def _drift_of_column(facts: Mapping[str, Any]) -> tuple[object, ...]:
    low = facts["low"]
    high = facts["high"]
    distance = facts["excess"] if high > low else None  # the unit is the range
    range_ = f"{number(low)} to {number(high)}"
    return column(facts), facts["n_values"], facts["n_shards"], range_, facts["value"], distance


# -- appended rows -------------------------------------------------------------------------------------------------


def appends(report: Mapping[str, Any]) -> Section | None:
    """Return the section about appends: the verdict on the last one, and a history; or None if there are none."""
    found = report.get("appends")
    if not found:
        return None
    rows = [_append(each) for each in reversed(found[-_MAX_APPENDS:])]
    columns = "append, time, files, rows, verdict, error ratio, outside"
    history = Table.of("Appends, the last one first", columns, rows)
    return Section("Appended rows", (*_last_verdict(found[-1]), *_drift(report.get("drift")), history))


def _last_verdict(last: Mapping[str, Any]) -> Iterator[Item]:
    verdict = last.get("drift")
    if not verdict:
        yield "The last append has no verdict: it added no rows, or the training of the model held out no rows."
        return
    rows = quantity(last["n_rows"], "row")
    yield f"Verdict on the last append ({rows}): {verdict['verdict']}. {VERDICTS[verdict['verdict']]}."
    for reason in verdict["reasons"]:
        yield cut(reason, 500)


def _append(each: Mapping[str, Any]) -> tuple[object, ...]:
    counts = {"new": each["n_new"], "changed": each["n_changed"], "removed": each["n_dropped"]}
    files = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n) or None
    verdict = each.get("drift") or {}
    outside = verdict.get("outside_share")
    return (
        each["id"],
        cut(each["made"][:_MINUTES]),
        files,
        each["n_rows"],
        verdict.get("verdict"),
        verdict.get("error_ratio"),
        None if outside is None else percent(outside),
    )
