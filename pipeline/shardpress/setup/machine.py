"""Checks of Python, packages and compiler, and of memory, limits and directories.

They use the standard library only, since other packages may be broken.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from shardpress.base.packages import (
    PYTHON_ADVICE,
    missing_proc,
    too_little_memory,
    unmet_requirements,
    unsuitable_python,
    version_of,
)
from shardpress.setup.diagnosis import Check

_IMPORTED = ("numpy", "Theano", "pygpu", "dask", "h5py", "scikit-learn", "scipy")
_PROGRAM = "#include <Python.h>\nint main() { return 0; }\n"
_COMPILER_ADVICE = (
    "install g++ and python3-dev (Debian), or choose another compiler with THEANO_FLAGS=cxx=NAME; if TMPDIR is mounted "
    "noexec, choose another directory"
)
_SECONDS = 60  # time limit for the compiler, and for the compiled program
_MIN_FREE_BYTES = 10**9
_FEW_FILES = 256


def python_checks() -> Iterator[Check]:
    """Yield the checks of Python, packages and compiler."""
    yield _try("python", _python)
    yield _try("packages", _packages)
    yield _try("compiler", _compiler)


def machine_checks(output: str) -> Iterator[Check]:
    """Yield the checks of the machine, and of the directories where a run writes."""
    yield _try("/proc", _proc)
    yield _try("semaphores", _semaphores)
    yield _try("memory", _memory)
    yield _try("open files", _open_files)
    yield _try("output", partial(_folder, "output", output, "--output"))
    yield _try("temporary", partial(_folder, "temporary", tempfile.gettempdir(), "TMPDIR"))


def _try(name: str, check: Callable[[], Check]) -> Check:
    """Return the result of a check. An error is a failed check, so that it does not prevent the other checks."""
    try:
        return check()
    except Exception as error:
        return Check(name, "fail", f"the check failed: {type(error).__name__}: {error}")


def _python() -> Check:
    finding = f"{platform.python_version()} at {sys.executable}"
    unsuitable = unsuitable_python()
    if unsuitable:
        return Check("python", "warn", f"{finding}: can read features, but not run. {unsuitable}", PYTHON_ADVICE)
    return Check("python", "pass", finding)


def _packages() -> Check:
    if not version_of("shardpress"):
        finding = "shardpress is not installed, so its requirements are unknown"
        return Check("packages", "warn", finding, "pip install .")
    wrong = unmet_requirements()
    if wrong:
        problems = [message.partition(": ")[0] for message in wrong]
        fixes = [message.partition(": ")[2] for message in wrong]
        return Check("packages", "fail", "; ".join(problems), "; ".join(fixes), is_setting=True)
    return Check("packages", "pass", ", ".join(f"{name} {version_of(name) or 'missing'}" for name in _IMPORTED))


def _compiler() -> Check:
    """Check that a program with the headers of this Python can be compiled and run."""
    names = re.findall(r"(?:^|,)\s*cxx\s*=\s*([^,]*)", os.environ.get("THEANO_FLAGS", ""))
    name = names[-1] if names else "g++"
    path = shutil.which(name)
    if path is None:
        finding = f"{name}: not found in PATH={os.environ.get('PATH', '')}"
        return Check("compiler", "fail", finding, _COMPILER_ADVICE)
    with tempfile.TemporaryDirectory(prefix="shardpress-doctor-") as folder:
        program = os.path.join(folder, "program")
        # The linker would take libgcc_s.so.1 from the current directory.
        command = [os.path.abspath(path), "-x", "c++", f"-I{sysconfig.get_path('include')}", "-o", program, "-"]
        compiling = _call(command, folder)
        if compiling.returncode:
            lines = compiling.stderr.strip().splitlines() or [f"exit code {compiling.returncode}"]
            return Check("compiler", "fail", f"{path} cannot compile: {lines[0]}", _COMPILER_ADVICE)
        try:
            _call([program], folder)
        except OSError as error:
            finding = f"{path} compiles, but the program cannot be started in {folder}: {error.strerror}"
            return Check("compiler", "fail", finding, _COMPILER_ADVICE)
    return Check("compiler", "pass", f"{path}: compiles and runs a program with this Python's headers")


def _call(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=_PROGRAM,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_SECONDS,
        cwd=folder,
    )


def _proc() -> Check:
    if complaint := missing_proc():
        return Check("/proc", "fail", complaint, "mount -t proc proc /proc")
    return Check("/proc", "pass", "is mounted")


def _semaphores() -> Check:
    """Check that semaphores can be created. The processes of a run with --workers share them."""
    try:
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        finding = f"semaphores cannot be created ({error.strerror}), so --workers does not work"
        return Check("semaphores", "warn", finding, "make /dev/shm writable")
    return Check("semaphores", "pass", "can be created")


def _memory() -> Check:
    if complaint := too_little_memory():
        return Check("memory", "fail", complaint, "ulimit -v unlimited")
    n_free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    n_cores = len(os.sched_getaffinity(0))
    return Check("memory", "pass", f"{n_free / 1e9:.1f} GB free; {n_cores} available cores")


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        return Check("open files", "warn", f"at most {soft}", f"ulimit -n {min(hard, 4096)}")
    return Check("open files", "pass", f"at most {soft}")


def _folder(name: str, folder: str, option: str) -> Check:
    """Check that a directory can be written, synced and locked, and has free space."""
    path = Path(folder).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        finding = f"{existing}: cannot be written, synced or locked: {error.strerror}"
        return Check(name, "fail", finding, f"choose another directory with {option}")
    n_free = shutil.disk_usage(existing).free
    finding = f"{path}: can be written, synced and locked; {n_free / 1e9:.1f} GB free"
    if n_free < _MIN_FREE_BYTES:
        return Check(name, "warn", finding, "free disk space")
    return Check(name, "pass", finding)
