"""Numbers and names as text of bounded length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardpress.columns import with_name
from shardpress.errors import printable


def count(n: int | float) -> str:
    """Return a whole number with thousands separators."""
    return f"{round(n):,}"


def number(value: float | None) -> str:
    """Return a number with three significant digits, or a dash for None."""
    if value is None:
        return "-"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a fraction as a percentage: without decimals, or with two significant digits if it is small."""
    if abs(share) >= 0.1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def score(value: float, name: str) -> str:
    """Return an accuracy as a percentage with one decimal, or R2 with three decimals."""
    if name == "R2":
        return f"{value:.3f}"
    return f"{100 * value:.1f} %"


def cut(text: object, most: int = 300) -> str:
    """Return a text, for example from a file, cut to `most` characters, with unprintable characters escaped."""
    clean = printable(text)
    if len(clean) > most:
        return f"{clean[: most - 1]}…"
    return clean


def column(facts: Mapping[str, Any]) -> str:
    """Return the number of a column, with its name if the name is known."""
    if facts["column"] is None:
        return "-"
    name = facts.get("name")
    return with_name(facts["column"], cut(name, 24) if name else None)


def path(text: object, most: int = 80) -> str:
    """Return the path of a file like `cut`, but keep the end of a long path, because the end distinguishes files."""
    clean = printable(text)
    if len(clean) > most:
        return f"…{clean[1 - most :]}"
    return clean
