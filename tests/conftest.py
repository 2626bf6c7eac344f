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
from tests.support.interpreters import fresh

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
    """Keep to the instruction set that TEST_ISA names, as far as a test does not ask for another one."""
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


_needs: set[str] | None = None  # what the test under way may do beyond computing; None between tests


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Stop a test that does what it is not marked with, where marks choose the tests: `make check` is what it says."""
    if _needs is None:
        return
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn") and not _needs & {"process", "compiler"}:
        raise AssertionError("starts a process, so it has to be marked with pytest.mark.process")
    if event == "import" and arguments[0] == "theano" and "compiler" not in _needs:
        raise AssertionError("loads Theano, which compiles, so it has to be marked with pytest.mark.compiler")


sys.addaudithook(_watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch a test with its fixtures."""
    global _needs
    _needs = {mark.name for mark in item.iter_markers()} if item.config.getoption("markexpr") else None
    try:
        return (yield)
    finally:
        _needs = None


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """Variables that a test leaves behind are those of every run that a later test starts."""
    before = {**os.environ, "PYTEST_CURRENT_TEST": ""}
    yield
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == before


# Files whose tests share what takes long to make: all of one run in the same process, one after the other.
SHARING = [
    "cluster/test_executor.py",
    "docs/test_readme.py",
    "kernels/test_devices.py",
    "run/test_children.py",
    "run/test_cuda.py",
    "run/test_memory.py",
    "scripts/test_readers.py",
    "classify/test_compare.py",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out one by one but for those that share; the largest files begin, so that none ends alone."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.removeprefix("tests/") in SHARING else nodeid

    return Scheduling(config, log)


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
