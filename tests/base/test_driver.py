"""Tests of queries of the driver in a child process, with fake libraries that work or fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.base import driver as module
from shardpress.base.driver import Driver, find_driver
from tests.support.cards import driver, library

pytestmark = pytest.mark.process


def test_driver_is_found_if_it_returns_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))  # takes precedence over a driver of this machine
    file = driver(tmp_path, (12, 4), (9, 0), (7, 5))
    assert find_driver() == Driver(str(file), (12, 4), ((9, 0), (7, 5)))
    driver(tmp_path, (13, 0), (9, 0), init="__builtin_trap();")
    assert find_driver() == Driver(str(file), (13, 0), ())
    driver(tmp_path, (12, 0), (9, 0), init="return 100;")  # CUDA_ERROR_NO_DEVICE
    assert find_driver() == Driver(str(file), (12, 0), ())
    file.write_text("a file that cannot be loaded")
    assert find_driver() is None
    library(file, "int cuDriverGetVersion(int *version) { return 34; }")  # the stub of a CUDA toolkit
    assert find_driver() is None
    monkeypatch.setattr(module, "_SECONDS", 0.2)
    library(file, "int cuDriverGetVersion(int *version) { for (;;) ; }")
    assert find_driver() is None
