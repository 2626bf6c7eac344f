"""Fixtures of the tests of the scan."""

import pytest

from shardpress.shards import digests


@pytest.fixture
def units_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of any size whole units, so that the digests do not depend on it."""
    monkeypatch.setattr(digests, "UNIT_ROWS", 1)
