"""Fixtures of several test files."""

import gc
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.shards import kept
from shardpress.shards.vet import _LIKE
from tests.support.interpreters import run_python

pytest_plugins = ["tests.support.session", "tests.support.scheduling"]

# Libraries that libgpuarray loads by their unversioned names, and the Debian packages that contain them.
CAPABILITIES = """
import ctypes, importlib.util
def missing():
    if importlib.util.find_spec("pygpu") is None:
        return "pygpu (scripts/install_pygpu.sh)"
    try:
        opencl = ctypes.CDLL("libOpenCL.so")
    except OSError:
        return "libOpenCL.so (Debian: ocl-icd-opencl-dev)"
    count = ctypes.c_uint(0)
    opencl.clGetPlatformIDs(0, None, ctypes.byref(count))
    if not count.value:
        return "an OpenCL platform (Debian: pocl-opencl-icd)"
    try:
        ctypes.CDLL("libclblast.so")
    except OSError:
        return "libclblast.so (Debian: libclblast-dev)"
    return ""
facts["missing"] = missing()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need pygpu."""
    for item in items:
        if {"opencl", "pygpu"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("pygpu")


def pytest_collection_finish() -> None:
    """Exempt the objects of modules and tests from garbage collection, which each training run triggers."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """Check that the tests of a module restore all environment variables, which later tests inherit."""
    before = _environment()
    yield
    assert _environment() == before


def _environment() -> dict[str, str]:
    """Return the environment variables, except for those that pytest and the first import of scikit-learn set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_CURRENT", "KMP_"))}


@pytest.fixture(autouse=True)
def described_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the descriptions of the files of earlier tests, and keep those of files that a test has just written."""
    _LIKE.clear()
    monkeypatch.setattr(kept, "_SETTLED_NS", 0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Return a directory that every user can enter, unlike ``tmp_path``."""
    path = Path(tempfile.mkdtemp(prefix="shardpress-test-"))
    path.chmod(0o755)
    yield path
    for entry in path.iterdir():
        entry.chmod(0o755)  # otherwise it could not be removed without root privileges
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def opencl() -> None:
    """Skip a test if OpenCL is incomplete. In CI, fail instead."""
    missing = run_python(CAPABILITIES).facts["missing"]
    if missing:
        _skip_or_fail(missing)


@pytest.fixture(scope="session")
def pygpu() -> None:
    """Skip a test that only needs pygpu if it is missing. In CI, fail instead."""
    if importlib.util.find_spec("pygpu") is None:
        _skip_or_fail("pygpu (scripts/install_pygpu.sh)")


def _skip_or_fail(missing: str) -> None:
    """Skip a test. In CI, where the variable CI is set, fail instead: `.ci/run` must test the code for GPUs."""
    stop = pytest.fail if os.environ.get("CI") else pytest.skip
    stop(f"missing on this machine: {missing}")
