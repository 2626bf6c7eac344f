"""Fixtures of the tests of the child."""

import pytest

from pipeline.hdf5.child import ask as gatekeeper
from tests.support.child import EVIL, ROOT, unusual


@pytest.fixture
def fresh():
    """No child from before, and none that a test has bent left over."""
    gatekeeper.retire()
    yield
    gatekeeper.retire()


@pytest.fixture
def evil(fresh, monkeypatch):
    """Let the child do something else when it is to describe a file."""

    def bend(*lines):
        gatekeeper.retire()
        program = EVIL.format(root=str(ROOT), lines="\n    ".join(lines))
        monkeypatch.setattr(gatekeeper, "_PROGRAM", program.replace("{", "{{").replace("}", "}}"))

    return bend


@pytest.fixture
def path(tmp_path):
    return unusual(tmp_path / "x.h5")
