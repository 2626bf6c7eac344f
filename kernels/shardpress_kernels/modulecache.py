"""The cache of compiled modules, in which later processes find the C code of Theano compiled.

Each module has a directory, whose name is a hash of everything that determines its machine code. A directory with such
a name is complete, because it is renamed last. Processes that compile different modules do not wait for each other.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from shardpress_kernels.compiler import compilations

log = logging.getLogger(__name__)

_PREFIX = "module-"
_LOCK = ".lock"
_SECONDS_BETWEEN_TRIES = 0.1
_SECONDS_BEFORE_LOGGING = 5.0
_MAX_AGE = 31 * 24 * 60 * 60.0
"""Seconds after which a module that no process has loaded is removed."""

# This header is part of NumPy, but not of its public API, and differs between versions. Theano needs a few of its
# macros, which _PRELUDE defines.
_PRIVATE_HEADER = '"numpy/npy_3kcompat.h"'

# NumPy hides the field `elsize` of descriptors unless the code is compiled for this version of NumPy alone.
_PRELUDE = """\
#define NPY_TARGET_VERSION NPY_API_VERSION
#ifndef NPY_PY3K
#define NPY_PY3K 1
#endif
#define PyInt_Check PyLong_Check
#define PyInt_AsLong PyLong_AsLong
#define PyInt_FromLong PyLong_FromLong
#define NpyCapsule_AsVoidPtr(capsule) PyCapsule_GetPointer(capsule, NULL)
#define NpyCapsule_GetDesc PyCapsule_GetContext
#define NpyCapsule_Check PyCapsule_CheckExact
"""


class CompileLockHeld(RuntimeError):
    """Another process has compiled a module for longer than Theano's setting ``compile.timeout``."""


class _Build(NamedTuple):
    """Options of the compiler for a module, in the order of the command."""

    args: Sequence[str] = ()
    include_dirs: Sequence[str] = ()
    lib_dirs: Sequence[str] = ()
    libs: Sequence[str] = ()


def module_of(linker: Any) -> ModuleType:
    """Return the module with the code of a ``theano.gof.CLinker``. The changed files of Theano call this function."""
    module = linker.get_dynamic_module()
    code = module.code()  # determines the hash
    build = _Build(linker.compile_args(), linker.header_dirs(), linker.lib_dirs(), linker.libraries())
    return _load_module(module.code_hash, code, build)


def compiled_module(name: str, code: str, args: Sequence[str]) -> ModuleType:
    """Return a module that is a part of Theano. The changed files of Theano call this function."""
    return _load_module(name, code, _Build(args))


def _load_module(name: str, code: str, build: _Build) -> ModuleType:
    """Load a module from the cache, where it is compiled if it is missing or damaged."""
    config: Any = sys.modules["theano.configdefaults"].config
    code = _PRELUDE + code.replace(_PRIVATE_HEADER, "<Python.h>")
    directory = Path(config.compiledir)
    folder = directory / (_PREFIX + _fingerprint(code, build, config))
    with suppress(ImportError):
        return _load(name, folder)
    with _locked(directory / f"{_LOCK}-{folder.name[-2:]}", config.compile.timeout):
        with suppress(ImportError):
            return _load(name, folder)  # another process has compiled it
        _compile(name, code, build, folder, config.cxx)
        _remove_old(directory)
        return _load(name, folder)


def _load(name: str, folder: Path) -> ModuleType:
    loader = ExtensionFileLoader(name, str(_library(name, folder)))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    with suppress(OSError):
        os.utime(folder)  # see `_remove_old`
    return module


def _library(name: str, folder: Path) -> Path:
    return folder / f"{name}.so"


def _fingerprint(code: str, build: _Build, config: Any) -> str:
    """Return a hash of the code, the compiler, its options and the headers of Ops.

    The names of directories are left out, so that an environment that has moved finds its modules. The headers of NumPy
    and Python are not hashed: the path of the cache contains their versions.
    """
    version = sys.modules["theano.configdefaults"].gcc_version_str
    headers = [_fingerprint_headers(folder) for folder in build.include_dirs]
    parts = [code, config.cxx, version, *sorted(build.args), *build.libs, *headers]
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def _fingerprint_headers(folder: str) -> str:
    """Return a hash of the headers of a directory that code of Theano can include."""
    digest = sha256()
    for pattern in ("*.h", "gpuarray/*.h", "numpy/*.h"):
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _compile(name: str, code: str, build: _Build, folder: Path, compiler: str) -> None:
    """Compile a module in a temporary directory, and then rename it."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}new-", dir=folder.parent))
    try:
        source = temporary / "mod.cpp"
        source.write_text(code)
        command = [compiler, "-shared", *build.args]
        command += [f"-I{directory}" for directory in (*build.include_dirs, *_include_dirs())]
        command += [f"-L{directory}" for directory in build.lib_dirs]
        command += ["-fvisibility=hidden", "-o", str(_library(name, temporary)), str(source)]
        command += [f"-l{library}" for library in build.libs]
        compilations.run(command)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged module
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _include_dirs() -> list[str]:
    """Return the directories of the headers of NumPy, Python and Theano."""
    folder = Path(sys.modules["theano.gof"].__file__ or "").parent
    python = dict.fromkeys(sysconfig.get_path(name) for name in ("include", "platinclude"))
    return [np.get_include(), *python, str(folder / "c_code")]


def _remove_old(directory: Path) -> None:
    """Remove the modules that no process has loaded for a month, and directories of interrupted processes."""
    oldest = time.time() - _MAX_AGE
    for folder in directory.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process has removed it
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


# -- locks ---------------------------------------------------------------------------------------------------------


def check_lockable(directory: Path) -> None:
    """Raise `OSError` if the file system of a directory does not support locks, or has no space for the lock's file."""
    descriptor = _open_lock(directory / _LOCK)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a file. A lock ends with its process. Raise `CompileLockHeld` after some seconds."""
    descriptor = _open_lock(path)
    try:
        _wait(descriptor, path, seconds)
        with suppress(OSError):  # on a full disk the name of the owner remains unknown
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # this unlocks; the file stays, because two processes could otherwise lock different files


def _open_lock(path: Path) -> int:
    # A link is not followed, because it could lead to another file. Child processes do not inherit the lock.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _wait(descriptor: int, path: Path, seconds: float) -> None:
    """Wait until the file is locked."""
    start = time.monotonic()
    is_logged = False
    while not _try_lock(descriptor):
        waited = time.monotonic() - start
        owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "an unknown process"
        if waited > seconds:
            raise CompileLockHeld(
                f"the compile cache is locked: {owner} has held {path} for more than {seconds:.0f} s. End that "
                "process, or set another base_compiledir in THEANO_FLAGS."
            )
        if waited > _SECONDS_BEFORE_LOGGING and not is_logged:
            log.info("waiting for %s, which compiles the same code", owner)
            is_logged = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _try_lock(descriptor: int) -> bool:
    """Lock a file if no other process has locked it; return whether it is locked now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
