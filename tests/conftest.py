"""Fixtures of several test files."""

import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreters import run_python

pytest_plugins = ["tests.support.session", "tests.support.audit", "tests.support.scheduling"]

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


@pytest.fixture(autouse=True, scope="module")
def same_import_path() -> Iterator[None]:
    """Restore `sys.path`: Dask adds scratch directories of workers, which a later run would refuse."""
    before = list(sys.path)
    yield
    sys.path[:] = before


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
    """Skip a test if OpenCL is incomplete; fail instead with REQUIRE_OPENCL=1, as in CI."""
    missing = run_python(CAPABILITIES).facts["missing"]
    if missing and os.environ.get("REQUIRE_OPENCL") == "1":
        pytest.fail(f"REQUIRE_OPENCL=1, but missing on this machine: {missing}")
    if missing:
        pytest.skip(f"missing on this machine: {missing}")


@pytest.fixture(scope="session")
def pygpu() -> None:
    """Skip a test that needs pygpu only if it is missing; fail instead with REQUIRE_OPENCL=1."""
    if importlib.util.find_spec("pygpu") is None:
        stop = pytest.fail if os.environ.get("REQUIRE_OPENCL") == "1" else pytest.skip
        stop("missing on this machine: pygpu (scripts/install_pygpu.sh)")
