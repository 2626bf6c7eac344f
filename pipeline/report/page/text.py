"""A page as plain text, for mail and terminals: its pictures are the tables beside them."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from pipeline.report.page.document import Command, Figure, Item, Page, Table

__all__ = ["text_of"]

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
