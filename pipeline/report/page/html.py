"""A page as one file of HTML: no script, no request, readable on a phone, in print and in the dark."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from pipeline.report.page.document import Command, Figure, Item, Page, Table

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["html_of"]


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
