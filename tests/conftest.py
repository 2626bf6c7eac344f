"""Fixtures of several test files."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user can enter, unlike ``tmp_path``."""
    path = Path(tempfile.mkdtemp(prefix="shardpress-test-"))
    path.chmod(0o755)
    yield path
    for entry in path.iterdir():
        entry.chmod(0o755)  # so that it can be removed, whoever runs the tests
    shutil.rmtree(path)
