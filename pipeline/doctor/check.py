"""What was looked at, and the page that says so: what has to be mended comes first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import counted, shown

__all__ = ["Check", "page", "verdict"]

# In the order of the page. What is absent need not be there.
_LABELS = {"fail": "FAIL", "warn": "WARN", "ok": "ok", "absent": "-"}
_WIDTH = 120


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What.
    status : str
        ``fail`` stops a run, ``warn`` may, ``absent`` is missed by nobody.
    found : str
        What there is.
    fix : str
        What to do; empty where there is nothing to do.
    """

    name: str
    status: Literal["fail", "warn", "ok", "absent"]
    found: str
    fix: str = ""


def verdict(checks: Sequence[Check]) -> str:
    """All of it in one sentence."""
    n_failed, n_doubtful = (len([each for each in checks if each.status == status]) for status in ("fail", "warn"))
    if n_failed:
        return f"{counted(n_failed, 'thing')} to mend before a run."
    return f"Nothing has to be mended; {counted(n_doubtful, 'doubt')}." if n_doubtful else "All is well."


def page(checks: Sequence[Check], libraries: Mapping[str, Sequence[str]]) -> str:
    """A screen for people.

    Parameters
    ----------
    libraries : mapping
        Files that were loaded, by the libraries' names.
    """
    lines = [verdict(checks), ""]
    for status in _LABELS:
        for each in checks:
            if each.status == status:
                lines += _lines(each)
    if libraries:
        lines += [
            "",
            "Libraries that were loaded:",
            *(f"     {path}" for paths in libraries.values() for path in paths),
        ]
    return "\n".join(lines)


def _lines(check: Check) -> Iterator[str]:
    head = f"{_LABELS[check.status]:5}{check.name:12}"
    yield from textwrap.wrap(shown(check.found), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    if check.fix:
        yield from textwrap.wrap(shown(check.fix), _WIDTH, initial_indent="     -> ", subsequent_indent="        ")
