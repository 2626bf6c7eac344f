"""Workers that take their time for each block, so that they are met at work: for ``dask worker --preload``."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline.encoding import encode
from pipeline.scan import blocks

__all__ = ["dask_setup"]

_SECONDS = 0.3


def dask_setup(_worker: Any = None) -> None:
    """Slow it down."""
    patch = pytest.MonkeyPatch()  # for as long as the process lasts
    for module in (encode, blocks):
        patch.setattr(module, "read", _slowly(module.read))


def _slowly(read: Any) -> Any:
    def slow(*arguments: Any) -> Any:
        time.sleep(_SECONDS)
        return read(*arguments)

    return slow
