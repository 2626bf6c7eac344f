"""Delay each block of a worker, so that tests find the worker busy. For ``dask worker --preload``."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shardpress.encoding import encode
from shardpress.scan import blocks

_SECONDS = 0.3


def dask_setup(_worker: Any = None) -> None:
    """Make the check before each block slow in this worker."""
    patch = pytest.MonkeyPatch()  # until the process ends
    for module in (encode, blocks):
        patch.setattr(module, "check", _slowly(module.check))


def _slowly(check: Any) -> Any:
    def slow() -> None:
        time.sleep(_SECONDS)
        check()

    return slow
