"""Tests of workers of an external scheduler: warnings about workers without a device."""

from __future__ import annotations

from typing import Any

import pytest

from shardpress.cluster import remote
from shardpress.errors import DeviceError


def test_workers_without_an_answer_count_as_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = None
    monkeypatch.setattr(remote, "check_devices", lambda *_: ([], {"a": "no card", "b": "no driver"}))
    with pytest.raises(DeviceError, match=r"\b2 workers of 2\b.*: no card\b"):
        remote._check_devices(client, lambda: None, requires_device=False)
