"""A run in one sentence, and what of it needs a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import counted
from pipeline.report.page.document import Item, Section, Table
from pipeline.report.page.words import column, count, cut, duration, number, path, percent

__all__ = ["drift", "needs", "notices", "verdict"]

_DONE = {"pass": "are encoded as they are", "clip": "were moved to its edge", "raise": "would have ended the run"}


def drift(told: Mapping[str, Any] | None) -> Iterator[Item]:
    """How many there are, by column and by shard; nothing where no model was given, or all rows lie inside."""
    if not told or not told["n_outside"]:
        return
    share = percent(told["n_outside"] / max(1, told["n_rows"]))
    least = "" if told["is_whole"] else " Of each part the farthest 20 columns are counted, so there are more values."
    yield (
        f"Drift: {count(told['n_outside'])} of {count(told['n_rows'])} rows ({share}) lie outside the range of the "
        f"rows that the model was trained on, and {_DONE[told['on_drift']]}.{least}"
    )
    columns = [_line(each) for each in told["columns"]]
    title = f"Drift by column: {_first(columns, told['n_columns'])}"
    yield Table.of(title, "column, values outside, shards, trained on, farthest value, ranges away", columns)
    shards = [
        (path(each["file"]), count(each["n_outside"]), count(each["n_rows"]), _worst(each["farthest"]))
        for each in told["shards"]
    ]
    title = f"Drift by shard: {_first(shards, told['n_shards'])}"
    yield Table.of(title, "file, rows outside, of rows, farthest columns (values outside)", shards)


def _line(each: Mapping[str, Any]) -> tuple[str, ...]:
    # Of a column that was one value, there is no telling how far.
    away = number(each["excess"]) if each["high"] > each["low"] else "-"
    trained_on = f"{number(each['low'])} to {number(each['high'])}"
    return column(each), count(each["n_values"]), count(each["n_shards"]), trained_on, number(each["value"]), away


def _first(rows: Sequence[object], n: int) -> str:
    return count(n) if n <= len(rows) else f"the first {len(rows)} of {count(n)}"


def _worst(columns: Sequence[Mapping[str, Any]]) -> str:
    values = [f"{column(each)} ({count(each['n_values'])}, up to {number(each['value'])})" for each in columns]
    return ", ".join(values)


_FIRST = 10  # of many
_SAME = 0.02  # of an error: trainings that differ in nothing but their seed differ by as much
_NOTHING = 1e-3  # of the mean's error, as `pipeline.training.baseline` has it, too


def verdict(report: Mapping[str, Any]) -> str:
    """All of it in one sentence."""
    summary = report["summary"]
    rows, features = count(summary["n_rows"]), counted(summary["n_features"], "feature")
    night = duration(sum(summary["seconds"].values()))
    n = notices(report)[0]
    end = f"{counted(n, 'thing')} should be looked at" if n else "nothing needs you"
    return (
        f"{rows} rows of {count(summary['n_inputs'])} columns became {features} each in {night}{_worth(report)}; {end}."
    )


def _worth(report: Mapping[str, Any]) -> str:
    """What the features are worth beside principal components."""
    summary, sample = report["summary"], report.get("sample") or {}
    error, components = summary.get("cost"), summary.get("components")
    beside = f"{summary['n_features']} principal components"
    if error is None or components is None:
        error = sample.get("mean_error", error)
        return "" if error is None else f", which give the rows back with a mean squared error of {number(error)}"
    gain = 1 - error / components if components else 0.0
    if abs(error - components) < max(_SAME * components, _NOTHING * (summary.get("mean") or 0.0)):
        return f", which give the rows back as well as {beside} do"
    return f", whose error is {percent(abs(gain))} {'below' if gain > 0 else 'above'} that of {beside}"


def notices(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many things should be looked at; the first of them in a sentence or two each, which say what to do."""
    kept = report.get("warnings")
    said = [str(line) for line in kept["first"]] if kept else list(_told_by_numbers(report))
    return (kept["n"] if kept else len(said)), [_sentence(line) for line in said[:_FIRST]]


def _sentence(line: str) -> str:
    """A line of the log that begins like a sentence, unless it begins with where something is, like ``file=``."""
    is_place = "=" in line.split(" ")[0]
    return cut(line if is_place else line[:1].upper() + line[1:], 600)


def _told_by_numbers(report: Mapping[str, Any]) -> Iterator[str]:
    """The same of a run of an earlier version, which has not kept its warnings."""
    summary = report["summary"]
    if summary.get("n_bad"):
        yield f"{counted(summary['n_bad'], 'bad row')} with NaN features."
    if summary.get("n_bad_shards"):
        yield f"{counted(summary['n_bad_shards'], 'bad shard')}."
    if summary.get("n_outside"):
        yield f"{counted(summary['n_outside'], 'row')} outside the range of the rows that the model was trained on."
    if report.get("device", {}).get("reason"):
        yield f"Not the device that was asked for: {report['device']['reason']}"


def needs(report: Mapping[str, Any]) -> Section:
    """What needs a person: the first ten of each kind, and how many there are."""
    n, said = notices(report)
    items: list[Item] = [*said]
    if n > len(said):
        items.append(f"And {count(n - len(said))} more: run.log has all of them.")
    items += [*_tables(report.get("bad", {})), *drift(report.get("drift"))]
    if gave_up := report["summary"].get("gave_up"):
        items.append(cut(gave_up))
    if not items:
        items.append("Nothing.")
    if taken := report.get("taken_over"):
        items.append("Taken over from an earlier sitting: " + "; ".join(cut(each) for each in taken[:_FIRST]) + ".")
    return Section("What needs a person", tuple(items))


def _tables(bad: Mapping[str, Any]) -> Iterator[Table]:
    if rows := bad.get("rows", {}).get("first"):
        cells = [(path(each["file"]), count(each["row"]), column(each), cut(each["value"], 24)) for each in rows]
        yield Table.of(_title("Bad rows", rows, bad["rows"]["n"]), "file, row, column, value", cells)
    if shards := bad.get("shards", {}).get("first"):
        reasons = [(path(each["file"]), cut(each["reason"], 200)) for each in shards]
        yield Table.of(_title("Bad shards", shards, bad["shards"]["n"]), "file, why", reasons)


def _title(what: str, first: Sequence[object], n: int) -> str:
    return f"{what}: {count(n)}" if n <= len(first) else f"{what}: the first {len(first)} of {count(n)}"
