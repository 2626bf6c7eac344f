"""Rows of new shards that lie outside the range of those that a given model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.page.document import Item, Table
from pipeline.report.page.words import column, count, number, path, percent

__all__ = ["drift"]

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
