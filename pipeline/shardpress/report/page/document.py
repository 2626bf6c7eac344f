"""The report as a document: sections of paragraphs, tables and figures, from which both templates are filled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from shardpress.report.words import cell

_LONGEST_NUMBER = 24  # characters of a number with its unit; a longer text is a phrase that begins with a number


@dataclass(frozen=True)
class Table:
    caption: str
    columns: tuple[str, ...]  # headings
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, caption: str, columns: str, rows: Sequence[Sequence[object]]) -> Table:
        """Return a table with headings separated by commas. Long texts are cut, so a list needs a row for each item."""
        headings = tuple(heading.strip() for heading in columns.split(","))
        return cls(caption, headings, tuple(tuple(map(cell, row)) for row in rows))

    @cached_property
    def are_numbers(self) -> list[bool]:
        """Whether each column holds numbers, which are right-aligned and not wrapped."""
        return [bool(self.rows) and all(map(_is_number, cells)) for cells in self._cells()]

    def lines(self) -> list[str]:
        """Return the headings and rows as lines of aligned text."""
        aligned = []
        for is_number, heading, cells in zip(self.are_numbers, self.columns, self._cells(), strict=True):
            width = max(map(len, (heading, *cells)))
            aligned.append([text.rjust(width) if is_number else text.ljust(width) for text in (heading, *cells)])
        return ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]

    def _cells(self) -> Iterator[list[str]]:
        """Yield the cells of each column."""
        for i in range(len(self.columns)):
            yield [row[i] for row in self.rows]


def _is_number(text: str) -> bool:
    return text[:1] in "0123456789-+." and len(text) <= _LONGEST_NUMBER


@dataclass(frozen=True)
class Figure:
    title: str
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
