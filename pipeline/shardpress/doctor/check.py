"""Checks of `shardpress doctor`, and the page that lists the steps to take and all checks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shardpress.errors import ConfigError, printable, quantity

Status = Literal["fail", "warn", "pass", "absent"]

_LABELS = {"fail": "FAIL", "warn": "WARN", "pass": "PASS", "absent": "-"}
_WIDTH = 120


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes
    ----------
    name : str
        Subject of the check.
    status : str
        ``fail`` for a fault that stops a run, ``warn`` for a fault that can stop a run, ``absent`` for a missing part
        that is optional, otherwise ``pass``.
    found : str
        Finding of the check.
    fix : str
        Advice, or empty if no action is needed.
    is_setting : bool
        Whether the check is about settings or packages, and not about the machine.
    """

    name: str
    status: Status
    found: str
    fix: str = ""
    is_setting: bool = False


def exit_code(checks: Sequence[Check]) -> int:
    """Return 0 if a run will work, 78 if settings or packages must be fixed, and 1 for any other failure."""
    failed = [each for each in checks if each.status == "fail"]
    if any(each.is_setting for each in failed):
        return ConfigError.exit_code
    return int(bool(failed))


def verdict(checks: Sequence[Check]) -> str:
    """Return the result of all checks in one sentence."""
    statuses = [each.status for each in checks]
    n_failed = statuses.count("fail")
    n_warnings = statuses.count("warn")
    if n_failed:
        return f"{quantity(n_failed, 'problem')} to fix before a run."
    if n_warnings:
        return f"A run will work; {quantity(n_warnings, 'warning')}."
    return "A run will work; no problems found."


def page(checks: Sequence[Check], libraries: Mapping[str, Sequence[str]]) -> str:
    """Return the page, which lists the steps to take, all checks, and other libraries that were loaded.

    Parameters
    ----------
    checks : sequence of Check
        All checks. Each check follows the checks that it depends on.
    libraries : mapping
        Files of loaded libraries by name. Files that no check mentions are listed at the end.
    """
    lines = [verdict(checks), "", *_steps(checks)]
    for each in checks:
        lines += _wrap(f"{_LABELS[each.status]:5}{each.name:12}", each.found)
        if each.fix and each.status == "absent":
            lines += _wrap("     -> ", each.fix)
    return "\n".join([*lines, *_other_libraries(checks, libraries)])


def _other_libraries(checks: Sequence[Check], libraries: Mapping[str, Sequence[str]]) -> list[str]:
    words = " ".join(each.found for each in checks)
    others = [path for paths in libraries.values() for path in paths if path not in words]
    if not others:
        return []
    return ["", "Other loaded libraries:", *(f"     {printable(path)}" for path in others)]


def _steps(checks: Sequence[Check]) -> list[str]:
    """Return the lines that list the steps to take, in order."""
    # Failures come first, since fixing them may remove warnings. Within each kind, a check comes after the checks
    # that it depends on.
    steps = [each for each in checks if each.status == "fail" and each.fix]
    steps += [each for each in checks if each.status == "warn" and each.fix]
    if not steps:
        return []
    lines = ["Steps to take, in this order:"]
    for number, each in enumerate(steps, 1):
        lines += _wrap(f"{number:4}. ", f"{each.name}: {each.fix}")
    return [*lines, ""]


def _wrap(prefix: str, text: str) -> Iterator[str]:
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent=prefix, subsequent_indent=" " * len(prefix))
    wrapper.break_on_hyphens = False  # a path stays one word, so that it can be copied
    wrapper.break_long_words = False
    yield from wrapper.wrap(printable(text))
