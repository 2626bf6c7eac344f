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
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from shardpress.doctor.check import Check
from shardpress.doctor.packages import (
    PYTHON_ADVICE,
    find_distributions,
    missing_proc,
    too_little_memory,
    unmet_requirements,
    unsuitable_python,
)
from shardpress_kernels.theanofiles import changes_in_words, repair_command

_IMPORTED = {"numpy": "numpy", "Theano": "theano", "pygpu": "pygpu", "dask": "dask", "h5py": "h5py"}
_IMPORTED |= {"scikit-learn": "sklearn", "scipy": "scipy"}
_FILTERS = {"zstandard": "zstandard", "lz4": "lz4", "blosc": "blosc"}
# C++ program that prints the version of Python whose headers it was compiled with.
_PROGRAM = "#include <Python.h>\n#include <cstdio>\nint main() { std::puts(PY_VERSION); }\n"
_SECONDS = 60  # time limit for the compiler, and for the compiled program
_MIN_FREE_BYTES = 10**9
_FEW_FILES = 256


def python_checks() -> Iterator[Check]:
    """Yield the checks of Python, packages and compiler."""
    yield from map(_try, (_python, _packages, _filters, _parquet, _compiler))


def machine_checks(output: str) -> Iterator[Check]:
    """Yield the checks of the machine, and of the directories where a run writes."""
    yield from map(_try, (_proc, _semaphores, _memory, _open_files))
    for name, folder in (("output", output), ("temporary", tempfile.gettempdir())):
        yield _try(partial(_folder, name, folder), name)


def _try(check: Callable[[], Check], name: str = "") -> Check:
    """Return the result of a check. An error is a failed check, so that it does not prevent the other checks."""
    try:
        return check()
    except Exception as error:
        name = name or check.__name__.strip("_").replace("_", " ")
        return Check(name, "fail", f"the check failed: {type(error).__name__}: {error}")


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    unsuitable = unsuitable_python()
    if unsuitable:
        return Check("python", "warn", f"{found}: can read features, but not run. {unsuitable}", PYTHON_ADVICE)
    return Check("python", "pass", found)


def _packages() -> Check:
    distributions = find_distributions()
    if "shardpress" not in distributions:
        return Check(
            "packages", "warn", "shardpress is not installed, so its requirements are unknown", "pip install ."
        )
    wrong = unmet_requirements(distributions)
    if wrong:
        found = [each.partition(": ")[0] for each in wrong]
        fixes = [each.partition(": ")[2] for each in wrong]
        return Check("packages", "fail", "; ".join(found), "; ".join(fixes), is_setting=True)
    changes = changes_in_words()
    if changes and find_spec("theano") is not None:
        return Check("packages", "fail", changes, repair_command(), is_setting=True)
    return Check("packages", "pass", ", ".join(_version_of(name, module) for name, module in _IMPORTED.items()))


def _version_of(name: str, module: str) -> str:
    """Return a package's version, with its directory if the directory does not belong to this Python."""
    spec = find_spec(module)
    if spec is None:
        return f"no {name}"
    try:
        number = version(name)
    except PackageNotFoundError:
        number = "(unknown version)"
    folder = os.path.dirname(os.path.dirname(spec.origin or ""))
    if folder == sysconfig.get_path("platlib"):
        return f"{name} {number}"
    return f"{name} {number} ({folder})"


def _filters() -> Check:
    missing = [name for name, module in _FILTERS.items() if find_spec(module) is None]
    if not missing:
        return Check("filters", "pass", "can decode HDF5's own, zstd, lz4, bitshuffle, bzip2 and Blosc")
    found = f"can decode HDF5's own filters and bzip2; other filters need {', '.join(missing)}"
    return Check("filters", "absent", found, "pip install 'shardpress[filters]', if files need other filters")


def _parquet() -> Check:
    if find_spec("pyarrow") is None:
        fix = "pip install 'shardpress[parquet]', for shardpress export --to parquet"
        return Check("parquet", "absent", "cannot write Parquet files, which need pyarrow", fix)
    return Check("parquet", "pass", f"can write Parquet files: {_version_of('pyarrow', 'pyarrow')}")


def _compiler() -> Check:
    """Check that a compiler and the headers of this Python are installed, and that compiled programs run."""
    try:
        path = _find_compiler()
        headers = _find_headers()
        python = _compile_and_run(path, headers)
    except _CompilerError as error:
        return Check("compiler", "fail", str(error), error.fix)
    if python != platform.python_version():
        found = f"{path}: {headers} has headers of Python {python or '(unknown)'}"
        return Check(
            "compiler",
            "fail",
            found,
            f"install the headers of Python {platform.python_version()} (Debian: python3-dev)",
        )
    name = _call([path, "--version"]).stdout.partition("\n")[0]
    return Check("compiler", "pass", f"{path}: {name}; compiles and runs a program with this Python's headers")


class _CompilerError(Exception):
    """Fault of the compiler, with advice."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def _find_compiler() -> str:
    flags = dict(re.findall(r"(?:^|,)\s*(cxx)\s*=\s*([^,]*)", os.environ.get("THEANO_FLAGS", "")))
    name = flags.get("cxx", "g++")
    path = shutil.which(name)
    if path is None:
        where = f"not found in PATH={os.environ.get('PATH', '')}"
        raise _CompilerError(f"{name}: {where}", "apt-get install g++, or THEANO_FLAGS=cxx=NAME")
    return os.path.abspath(path)


def _find_headers() -> str:
    headers = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(headers, "Python.h")):
        raise _CompilerError(f"{headers}/Python.h does not exist", "apt-get install python3-dev")
    return headers


def _compile_and_run(path: str, headers: str) -> str:
    """Compile a program and return its output: the version of Python in the headers."""
    with tempfile.TemporaryDirectory(prefix="shardpress-doctor-") as folder:
        program = os.path.join(folder, "program")
        # The linker would take libgcc_s.so.1 from the current directory.
        compiling = _call([path, "-x", "c++", f"-I{headers}", "-o", program, "-"], _PROGRAM, folder)
        if compiling.returncode:
            lines = compiling.stderr.strip().splitlines() or [f"exit code {compiling.returncode}"]
            fix = "apt-get install g++ binutils libc6-dev, or THEANO_FLAGS=cxx=NAME"
            raise _CompilerError(f"{path} cannot compile: {lines[0]}", fix)
        try:
            return _call([program]).stdout.strip()
        except OSError as error:
            found = f"{path} compiles, but the program cannot be started in {folder}: {error.strerror}"
            raise _CompilerError(found, "set TMPDIR to a directory that is not mounted noexec") from error


def _call(command: list[str], standard_input: str = "", folder: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=standard_input,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_SECONDS,
        cwd=folder,
    )


def _proc() -> Check:
    """Check that ``/proc`` is mounted."""
    if complaint := missing_proc():
        return Check("/proc", "fail", complaint, "mount -t proc proc /proc")
    return Check("/proc", "pass", "is mounted")


def _semaphores() -> Check:
    """Check that semaphores can be created. The processes of a run with --workers share them."""
    try:
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        found = f"semaphores cannot be created ({error.strerror}), so --workers does not work"
        return Check("semaphores", "warn", found, "make /dev/shm writable")
    return Check("semaphores", "pass", "can be created")


def _memory() -> Check:
    if complaint := too_little_memory():
        return Check("memory", "fail", complaint, "ulimit -v unlimited")
    n_free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    n_cores = len(os.sched_getaffinity(0))
    return Check("memory", "pass", f"{n_free / 1e9:.1f} GB free; {n_cores} available cores")


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft}"
    if soft < _FEW_FILES:
        return Check("open files", "warn", found, f"ulimit -n {min(hard, 4096)}")
    return Check("open files", "pass", found)


def _folder(name: str, folder: str) -> Check:
    """Check that a directory can be written, synced and locked, and has free space."""
    path = Path(folder).absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    try:
        _write_sync_and_lock(existing)
    except OSError as error:
        option = "--output" if name == "output" else "TMPDIR"
        advice = f"choose another directory with {option}"
        return Check(name, "fail", f"{existing}: cannot be written, synced or locked: {error.strerror}", advice)
    n_free = shutil.disk_usage(existing).free
    found = f"{path}: can be written, synced and locked; {n_free / 1e9:.1f} GB free"
    if n_free < _MIN_FREE_BYTES:
        return Check(name, "warn", found, "free disk space")
    return Check(name, "pass", found)


def _write_sync_and_lock(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
