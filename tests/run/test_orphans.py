"""Tests of a killed driver: all processes of its run exit, in each phase of the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.orphans import EVENTS, kill_at, start, write_input

pytestmark = pytest.mark.process


@pytest.mark.parametrize("event", EVENTS)
def test_no_child_outlives_a_killed_driver(tmp_path: Path, event: str) -> None:
    shards = write_input(tmp_path / "shards")
    with start(tmp_path / "run", shards) as run:
        assert kill_at(run, event) == {}, run.output()
        if event == "all workers":
            assert list(run.temporary.glob("*scratch*")) == []
