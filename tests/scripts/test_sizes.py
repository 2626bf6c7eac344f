"""Tests of the table of sizes: what counts as code, and that no file is left out in either layout of the project."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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


@pytest.mark.parametrize(
    ("pipeline", "kernels"), [("pipeline", "kernels"), ("pipeline/shardpress", "kernels/shardpress_kernels")]
)
def test_every_module_is_in_one_row_in_both_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, kernels: str
) -> None:
    files = {
        **{f"{pipeline}/{name}": 1 for name in ("__init__.py", "errors.py", "unknown/__init__.py")},
        **{f"{pipeline}/{name}": 10 for name in ("hdf5/__init__.py", "shards/a.py", "shards/deep/b.py")},
        **{f"{kernels}/{name}": 100 for name in ("__init__.py", "graph.py")},
    }
    for name, n in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * n)
    monkeypatch.setattr(sizes, "count_words", lambda tree: {})
    monkeypatch.setattr(sizes, "count_interface", lambda tree: {})
    found = sizes.measure(tmp_path)
    rows = {title: (found.lines[title].files, found.lines[title].lines) for title in found.lines}
    assert rows["base"] == (3, 3)
    assert rows["hdf5 + shards"] == (3, 30)
    assert rows["kernels"] == (2, 200)
    assert rows["all"] == (8, 233)
    assert sorted(found.base) == ["__init__", "errors", "unknown"]


@pytest.mark.process
def test_settings_and_commands_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main([]) == 0
    printed = numbers(capsys.readouterr().out)
    assert printed["settings with a flag"] == [str(sum(setting.has_flag for setting in SETTINGS.values()))]
    assert printed["commands of shardpress"] == [str(len(COMMANDS))]
    rows = [int(re.sub(",", "", printed[row][1])) for row in (*sizes.ROWS, "base", "kernels")]
    assert sum(rows) == int(re.sub(",", "", printed["all"][1]))
    assert min(rows) > 0


@pytest.mark.process
def test_both_values_are_printed_where_a_commit_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for folder in ("pipeline/shardpress/scan", "kernels/shardpress_kernels"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text("x = 1\n")
    (tmp_path / "pipeline/shardpress/__init__.py").touch()
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "first"], check=True)
    (tmp_path / "pipeline/shardpress/scan/ranges.py").write_text("# comment\ny = 1\n")
    monkeypatch.setattr(sizes, "count_words", lambda tree: {})
    monkeypatch.setattr(sizes, "count_interface", lambda tree: {})
    assert sizes.main([str(tmp_path), "--against", "HEAD"]) == 0
    printed = numbers(capsys.readouterr().out)
    assert printed["scan"] == ["1 -> 2", "1 -> 3", "1 -> 2", "0"]
    assert printed["kernels"] == ["1", "1", "1", "0"]
