"""Delay each block of a worker, so that tests find the worker busy. For ``dask worker --preload``."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shardpress.encoding import encode
from shardpress.scan import blocks

_SECONDS = 0.3


def dask_setup(_worker: Any = None) -> None:
    """Make reads slow in this worker."""
    patch = pytest.MonkeyPatch()  # until the process ends
    for module in (encode, blocks):
        patch.setattr(module, "read", _slowly(module.read))


def _slowly(read: Any) -> Any:
    def slow(*arguments: Any) -> Any:
        time.sleep(_SECONDS)
        return read(*arguments)

    return slow
