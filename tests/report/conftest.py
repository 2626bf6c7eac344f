"""Fixtures: a finished run of the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nights import SIZES
from tests.support.standin import Night, install


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    install(monkeypatch)
    return Night(tmp_path, *SIZES)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
