"""Fixtures: a workspace for runs with the stand-in, and an output directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.interruptions import SIZES
from tests.support.standin import Workspace, install


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    install(monkeypatch)
    return Workspace(tmp_path, *SIZES)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
