"""Verdicts, numbers and names as text of bounded length."""

from __future__ import annotations

from shardpress.base.errors import printable
from shardpress.hdf5.columns import with_name
from shardpress.result.facts import AppendCounts, Level

VERDICTS: dict[Level, str] = {
    "keep": "The new rows are like the rows of the training: keep the model",
    "watch": "The new rows differ from the rows of the training: watch them",
    "retrain": "The new rows differ so much from the rows of the training that a new model is needed",
}
"""Sentences on the verdicts on new rows, from the best to the worst, without a full stop."""
MINUTES = 16
"""Characters of a date and a time without seconds."""


def cell(value: object) -> str:
    """Return a value of a table as text: a float with three significant digits, and None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    return cut(value)


def files_in_words(counts: AppendCounts) -> str:
    """Return the numbers of files of each kind; empty if there are none."""
    kinds = {"new": counts.n_new, "changed": counts.n_changed, "removed": counts.n_dropped}
    return ", ".join(f"{n:,} {name}" for name, n in kinds.items() if n)


def number(value: float) -> str:
    """Return a number with three significant digits."""
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a fraction as a percentage: without decimals, or with two significant digits if it is small."""
    if abs(share) >= 0.1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def score(value: float, name: str = "accuracy") -> str:
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


def column(number: int | None, name: str | None) -> str | None:
    """Return the number of a column, with its name if the name is known."""
    return None if number is None else with_name(number, cut(name, 24) if name else None)


def path(text: object, most: int = 80) -> str:
    """Return the path of a file like `cut`, but keep the end of a long path, because the end distinguishes files."""
    clean = printable(text)
    if len(clean) > most:
        return f"…{clean[1 - most :]}"
    return clean
