"""Conversion of a report's plain values to report.json, report.html and plain text, and reading of report.json."""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from shardpress.errors import DataError, NoInput, NotPermitted, printable
from shardpress.report.page.appends import appends
from shardpress.report.page.document import Figure, Item, Page, Table
from shardpress.report.page.generations import generations
from shardpress.report.page.quality import quality
from shardpress.report.page.run import change, settings, time_spent
from shardpress.report.page.verdict import action_needed, status, verdict
from shardpress.report.page.words import cut, path

if TYPE_CHECKING:
    from jinja2 import Template

log = logging.getLogger(__name__)

_TEXT_WIDTH = 100
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


def report_bytes(report: Mapping[str, Any]) -> bytes:
    """Return the content of report.json."""
    return (json.dumps(report, indent=1) + "\n").encode()


def page_bytes(report: Mapping[str, Any]) -> bytes:
    """Return the content of report.html. If it cannot be built, log a warning, and return a page with the reason."""
    try:
        # The values are used as report.json returns them, so that a page that is built later is identical.
        plain = json.loads(report_bytes(report))
        return html_of(page_of(plain)).encode()
    except Exception as error:
        log.warning("report: could not build report.html; its numbers are in report.json: %r", error)
        reason = html.escape(printable(repr(error))[:300])
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>shardpress</title></head><body><main>'
            f"<h1>shardpress</h1><p>The features are complete, but this page could not be built: {reason}. Its "
            "numbers are in report.json.</p></main></body></html>\n"
        ).encode()


def read_report(directory: str | Path) -> dict[str, Any]:
    """Read report.json in an output directory. Raise `NoInput`, `NotPermitted` or `DataError` if that fails."""
    path = Path(directory) / "report.json"
    where = f"file={printable(path)}"
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(f"{where}: {error.strerror}, expected the output directory of a finished run") from error
    except OSError as error:
        raise NotPermitted(f"{where}: {error.strerror}, expected permission to read the file") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {printable(error)}. Run the command of that run again.") from error
    return report


def checked_page(report: Mapping[str, Any], directory: str | Path) -> Page:
    """Return the page of a report that was read from an output directory. Raise `DataError` if it is not a report."""
    try:
        return page_of(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        path = printable(Path(directory) / "report.json")
        raise DataError(
            f"file={path}: not a report of shardpress: {error!r}. Run the command of that run again."
        ) from error


# -- HTML ----------------------------------------------------------------------------------------------------------


def html_of(page: Page) -> str:
    """Return a page as one HTML file without scripts or requests, for any screen, for print and for dark mode."""
    return _template().render(page=page)


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
