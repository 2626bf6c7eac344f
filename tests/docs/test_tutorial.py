"""Tests of docs/tutorial.md: it runs in an empty folder, and its classifier is better than one on components."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.interpreters import REPOSITORY
from tests.support.programs import run_blocks

pytestmark = [pytest.mark.process, pytest.mark.compiler, pytest.mark.slow]

PAGE = (REPOSITORY / "docs/tutorial.md").read_text()


def test_blocks_of_the_tutorial_run_in_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    _, output = run_blocks(PAGE)
    error, components = map(
        float, re.findall(r"error ([\d.]+).*\(8 principal components: ([\d.]+)", output + caplog.text)[0]
    )
    assert error < 0.7 * components
    search_output = capsys.readouterr().out
    accuracy = {kind: float(value) for kind, value in re.findall(r"8 (\w+): +([\d.]+)", search_output)}
    assert accuracy["features"] > accuracy["components"]
    assert float(search_output.split()[-1]) > accuracy["components"]  # the search itself
