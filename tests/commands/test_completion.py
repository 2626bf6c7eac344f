"""Tests of completion: commands, options and values are completed even in a shell that finds no program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shardpress.commands.table import COMMANDS, main
from shardpress.settings.config import Config

PROGRAM = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_shardpress
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "shardpress.bash"
    path.write_text(capsys.readouterr().out)
    return path


def complete(script: Path, *words: str) -> list[str]:
    """Return bash's completions of the last word, in a shell that cannot start any program."""
    command = [shutil.which("bash") or "bash", "--norc", "-c", PROGRAM, "bash", script, "shardpress", *words]
    env = {"PATH": "/nonexistent"}
    result = subprocess.run(command, cwd=script.parent, env=env, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.process
def test_completion_starts_no_program(script: Path) -> None:
    (script.parent / "shards").mkdir()
    assert set(COMMANDS) <= set(complete(script, ""))
    assert complete(script, "classi") == ["classify"]
    assert complete(script, "run", "--max-b") == ["--max-bad"]
    assert complete(script, "run", "--dry") == ["--dry-run"]
    assert complete(script, "run", "--on-bad-data", "") == ["raise", "skip"]
    assert set(complete(script, "run", "--input", "sha")) == {"shards", "shardpress.bash"}
    assert complete(script, "run", "--output", "sha") == ["shards"], "only folders"
    assert complete(script, "completion", "") == ["bash", "zsh", "fish"]


def test_every_setting_is_completed_in_every_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, sign in (("zsh", "#compdef shardpress"), ("fish", "complete -c shardpress")):
        assert main(["completion", shell]) == 0
        output = capsys.readouterr().out
        assert sign in output
        dashes = "--" if shell == "zsh" else "-l "
        flags = [dashes + name.replace("_", "-") for name in Config().flat()]
        assert [flag for flag in flags if not re.search(rf"{flag}\b", output)] == []
