"""`shardpress report`: write the report of a finished run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardpress.commands.parsing import add_directory, print_json
from shardpress.errors import CannotCreate, UsageError, printable

DESCRIPTION = """Write the report of a finished run from its output directory.

    shardpress report features                          write features-report.html to the current directory
    shardpress report features --html run.html          write another file; - is standard output
    shardpress report features --text | mail -s features me@example.org
    shardpress report features --json | jq .summary.cost

A run writes the same page to its output directory, as report.html.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--html",
        metavar="FILE",
        help="Write the page to this file. Default: DIR-report.html in the current directory.",
    )
    form.add_argument("--text", action="store_true", help="Print the report as plain text.")
    form.add_argument("--json", action="store_true", help="Print the numbers of the report as JSON.")


def run(options: argparse.Namespace) -> int:
    """Write the page as HTML, or print the report as text or JSON."""
    from shardpress.report.page.build import checked_page, read_report

    report = read_report(options.directory)
    if options.json:
        print_json(report)
        return 0
    page = checked_page(report, options.directory)
    if options.text:
        from shardpress.report.page.build import text_of

        print(text_of(page), end="")
        return 0
    from shardpress.report.page.build import html_of

    _write(options.html or f"{Path(options.directory).resolve().name}-report.html", html_of(page))
    return 0


def _write(target: str, page: str) -> None:
    if target == "-":
        print(page, end="")
        return
    path = Path(target).expanduser()
    if (path.parent / "manifest.json").exists():
        raise UsageError(
            f"html={printable(path)}: is in the output directory of a run, where only runs write files. Choose "
            "another directory."
        )
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise CannotCreate(f"html={printable(path)}: {error.strerror}, expected a writable file") from error
    print(f"Wrote {printable(path)}.", file=sys.stderr)
