"""Tests of docs/tutorial.md: it runs in an empty folder, and its classifier is better than one on components."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import REPOSITORY, environment

pytestmark = [pytest.mark.process, pytest.mark.compiler]

BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", (REPOSITORY / "docs/tutorial.md").read_text(), re.M | re.S)


def test_blocks_of_the_tutorial_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    names: dict[str, object] = {}
    output = ""
    for kind, block in BLOCKS:
        if kind == "python":
            exec(block, names)
        else:
            result = subprocess.run(
                ["sh", "-ec", block], env=environment(PATH=path), capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stderr
            output += result.stdout + result.stderr
    error, components = map(float, re.findall(r"error ([\d.]+).*\(8 principal components: ([\d.]+)", output)[0])
    assert error < 0.7 * components
    search_output = capsys.readouterr().out
    accuracy = {kind: float(value) for kind, value in re.findall(r"8 (\w+): +([\d.]+)", search_output)}
    assert accuracy["features"] > accuracy["components"]
    assert float(search_output.split()[-1]) > accuracy["components"]  # the search itself
