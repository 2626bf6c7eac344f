"""Fixtures of several test files."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.instruction_sets import INSTRUCTION_SETS, missing, settings
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
