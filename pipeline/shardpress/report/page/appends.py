"""The section about appended rows: the verdict on the last ones, and a history of all appends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardpress.errors import quantity
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.verdict import drift
from shardpress.report.page.words import count, cut, number, percent

_MAX_ROWS = 40  # appends in the table
_HEADS = "append, time, files, rows, verdict, error ratio, outside"
_MINUTES = 16  # characters of a date and a time without seconds
_VERDICTS = {
    "keep": "keep the model. The new rows are like the rows of the training.",
    "watch": "watch. The new rows differ from the rows of the training, but the model may still represent them.",
    "retrain": "retrain. The new rows differ so much from the rows of the training that a new model is needed.",
}


def appends(report: Mapping[str, Any]) -> Section | None:
    """Return the section about appends, or None if nothing was appended."""
    found = report.get("appends")
    if not found:
        return None
    history = Table.of("Appends, the last one first", _HEADS, [_row(each) for each in reversed(found[-_MAX_ROWS:])])
    items = [*_last_verdict(found[-1]), *drift(report.get("drift")), history]
    return Section("Appended rows", tuple(items))


def _last_verdict(last: Mapping[str, Any]) -> Iterator[Item]:
    verdict = last.get("drift")
    if not verdict:
        yield "The last append has no verdict: it added no rows, or the training of the model held out no rows."
        return
    yield f"Verdict on the last append ({quantity(last['n_rows'], 'row')}): {_VERDICTS[verdict['verdict']]}"
    for reason in verdict["reasons"]:
        yield cut(reason, 500)


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = each.get("drift") or {}
    ratio = verdict.get("error_ratio")
    outside = verdict.get("outside_share")
    return (
        count(each["id"]),
        cut(each["made"][:_MINUTES]),
        _files(each),
        count(each["n_rows"]),
        verdict.get("verdict", "-"),
        "-" if ratio is None else number(ratio),
        "-" if outside is None else percent(outside),
    )


def _files(each: Mapping[str, Any]) -> str:
    counts = {"new": each["n_new"], "changed": each["n_changed"], "removed": each["n_dropped"]}
    return ", ".join(f"{count(n)} {name}" for name, n in counts.items() if n) or "-"
