"""Conversion of a report's plain values to report.html and plain text."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from shardpress.errors import printable
from shardpress.report.page.appends import appends
from shardpress.report.page.document import Figure, Item, Page, Table
from shardpress.report.page.generations import generations
from shardpress.report.page.quality import quality
from shardpress.report.page.run import change, settings, time_spent
from shardpress.report.page.verdict import action_needed, status, verdict
from shardpress.report.page.words import cut, path
from shardpress.result import Result

if TYPE_CHECKING:
    from jinja2 import Template

log = logging.getLogger(__name__)

_TEXT_WIDTH = 100
_HEAD_BYTES = 2**12  # of a page; the digest is among the first lines
_MAX_PATH = 120  # characters of a path in the title


def page_of(report: Mapping[str, Any]) -> Page:
    sections = [make(report) for make in (action_needed, appends, generations, quality, change, time_spent, settings)]
    state = status(report)
    return Page(
        title=f"shardpress: {path(report.get('directory') or report['config']['output'], _MAX_PATH)}",
        origin=f"on {cut(report['host'], 60)}, {cut(report['made'], 30)}",
        verdict=verdict(report),
        status=state,
        is_good=state == "OK",
        sections=tuple(section for section in sections if section is not None and section.items),
    )


# -- files ---------------------------------------------------------------------------------------------------------


def page_bytes(result: Result) -> bytes:
    """Return the content of report.html. If it cannot be built, log a warning, and return a page with the reason."""
    try:
        return html_of(page_of(result.report()), result.digest).encode()
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


# -- HTML ----------------------------------------------------------------------------------------------------------


def html_of(page: Page, digest: str) -> str:
    """Return a page as one HTML file without scripts or requests, for any screen, for print and for dark mode.

    The page states the `digest` of the index from which it was made.
    """
    return _template().render(page=page, digest=digest)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # not needed for text

    folder = files("shardpress.report.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["joined"] = _joined
    environment.globals["style"] = (folder / "page.css").read_text()
    return environment.from_string((folder / "page.html").read_text())


def _joined(words: str) -> str:
    """Return a text in which lines do not break between a number and its unit or sign."""
    return re.sub(r"(?<=\d) (?=%)|(?<=±) (?=\d)", "\N{NO-BREAK SPACE}", words)


# -- text ----------------------------------------------------------------------------------------------------------


def text_of(page: Page) -> str:
    """Return a page as plain text, for mail and terminals. Tables with the same numbers replace the figures."""
    lines = [
        page.title,
        page.origin,
        "",
        "Summary",
        "=======",
        "",
        *wrap(f"{page.status}. {page.verdict}", _TEXT_WIDTH),
    ]
    for section in page.sections:
        lines += ["", "", section.title, "=" * len(section.title)]
        for item in section.items:
            lines += ["", *_lines_of_item(item)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _lines_of_item(item: Item) -> Iterator[str]:
    if isinstance(item, Table):
        yield from _lines_of_table(item)
    elif isinstance(item, Figure):
        yield from _lines_of_table(item.table)
        yield from wrap(item.note, _TEXT_WIDTH)
    else:
        yield from wrap(item, _TEXT_WIDTH)


def _lines_of_table(table: Table) -> Iterator[str]:
    yield from wrap(table.caption, _TEXT_WIDTH)
    columns = []
    for i, cells in enumerate(zip(table.columns, *table.rows, strict=True)):
        width = max(map(len, cells))
        is_number = table.is_number(i)
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
    for cells in zip(*columns, strict=True):
        yield "  " + "  ".join(cells)
