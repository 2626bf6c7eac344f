"""Tests of scripts/card.py: the script resumes after the last finished step, and reports how each step ended."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from scripts.card import page, run_step
from tests.support.processes import DEADLINE

pytestmark = pytest.mark.process


def test_only_failed_steps_are_repeated(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); import os, sys; sys.exit(int(os.environ['CODE']))"
    end = time.monotonic() + DEADLINE
    codes = [run_step(tmp_path, "step", ("-c", count), {"CODE": code}, end) for code in ("3", "0", "5")]
    assert codes == [3, 0, 0]
    assert (tmp_path / "count").read_text() == "xx"


def test_step_stopped_by_the_time_limit_is_repeated(tmp_path: Path) -> None:
    wait = ("-c", "import time; print('started', flush=True); time.sleep(600)")
    assert run_step(tmp_path, "started", wait, {}, time.monotonic() + 2) is None
    assert run_step(tmp_path, "late", wait, {}, time.monotonic() - 1) is None
    assert list(tmp_path.glob("*.json")) == []
    assert run_step(tmp_path, "late", ("-c", "print('the output')"), {}, time.monotonic() + DEADLINE) == 0
    text = page("A card", tmp_path, ["started", "late"])
    assert re.search(r"^\| started \| 0 \| \D+ \|$", text, re.MULTILINE)
    assert "    the output" in text
