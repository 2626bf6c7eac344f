"""Tests of options that take a number of rows."""

from __future__ import annotations

import pytest

from shardpress.commands.table import main


@pytest.mark.parametrize("command", [["verify", "x"], ["compare", "x", "x"]], ids=lambda command: command[0])
def test_invalid_numbers_of_rows_are_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "-5", "many", "1.5", "", "²", "9" * 30):
        assert main([*command, f"--rows={number}"]) == 64
        assert f"--rows: {number!r}, " in capsys.readouterr().err
