"""Fixtures of the tests of the child."""

import pytest

from pipeline.hdf5.child import ask as gatekeeper
from tests.support.child import EVIL, plant, unusual


@pytest.fixture
def fresh():
    """No child from before, and none that a test has bent left over."""
    gatekeeper.retire()
    yield
    gatekeeper.retire()


@pytest.fixture
def evil(fresh, monkeypatch, tmp_path_factory):
    """Let the child do something else when it is to describe a file."""

    def bend(*lines):
        gatekeeper.retire()
        source = EVIL.format(lines="\n    ".join(lines))
        plant(monkeypatch, tmp_path_factory.mktemp("child"), source)

    return bend


@pytest.fixture
def path(tmp_path):
    return unusual(tmp_path / "x.h5")
