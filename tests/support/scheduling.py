"""Order in which pytest-xdist assigns tests to its workers."""

from __future__ import annotations

from typing import Any

import pytest

# Files whose tests share an expensive fixture. All tests of such a file run in one worker.
SHARING = [
    "kernels/test_devices.py",
    "report/test_page.py",
    "run/test_cuda.py",
    "run/test_memory.py",
    "scripts/test_readers.py",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that assigns single tests, and whole files only if their tests share a fixture.

    The files with the most tests come first, so that no long file starts at the end.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.removeprefix("tests/") in SHARING else nodeid

    return Scheduling(config, log)
