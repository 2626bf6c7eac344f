"""Choice of the directory for compiled code: the compile cache or, if it cannot be used, a temporary directory."""

from __future__ import annotations

import atexit
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shardpress_kernels.compiler import check_compiler
from shardpress_kernels.modulecache import check_lockable
from shardpress_kernels.trust import private_directory, untrusted_above

log = logging.getLogger(__name__)

_CARDS = Path("/proc/driver/nvidia/gpus")
_MIN_FREE_BYTES = 2**24
"""Smallest free space of a usable directory. A first run writes 2 MB, and the compiler needs space while it works."""


class UnsafeCompileCache(RuntimeError):
    """Other users can write to the compile cache, from which Theano runs code."""


class CompileCacheUnavailable(RuntimeError):
    """Neither the compile cache nor a temporary directory can store compiled code."""


def default_cache() -> str:
    """Return the path of a private directory for code compiled with this version of NumPy.

    The name of the subdirectory that Theano creates has the version of Python.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardpress"
    return str(root / f"numpy-{np.__version__}")


def prepare_cache(config: Any) -> None:
    """Check the compiler, and choose the directories of compiled code and of temporary files.

    The changed files of Theano call this function before they compile code and run it.
    """
    check_compiler(config)
    _choose_cache(config)
    if not _can_hold_temporary_files():
        tempfile.tempdir = config.compiledir


def _choose_cache(config: Any) -> None:
    """Replace an unusable compile cache by a temporary one; refuse an unsafe one."""
    try:
        directory = Path(config.compiledir)  # Theano creates it here
        _refuse_unsafe(directory)
        _check_writable(directory)
    except (OSError, ValueError) as error:
        # Theano does not allow changing this setting.
        type(config).compiledir.val = _make_temporary_cache(config.base_compiledir, _reason_of(error))
    # libgpuarray caches machine code under names that are the same for all cards of a generation.
    cache = os.path.join(config.compiledir, "gpuarray_kernels", _fingerprint_cards())
    type(config.gpuarray).cache_path.default = cache


def _reason_of(error: Exception) -> str:
    """Return the operating system's text for an error that Theano may have wrapped in a ValueError."""
    cause = error
    if isinstance(error.__context__, OSError):
        cause = error.__context__
    return getattr(cause, "strerror", None) or str(cause)


def _fingerprint_cards(folder: Path = _CARDS) -> str:
    """Return a hash of the models of this machine's cards, as NVIDIA's driver lists them in `folder`."""
    text = "".join(sorted(path.read_text() for path in folder.glob("*/information")))
    models = sorted(set(re.findall(r"^Model:\s*(.*?)\s*$", text, re.M)))
    return hashlib.sha256("\n".join(models).encode()).hexdigest()[:16]


def _make_temporary_cache(cache: str, why: str) -> str:
    """Create a private directory for compiled code instead of `cache`, which is removed when the process ends."""
    try:
        directory = str(private_directory("shardpress-compiled-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        _check_writable(Path(directory))
    except OSError as error:
        raise CompileCacheUnavailable(
            f"the compile cache {cache} cannot be used ({why}), and neither can a temporary directory ({error})"
        ) from error
    log.warning(
        "the compile cache %s cannot be used: %s. Compiling into %s instead, which is removed at the end.",
        cache,
        why,
        directory,
    )
    return directory


def _check_writable(directory: Path) -> None:
    """Raise `OSError` unless the directory can be locked and written, and has enough free space."""
    check_lockable(directory)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
    n_free = _free_bytes(directory)
    if n_free < _MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, f"{n_free} bytes are free, expected at least {_MIN_FREE_BYTES}")


def _free_bytes(directory: str | Path) -> float:
    """Return the free bytes of a file system; infinity if it does not report them."""
    facts = os.statvfs(directory)
    if facts.f_blocks == 0:
        return math.inf
    return facts.f_bavail * facts.f_frsize


def _can_hold_temporary_files() -> bool:
    """Return whether the temporary directory has space for the compiler's files and other users cannot replace them."""
    try:
        folder = tempfile.gettempdir()
        has_room = _free_bytes(folder) >= _MIN_FREE_BYTES
        return has_room and untrusted_above(os.path.join(folder, "any")) is None
    except FileNotFoundError:  # Python found no writable directory
        return False


def _refuse_unsafe(directory: Path) -> None:
    """Refuse a cache that other users can write or replace, because Theano loads its files."""
    facts = directory.stat()
    if facts.st_uid != os.geteuid():
        raise UnsafeCompileCache(
            f"the compile cache {directory} belongs to user {facts.st_uid}, expected {os.geteuid()}: Theano runs "
            "code from this directory. Set base_compiledir in THEANO_FLAGS to a directory of your own."
        )
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise UnsafeCompileCache(
            f"the compile cache {directory} has mode {stat.S_IMODE(facts.st_mode):04o}, expected 0700: Theano runs "
            f"code from this directory. Run: chmod 700 {directory}"
        )
    problem = untrusted_above(directory)
    if problem is not None:
        raise UnsafeCompileCache(
            f"other users could replace the compile cache {directory}: {problem}. Theano runs code from this "
            "directory. Run chmod go-w on that directory if it is yours; otherwise set base_compiledir in "
            "THEANO_FLAGS to a directory below one of your own."
        )
