"""`shardpress report`: write the report of a finished run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardpress.base.errors import CannotCreate, printable
from shardpress.commands.parsing import add_directory, print_json

DESCRIPTION = """Write the report of a finished run from its output directory.

    shardpress report features                          write features/report.html, unless it is up to date
    shardpress report features --html run.html          write another file; - is standard output
    shardpress report features --text | mail -s features me@example.org
    shardpress report features --json | jq .summary.cost

A run writes the same page. It is out of date if the run was killed after it had replaced the results.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--html", metavar="FILE", help="Write the page to this file. Default: report.html in DIR.")
    form.add_argument("--text", action="store_true", help="Print the report as plain text.")
    form.add_argument("--json", action="store_true", help="Print the numbers of the report as JSON.")


def run(options: argparse.Namespace) -> int:
    """Write the page as HTML, or print the report as text or JSON."""
    from shardpress.output.disk import Disk, publish
    from shardpress.output.folder import REPORT
    from shardpress.report.page.build import html_of, is_current, page_bytes, page_of, text_of
    from shardpress.report.summary import report_of
    from shardpress.result.finished import Result

    result = Result.open(options.directory)
    if options.json:
        print_json(report_of(result).as_json())
    elif options.text:
        print(text_of(page_of(report_of(result))), end="")
    elif options.html is not None:
        _write(options.html, html_of(page_of(report_of(result)), result.digest))
    else:
        path = Path(options.directory) / REPORT
        if is_current(path, result.digest):
            print(f"{printable(path)} is up to date.", file=sys.stderr)
        else:
            publish(Disk(), path, page_bytes(result))
            print(f"Wrote {printable(path)}.", file=sys.stderr)
    return 0


def _write(target: str, page: str) -> None:
    if target == "-":
        print(page, end="")
        return
    path = Path(target).expanduser()
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise CannotCreate(f"html={printable(path)}: {error.strerror}, expected a writable file") from error
    print(f"Wrote {printable(path)}.", file=sys.stderr)
