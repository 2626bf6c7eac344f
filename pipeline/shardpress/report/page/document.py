"""The report as a document, before it becomes HTML or text: sections of paragraphs, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST_NUMBER = 24  # characters of a number with its unit; a longer text is a phrase that begins with a number


@dataclass(frozen=True)
class Table:
    caption: str
    columns: tuple[str, ...]  # headings
    rows: tuple[tuple[str, ...], ...]

    def is_number(self, column: int) -> bool:
        """Return whether a column holds numbers, which are right-aligned and not wrapped."""
        cells = [row[column] for row in self.rows]
        return bool(cells) and all(cell[:1] in "0123456789-+." and len(cell) <= _LONGEST_NUMBER for cell in cells)

    @classmethod
    def of(cls, caption: str, columns: str, rows: Sequence[Sequence[object]]) -> Table:
        """Return a table. `columns` contains its headings, separated by commas."""
        headings = tuple(heading.strip() for heading in columns.split(","))
        return cls(caption, headings, tuple(tuple(map(str, row)) for row in rows))


@dataclass(frozen=True)
class Figure:
    title: str
    description: str  # for users who cannot see the picture
    svg: str  # markup with escaped text
    table: Table  # of the numbers in the picture
    note: str = ""  # remark below the picture


Item = str | Table | Figure
"""Item of a section. A str is a paragraph."""


@dataclass(frozen=True)
class Section:
    """Items under a heading. Figures are next to each other if the page is wide enough."""

    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Page:
    title: str
    origin: str  # host and date of the run
    verdict: str  # a few sentences
    status: str  # one or two words
    is_good: bool  # whether there are no warnings, and nothing speaks against the features
    sections: tuple[Section, ...]
