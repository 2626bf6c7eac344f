"""`shardpress report`: write the report of a finished run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.commands.parsing import print_json
from pipeline.errors import CannotCreate, UsageError, shown

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """The report of a finished run, made again from what lies in its output directory. No input is read.

    shardpress report features                          features-report.html, here
    shardpress report features --output night.html      the page, elsewhere; - for standard output
    shardpress report features --text | mail -s night me@example.org
    shardpress report features --json | jq .summary.cost

The run itself has left the same page as report.html beside its features.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("directory", nargs="?", default="features", help="a run's output (default: %(default)s)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--output", metavar="FILE", help="where the page goes (default: OUTPUT-report.html, here)")
    how.add_argument("--text", action="store_true", help="print it as plain text")
    how.add_argument("--json", action="store_true", help="print its numbers")


def run(options: argparse.Namespace) -> int:
    """Write the page, or print its text or its numbers."""
    from pipeline.report.page.build import read_page, read_report

    if options.json:
        print_json(read_report(options.directory))
        return 0
    page = read_page(options.directory)
    if options.text:
        from pipeline.report.page.build import text_of

        print(text_of(page), end="")
        return 0
    from pipeline.report.page.build import html_of

    _write(options.output or f"{Path(options.directory).resolve().name}-report.html", html_of(page))
    return 0


def _write(target: str, page: str) -> None:
    if target == "-":
        print(page, end="")
        return
    path = Path(target).expanduser()
    if (path.parent / "manifest.json").exists():
        raise UsageError(
            f"output={shown(path)}: lies in a run's own directory, whose files are as it has committed them. "
            "Choose another place."
        )
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise CannotCreate(f"output={shown(path)}: {error.strerror}, expected a file that can be written") from error
    print(f"The page is in {shown(path)}.", file=sys.stderr)
