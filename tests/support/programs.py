"""Run the programs on the pages of the documentation in this process."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from shardpress.commands.registry import main


def words_of(command: str) -> list[str]:
    """Return the name of the command of shardpress, and its arguments."""
    words = shlex.split(command)
    return words[words.index("shardpress") + 1 :]


def call(command: str) -> str:
    """Call the function of a command, which must succeed, and return its output. It is also written after ``>``."""
    command, _, file = command.partition(" > ")
    code = 0
    with redirect_stdout(io.StringIO()) as output:
        try:
            code = main(words_of(command))
        except SystemExit as end:  # after --help
            code = int(end.code or 0)
    assert code == 0, command
    if file:
        Path(file).write_text(output.getvalue())
    return output.getvalue()


def run_blocks(text: str, **names: Any) -> tuple[dict[str, Any], str]:
    """Run the Python code and the commands in a text. Return the variables of the code, and the commands' output."""
    output = ""
    for kind, block in re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.M | re.S):
        if kind == "python":
            exec(block, names)
        else:
            for command in block.replace("\\\n", " ").splitlines():
                output += call(command)
    return names, output
