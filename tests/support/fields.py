"""Settings without a flag, for tests that start the command line."""

from __future__ import annotations

from typing import Any

import pytest

from shardpress.settings import flags
from shardpress.settings.config import Config

__all__ = ["set_fields"]


def set_fields(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Set fields of all settings that are read from now on, in this process."""
    merge = flags._merge

    def merge_and_set(given: dict[str, Any], variables: dict[str, str]) -> Config:
        return merge(given, variables).changed(**values)

    monkeypatch.setattr(flags, "_merge", merge_and_set)
