"""Test of two whole runs: the directory of the first one is moved away, and the second one starts in its place.

`tests/output/test_lock.py` moves directories, and replaces locks, before a change of a journal.

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

KINDS = ["work/scan", "work/model", "journal.jsonl", "parts/part", "report.html", "out/index.h5"]


@pytest.mark.process
@pytest.mark.parametrize("kind", sample(KINDS, 3))
def test_a_run_whose_directory_was_moved_stops_and_harms_no_run(workspace: Workspace, out: Path, kind: str) -> None:
    old = out.with_name("old")

    class Losing(RecordingDisk):
        """Disk whose directory is moved right before a file of this kind is first renamed or opened to append."""

        def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            changes_kind = name in ("replace", "open_to_append") and kind in str(arguments[-1])
            if changes_kind and not old.exists():
                out.rename(old)
                assert forked(lambda: workspace.run(out, *STEPS, *OTHER)) == (0, 0)
            return do(*arguments)

    assert workspace.run(out, *STEPS, disk=Losing()) == 75
    assert run_seen_by_readers(out) is not None
    assert invalid_entries(out) == []
    assert workspace.run(out, *STEPS, *OTHER) == 0
    assert leftovers(out) == []  # another thread of the first run may have written a part meanwhile
    assert workspace.run(old, *STEPS) == 0, "the moved run can be resumed"
    assert features_of(old) != features_of(out)
