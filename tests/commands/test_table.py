"""Tests of the table of commands: each command exists and has help, and the overview loads no slow module."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from shardpress.commands.table import COMMANDS, _load_command, main

FOLDER = Path(__file__).parents[2] / "pipeline/shardpress/commands"


def test_every_command_has_a_file_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "table", "parsing"}
    assert files == {name.replace("-", "_") for name in COMMANDS}
    for name in COMMANDS:
        module = _load_command(name)
        assert hasattr(module, "configure") == (name not in ("run", "plan", "inspect")), name
        assert callable(module.run), name
    assert main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page and command.summary in page for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_page_starts_with_a_summary_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first[0].isupper(), "no list of all options, which would fill a screen for `run`"
    assert any(line.startswith(f"    shardpress {name}") for line in others[:6])


def test_an_unknown_command_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    suggestions = {
        "runn": " run?",
        "train": "shardpress run.",
        "fit": "shardpress run.",
        "version": "shardpress --version.",
        "classify": "scripts/classify.py",
    }
    for name, suggestion in suggestions.items():
        assert main([name]) == 64
        assert suggestion in capsys.readouterr().err, name


def test_the_version_equals_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shardpress {version('shardpress')}\n"


@pytest.mark.parametrize("name", ["plan", "inspect"])
def test_help_of_commands_for_settings_lists_only_their_own_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    _, _, options = capsys.readouterr().out.partition("options:")
    own = {"plan": {"--help", "--json"}, "inspect": {"--help", "--json", "--all"}}
    assert set(re.findall(r"^  (?:-h, )?(--[\w-]+)", options, re.M)) == own[name]


@pytest.mark.process
def test_the_help_page_does_not_import_numpy() -> None:
    program = "import sys; from shardpress.commands.table import main; main(['--help']); print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.endswith("False\n")
