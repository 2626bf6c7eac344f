"""The report as a document, before it becomes HTML or text: sections of paragraphs, tables, figures and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST_NUMBER = 24  # characters of a number with its unit; a longer text is a phrase that begins with a number


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes
    ----------
    columns : tuple of str
        Headings of the columns.
    """

    caption: str
    columns: tuple[str, ...]
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
    """A picture.

    Attributes
    ----------
    description : str
        Description for users who cannot see the picture.
    svg : str
        SVG markup with escaped text.
    table : Table
        Table of the numbers in the picture.
    note : str
        Remark below the picture, or empty.
    """

    title: str
    description: str
    svg: str
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Command:
    """A command line and its purpose."""

    purpose: str
    line: str


Item = str | Table | Figure | Command
"""Item of a section. A str is a paragraph."""


@dataclass(frozen=True)
class Section:
    """Items under a heading. Figures are next to each other if the page is wide enough."""

    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes
    ----------
    title : str
        Name of the program, and the full path of the output directory.
    origin : str
        Host and date of the run, or an empty string.
    verdict : str
        Summary of the run in a few sentences.
    status : str
        State of the run in one or two words.
    is_good : bool
        Whether there are no warnings, and nothing speaks against the features.
    """

    title: str
    origin: str
    verdict: str
    status: str
    is_good: bool
    sections: tuple[Section, ...]
