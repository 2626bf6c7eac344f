"""Fixture: a ledger in an empty directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with locked(tmp_path / "out") as found:
        yield found
