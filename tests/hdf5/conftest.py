"""Fixtures of tests with a child of their own."""

import numpy as np
import pytest

from shardpress.hdf5.child import ask as ask_module
from tests.support.child import MODIFIED_CHILD, plant
from tests.support.helpers import numbered, write_shard


@pytest.fixture
def fresh():
    """Stop the child of earlier tests, and afterwards the child of this test."""
    ask_module.retire()
    yield
    ask_module.retire()


@pytest.fixture
def child_runs(fresh, monkeypatch, tmp_path_factory):
    """Return a function that replaces the description of files in the child."""

    def use(*lines):
        ask_module.retire()
        source = MODIFIED_CHILD.format(lines="\n    ".join(lines))
        plant(monkeypatch, tmp_path_factory.mktemp("child"), source)

    return use


@pytest.fixture
def path(tmp_path):
    extras = {"text": np.array(["text"] * 3, object)}  # only the child can read this text
    return write_shard(tmp_path / "x.h5", numbered(3), extras=extras)
