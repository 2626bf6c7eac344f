"""What was looked at, and the page that says so: what to do comes first, then every rung of the ladder."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError, counted, shown

__all__ = ["Check", "Status", "exit_code", "page", "verdict"]

Status = Literal["fail", "warn", "pass", "absent"]

_LABELS = {"fail": "FAIL", "warn": "WARN", "pass": "PASS", "absent": "-"}
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
    is_setting : bool
        Whether it is of the settings or of what is installed, and not of the machine.
    """

    name: str
    status: Status
    found: str
    fix: str = ""
    is_setting: bool = False


def exit_code(checks: Sequence[Check]) -> int:
    """0 where a run will do, 78 where settings or packages have to be mended, 1 where something else has to be."""
    failed = [each for each in checks if each.status == "fail"]
    return ConfigError.exit_code if any(each.is_setting for each in failed) else int(bool(failed))


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
    checks : sequence of Check
        In the order of the ladder: what stands on another comes after it.
    libraries : mapping
        Files that were loaded, by the libraries' names; those that no check names are listed.
    """
    lines = [verdict(checks), ""]
    # What fails first: doubts may go with it. Of each kind the lowest rung, on which the others stand.
    steps = [each for status in ("fail", "warn") for each in checks if each.status == status and each.fix]
    if steps:
        lines.append("What to do, in this order:")
        for number, each in enumerate(steps, 1):
            lines += _wrapped(f"{number:4}. ", f"{each.name}: {each.fix}")
        lines.append("")
    for each in checks:
        lines += _wrapped(f"{_LABELS[each.status]:5}{each.name:12}", each.found)
        if each.fix and each.status == "absent":
            lines += _wrapped("     -> ", each.fix)
    told = " ".join(each.found for each in checks)
    if others := [path for paths in libraries.values() for path in paths if path not in told]:
        lines += ["", "Other libraries that were loaded:", *(f"     {shown(path)}" for path in others)]
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> Iterator[str]:
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    wrapper.break_on_hyphens = wrapper.break_long_words = False  # a path is one word, that it can be copied
    yield from wrapper.wrap(shown(text))
