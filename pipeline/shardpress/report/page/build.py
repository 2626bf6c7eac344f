"""Conversion of a report to report.html and plain text."""

from __future__ import annotations

import html
import logging
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shardpress.base.errors import printable
from shardpress.report.page.document import Page
from shardpress.report.page.history import generations, history, settings, time_spent
from shardpress.report.page.quality import quality
from shardpress.report.page.verdict import action_needed, appends, status, verdict
from shardpress.report.summary import Report, report_of
from shardpress.report.words import cut, path
from shardpress.result.finished import Result

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger(__name__)

_HEAD_BYTES = 2**12  # of a page; the digest is among the first lines
_MAX_PATH = 120  # characters of a path in the title


def page_of(report: Report) -> Page:
    facts = report.facts
    sections = [
        action_needed(report),
        appends(facts),
        generations(facts.model),
        quality(report),
        history(facts),
        time_spent(facts, report.training),
        settings(report),
    ]
    state = status(report)
    return Page(
        title=f"shardpress: {path(facts.details.directory, _MAX_PATH)}",
        origin=f"on {cut(facts.details.host, 60)}, {cut(facts.last.made, 30)}",
        verdict=verdict(report),
        status=state,
        is_good=state == "OK",
        sections=tuple(section for section in sections if section is not None and section.items),
    )


# -- files ---------------------------------------------------------------------------------------------------------


def page_bytes(result: Result) -> bytes:
    """Return the content of report.html. If it cannot be built, log a warning, and return a page with the reason."""
    try:
        return html_of(page_of(report_of(result)), result.digest).encode()
    except Exception as error:
        log.warning("report: could not build report.html; report --json prints its numbers: %r", error)
        reason = html.escape(printable(repr(error))[:300])
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="shardpress-index" content="{result.digest}"><title>shardpress</title></head><body><main>'
            f"<h1>shardpress</h1><p>The features are complete, but this page could not be built: {reason}. shardpress "
            "report --json prints its numbers.</p></main></body></html>\n"
        ).encode()


def is_current(page: Path, digest: str) -> bool:
    """Return whether a page was made from the index with this digest."""
    try:
        with page.open("rb") as file:
            return digest.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


# -- templates -------------------------------------------------------------------------------------------------------


def html_of(page: Page, digest: str) -> str:
    """Return a page as one HTML file without scripts or requests, for any screen, for print and for dark mode.

    The page states the `digest` of the index from which it was made.
    """
    return _templates().get_template("page.html").render(page=page, digest=digest)


def text_of(page: Page) -> str:
    """Return a page as plain text, for mail and terminals. Tables with the same numbers replace the figures."""
    return _templates().get_template("page.txt").render(page=page)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape  # takes long

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["joined"] = _joined
    return environment


def _joined(words: str) -> str:
    """Return a text in which lines do not break between a number and its unit or sign."""
    return re.sub(r"(?<=\d) (?=%)|(?<=±) (?=\d)", "\N{NO-BREAK SPACE}", words)
