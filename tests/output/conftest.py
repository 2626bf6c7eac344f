"""Fixture: a journal in an empty directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.output.journal import Journal
from shardpress.output.lock import locked


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with locked(tmp_path / "out") as found:
        yield found
