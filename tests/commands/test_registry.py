"""Tests of the table of commands: each command exists and has help, and others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.commands.registry import COMMANDS, main
from tests.support.cases import each

FOLDER = Path(__file__).parents[2] / "pipeline/shardpress/commands"


def test_every_command_has_a_file_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "registry", "parsing"}
    assert files == {name.replace("-", "_") for name in COMMANDS}
    assert main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page and command.summary in page for name, command in COMMANDS.items())
    assert main(["runn"]) == 64
    assert " run?" in capsys.readouterr().err


@each("name", COMMANDS)
def test_each_help_page_starts_with_a_summary_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    first, *others = page.splitlines()
    assert first[0].isupper(), "no list of all options, which would fill a screen for `run`"
    assert any(line.startswith(f"    shardpress {name}") for line in others[:6])
