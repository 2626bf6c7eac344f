"""Test of two whole runs: the directory of the first one is moved away, and the second one starts in its place.

`tests/output/test_moved.py` moves directories, and replaces locks, before each change of a journal.

Sample: three kinds of files; with TEST_CASES=all, six.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cases import sample
from tests.support.faulty import RecordingDisk, forked
from tests.support.interruptions import OTHER, STEPS
from tests.support.protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace, features_of


class Losing(RecordingDisk):
    """Disk that calls `lose` once, right before a file of this kind is first renamed or opened to append."""

    def __init__(self, kind: str, lose: Callable[[], None]) -> None:
        super().__init__()
        self._kind = kind
        self._lose: Callable[[], None] | None = lose

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if self._lose and name in ("replace", "open_to_append") and self._kind in str(arguments[-1]):
            lose = self._lose
            self._lose = None
            lose()
        return do(*arguments)


KINDS = ["work/scan", "work/model", "journal.jsonl", "parts/part", "report.html", "out/index.h5"]


@pytest.mark.process
@pytest.mark.parametrize("kind", sample(KINDS, 3))
def test_a_run_whose_directory_was_moved_stops_and_harms_no_run(workspace: Workspace, out: Path, kind: str) -> None:
    old = out.with_name("old")

    def move_and_run() -> None:
        out.rename(old)
        assert forked(lambda: workspace.run(out, *STEPS, *OTHER)) == (0, 0)

    assert workspace.run(out, *STEPS, disk=Losing(kind, move_and_run)) == 75
    assert run_seen_by_readers(out) is not None
    assert invalid_entries(out) == leftovers(out) == []
    assert workspace.run(out, *STEPS, *OTHER) == 0
    assert workspace.run(old, *STEPS) == 0, "the moved run can be resumed"
    assert features_of(old) != features_of(out)
