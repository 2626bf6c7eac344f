"""Tests of the table of sizes: what counts as code, and that no file is left out."""

from __future__ import annotations

import re

import pytest

from scripts import sizes
from shardpress.commands.table import COMMANDS
from shardpress.settings.config import SETTINGS

MODULE = '''\
"""Docstring
of two lines."""

import os  # code

# comment


class Public:
    """Docstring."""

    TEXT = """two

    lines and an empty one"""

    def method(self):
        """Docstring."""
        return os


def _private(): ...
'''


def numbers(printed: str) -> dict[str, list[str]]:
    """Return the cells of each row of the printed tables, by the title of the row."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    return {title: cells for title, *cells in rows}


def test_code_excludes_docstrings_comments_and_empty_lines() -> None:
    assert sizes.count_code(MODULE) == 8
    assert sizes.count_public_names(MODULE) == 1


@pytest.mark.process
def test_settings_and_commands_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main([]) == 0
    printed = numbers(capsys.readouterr().out)
    assert printed["settings with a flag"] == [str(sum(setting.has_flag for setting in SETTINGS.values()))]
    assert printed["commands of shardpress"] == [str(len(COMMANDS))]
    rows = [int(re.sub(",", "", printed[row][1])) for row in (*sizes.ROWS, "base", "kernels")]
    assert sum(rows) == int(re.sub(",", "", printed["all"][1]))
    assert min(rows) > 0
