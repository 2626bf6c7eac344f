"""Checks of `shardpress doctor`, and the page that lists the steps to take and all checks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shardpress.base.errors import ConfigError, printable, quantity

Status = Literal["fail", "warn", "pass", "absent"]
"""``fail``: a fault stops a run; ``warn``: a fault can stop a run; ``absent``: an optional part is missing."""

_LABELS = {"fail": "FAIL", "warn": "WARN", "pass": "PASS", "absent": "-"}
_WIDTH = 120


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    status: Status
    found: str
    fix: str = ""  # advice, or empty if no action is needed
    is_setting: bool = False  # whether the check is about settings or packages, and not about the machine


def exit_code(checks: Sequence[Check]) -> int:
    """Return 0 if a run will work, 78 if settings or packages must be fixed, and 1 for any other failure."""
    failed = [check for check in checks if check.status == "fail"]
    if any(check.is_setting for check in failed):
        return ConfigError.exit_code
    return int(bool(failed))


def verdict(checks: Sequence[Check]) -> str:
    """Return the result of all checks in one sentence."""
    statuses = [check.status for check in checks]
    n_failed = statuses.count("fail")
    n_warnings = statuses.count("warn")
    if n_failed:
        return f"{quantity(n_failed, 'problem')} to fix before a run."
    if n_warnings:
        return f"A run will work; {quantity(n_warnings, 'warning')}."
    return "A run will work; no problems found."


def page(checks: Sequence[Check]) -> str:
    """Return the page. Each check follows the checks that it depends on."""
    lines = [verdict(checks), ""]
    # Failures come first, since fixing them may remove warnings.
    steps = [check for status in ("fail", "warn") for check in checks if check.status == status and check.fix]
    if steps:
        lines.append("Steps to take, in this order:")
        for number, check in enumerate(steps, 1):
            lines += _wrap(f"{number:4}. ", f"{check.name}: {check.fix}")
        lines.append("")
    for check in checks:
        lines += _wrap(f"{_LABELS[check.status]:5}{check.name:12}", check.found)
    return "\n".join(lines)


def _wrap(prefix: str, text: str) -> Iterator[str]:
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent=prefix, subsequent_indent=" " * len(prefix))
    wrapper.break_on_hyphens = False  # a path stays one word, so that it can be copied
    wrapper.break_long_words = False
    yield from wrapper.wrap(printable(text))
