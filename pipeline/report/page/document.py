"""What a report consists of, before it becomes HTML or text: sections of sentences, tables, pictures and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Command", "Figure", "Item", "Page", "Section", "Table"]

_LONGEST_NUMBER = 24  # characters, with its unit: what is longer are words that begin with one


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes
    ----------
    columns : tuple of str
        Their heads.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, which stand flush right and on one line."""
        cells = [row[column] for row in self.rows]
        return bool(cells) and all(cell[:1] in "0123456789-+." and len(cell) <= _LONGEST_NUMBER for cell in cells)

    @classmethod
    def of(cls, caption: str, columns: str, rows: Sequence[Sequence[object]]) -> Table:
        """A table whose heads are the words of one text, parted by commas."""
        heads = tuple(head.strip() for head in columns.split(","))
        return cls(caption, heads, tuple(tuple(map(str, row)) for row in rows))


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes
    ----------
    description : str
        What it shows, for those who cannot see it.
    svg : str
        Markup, all text in it escaped.
    table : Table
        Its numbers.
    note : str
        What is to be known beside the picture.
    """

    title: str
    description: str
    svg: str
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Command:
    """What to type, and what for."""

    purpose: str
    line: str


Item = str | Table | Figure | Command
"""A str is a paragraph."""


@dataclass(frozen=True)
class Section:
    """Items under a head; figures side by side where there is room."""

    title: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes
    ----------
    verdict : str
        All of it in one sentence.
    needs : bool
        Whether a person should look at something.
    """

    title: str
    verdict: str
    needs: bool
    sections: tuple[Section, ...]
