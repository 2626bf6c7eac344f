"""The bytes of report.json and of report.html, and report.json read again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.page.document import Command, Figure, Item, Page, Table
from pipeline.report.page.quality import quality
from pipeline.report.page.run import change, settings, steps, time_spent
from pipeline.report.page.verdict import needs, notices, verdict
from pipeline.report.page.words import cut

if TYPE_CHECKING:
    from jinja2 import Template
import html
import json
import logging
from collections.abc import Iterator
from textwrap import wrap

from pipeline.errors import DataError, NoInput, NotPermitted, shown
from pipeline.formats import spelled
from pipeline.output.records import published_file

__all__ = ["html_of", "page_bytes", "page_in", "page_of", "report_bytes", "report_in", "text_of"]


def page_of(report: Mapping[str, Any]) -> Page:
    """What report.json holds, for people; what an earlier version has not kept there is left out.

    Raises
    ------
    KeyError, TypeError, ValueError
        When it is no report.
    """
    sections = (needs(report), quality(report), change(report), time_spent(report), steps(report), settings(report))
    title = f"shardpress: {cut(Path(report['config']['output']).name, 60)}"
    found = tuple(section for section in sections if section is not None and section.items)
    return Page(title, verdict(report), notices(report)[0] > 0, found)


def html_of(page: Page) -> str:
    """The whole file."""
    return _template().render(page=page, kind=_kind)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # here, since a text needs none

    folder = files("pipeline.report.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = (folder / "page.css").read_text()
    environment.globals["style"] = style
    return environment.from_string((folder / "page.html").read_text())


def _kind(item: Item) -> str:
    kinds = {Table: "table", Figure: "figure", Command: "command"}
    return kinds.get(type(item), "words")


_WIDTH = 100


def text_of(page: Page) -> str:
    """The whole text."""
    lines = [page.title, "", *wrap(page.verdict, _WIDTH)]
    for section in page.sections:
        lines += ["", "", section.title, "=" * len(section.title)]
        for item in section.items:
            lines += ["", *_lines(item)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _lines(item: Item) -> Iterator[str]:
    if isinstance(item, Table):
        yield from _table(item)
    elif isinstance(item, Figure):
        yield from _table(item.table)
        yield from wrap(item.note, _WIDTH)
    elif isinstance(item, Command):
        yield from (f"{item.purpose}:", f"    {item.line}")
    else:
        yield from wrap(item, _WIDTH)


def _table(table: Table) -> Iterator[str]:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    yield from wrap(table.caption, _WIDTH)
    for row in rows:
        cells = (
            cell.rjust(width) if table.is_number(i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join(cells)


log = logging.getLogger(__name__)


def report_bytes(report: Mapping[str, Any]) -> bytes:
    """The content of report.json."""
    return (spelled(report) + "\n").encode()


def page_bytes(report: Mapping[str, Any]) -> bytes:
    """The content of report.html. Where the page cannot be made, it says so: a night's features are worth more."""
    try:
        # As it comes back from report.json, so that the page is the same whenever it is made.
        return html_of(page_of(json.loads(report_bytes(report)))).encode()
    except Exception as error:
        log.warning("report: report.html could not be made, report.json has its numbers: %r", error)
        why = html.escape(shown(repr(error))[:300])
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>shardpress</title></head><body><main>'
            f"<h1>shardpress</h1><p>The features are there, but this page could not be made: {why}. The numbers stand "
            "in report.json.</p></main></body></html>\n"
        ).encode()


def report_in(directory: str | Path) -> dict[str, Any]:
    """What report.json in an output directory holds.

    Raises
    ------
    NoInput
        When there is none.
    NotPermitted
    DataError
        When it is not JSON of ours.
    """
    path = published_file(Path(directory), "report.json")
    where = f"file={shown(path)}"
    try:
        report = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(f"{where}: {error.strerror}, expected the output directory of a finished run") from error
    except OSError as error:
        raise NotPermitted(f"{where}: {error.strerror}, expected a file that you may read") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {shown(error)}. Type the run's command again to make it anew.") from error
    if not isinstance(report, dict):
        raise DataError(f"{where}: a {type(report).__name__}, expected a report")
    return report


def page_in(directory: str | Path) -> Page:
    """The page of an output directory; raises like `report_in`, and `DataError` when it is no report."""
    report = report_in(directory)
    try:
        return page_of(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        path = shown(Path(directory) / "report.json")
        raise DataError(f"file={path}: no report of ours: {error!r}. Type the run's command again.") from error
