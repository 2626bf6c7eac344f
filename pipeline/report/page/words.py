"""Numbers and names as people read them, each bounded in length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import shown

__all__ = ["column", "count", "cut", "number", "path", "percent"]


def count(n: int | float) -> str:
    """A whole number, its thousands apart."""
    return f"{round(n):,}"


def number(value: float | None) -> str:
    """Three digits; a dash where there is none."""
    return "-" if value is None else f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 in percent, with a digit behind the point where it is small."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 else f"{100 * share:.2g} %"


def cut(text: object, most: int = 300) -> str:
    """A text that may come from a file's name or content: without what cannot be printed, and not too long."""
    printable = shown(text)
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"


def column(told: Mapping[str, Any]) -> str:
    """Return the number of a column with its name, if that is known."""
    if told["column"] is None:
        return "-"
    name = told.get("name")  # reports of earlier versions have none
    return f"{told['column']} {cut(name, 24)}" if name else str(told["column"])


def path(text: object, most: int = 80) -> str:
    """A file's path, as `cut` does it, but of a long one the end stays, which tells files apart."""
    printable = shown(text)
    return printable if len(printable) <= most else f"…{printable[1 - most :]}"
