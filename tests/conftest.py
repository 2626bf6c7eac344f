"""Fixtures of several test files."""

import atexit
import gc
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy.testing  # noqa: F401  which starts a process when it is loaded: before tests are watched
import pytest

from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing, settings
from tests.support import audit
from tests.support.interpreters import fresh
from tests.support.scheduling import make_scheduler

# A shell that starts the tests in the background has them ignore these, and so would every run that they start.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# What libgpuarray loads, each by its unversioned name, and which package of Debian brings it.
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


def pytest_configure() -> None:
    """Check TEST_CASES, and keep to the instruction set that TEST_ISA names unless a test uses another one."""
    cases = os.environ.get("TEST_CASES", "all")
    if cases != "all":
        raise pytest.UsageError(f"TEST_CASES={cases}, expected all")
    name = os.environ.get("TEST_ISA")
    if not name:
        return
    if name not in INSTRUCTION_SETS:
        raise pytest.UsageError(f"TEST_ISA={name}, expected one of {', '.join(INSTRUCTION_SETS)}")
    if lacks := missing(name):
        raise pytest.UsageError(f"TEST_ISA={name}, but this machine's processor lacks {', '.join(lacks)}")
    folder = Path(tempfile.mkdtemp(prefix="shardpress-test-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "theanorc").write_text(settings(name))
    os.environ["THEANORC"] = f"{folder / 'theanorc'}:~/.theanorc"
    os.environ["OPENBLAS_CORETYPE"] = INSTRUCTION_SETS[name].openblas


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of the collections that each run of a test makes: a fifth of some tests."""
    gc.freeze()


audit.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Check that a test and its fixtures do what the marks of the test say."""
    with audit.marks_enforced(item):
        return (yield)


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """Variables that a test leaves behind are those of every run that a later test starts."""
    before = {**os.environ, "PYTEST_CURRENT_TEST": ""}
    yield
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == before


@pytest.fixture(autouse=True, scope="module")
def same_import_path() -> Iterator[None]:
    """Dask puts the scratch directories of workers into `sys.path`, where a later run would find and refuse them."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out single tests, and whole files where their tests share a fixture."""
    return make_scheduler(config, log)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user can enter, unlike ``tmp_path``."""
    path = Path(tempfile.mkdtemp(prefix="shardpress-test-"))
    path.chmod(0o755)
    yield path
    for entry in path.iterdir():
        entry.chmod(0o755)  # so that it can be removed, whoever runs the tests
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def opencl() -> None:
    """Skip, naming what is missing for OpenCL; where REQUIRE_OPENCL=1 stands, as in CI, fail."""
    missing = fresh(CAPABILITIES).facts["missing"]
    if missing and os.environ.get("REQUIRE_OPENCL") == "1":
        pytest.fail(f"REQUIRE_OPENCL=1, but missing on this machine: {missing}")
    if missing:
        pytest.skip(f"missing on this machine: {missing}")


@pytest.fixture(scope="session")
def pygpu() -> None:
    """Skip where there is no pygpu, which the tests' stub of CUDA is for; where REQUIRE_OPENCL=1 stands, fail."""
    if importlib.util.find_spec("pygpu") is None:
        told = pytest.fail if os.environ.get("REQUIRE_OPENCL") == "1" else pytest.skip
        told("missing on this machine: pygpu (scripts/install_pygpu.sh)")
