"""The bytes of report.json and of report.html, and report.json read again."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, NoInput, NotPermitted, shown
from pipeline.formats import spelled
from pipeline.output.records import published_file
from pipeline.report.page.content import page_of
from pipeline.report.page.document import Page
from pipeline.report.page.html import html_of

__all__ = ["page_bytes", "page_in", "report_bytes", "report_in"]

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
