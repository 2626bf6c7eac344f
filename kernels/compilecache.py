"""Where compiled code is kept: a directory that is private and can be written, else a temporary one."""

from __future__ import annotations

import atexit
import errno
import hashlib
import logging
import math
import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np

from kernels import compilelock
from kernels.compiler import check_compiler, hush_compiler, watch_compiler
from kernels.modulecache import read_records_on_demand
from kernels.trust import private_directory, untrusted_above

__all__ = ["CompileCacheUnavailable", "SettledCache", "UnsafeCompileCache", "default_cache"]

log = logging.getLogger(__name__)

_CARDS = Path("/proc/driver/nvidia/gpus")
_ROOM = 2**24  # bytes; a run from nothing takes 2 MB, and the compiler some more on the way


class UnsafeCompileCache(RuntimeError):
    """The compile cache could be written by somebody else, and Theano runs whatever it finds there."""


class CompileCacheUnavailable(RuntimeError):
    """Compiled code can be kept neither in the compile cache nor in a temporary directory."""


def default_cache() -> str:
    """A private directory for compiled code, one for each pair of Theano and NumPy, which its own name leaves out."""
    from importlib.metadata import version

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardpress"
    return str(root / f"theano-{version('Theano')}-numpy-{np.__version__}")


class SettledCache(MetaPathFinder):
    """Theano settles where its cache lies and then compiles and runs code there, all while it is imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find nothing, but see to compiler and cache once Theano has read its settings, before it compiles."""
        if fullname == "theano.gof":
            config = sys.modules["theano.configdefaults"].config
            check_compiler(config)
            watch_compiler(sys.modules["theano.misc.windows"], config)
            sys.modules["theano.gof.compilelock"] = compilelock
            _settle(config)
            if not _can_hold_temporary_files():
                tempfile.tempdir = config.compiledir  # for the compiler's temporary files
        elif fullname == "theano.gof.lazylinker_c":  # the first that compiles
            hush_compiler(sys.modules["theano.gof.cmodule"])
            _write_keys_whole(sys.modules["theano.gof.cmodule"])
            read_records_on_demand(sys.modules["theano.gof.cmodule"])


def _write_keys_whole(cmodule: Any) -> None:
    """Have ``theano.gof.cmodule`` put what it notes of a module there in one moment.

    It writes over it, and takes no lock to read: another process that found the file empty took the module for broken,
    and removed it under whoever had it loaded, whose next note had no place any more.
    """

    def save_pkl(self: Any) -> None:
        half = f"{self.key_pkl}.{os.getpid()}"
        try:
            with open(half, "wb") as file:
                pickle.dump(self, file, protocol=pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            Path(half).unlink(missing_ok=True)
            if isinstance(error, pickle.PicklingError):
                Path(self.key_pkl).unlink(missing_ok=True)  # Theano goes by there being none
            raise
        os.replace(half, self.key_pkl)

    cmodule.KeyData.save_pkl = save_pkl


def _settle(config: Any) -> None:
    """Have the compile cache in a directory that is safe and can be written."""
    try:
        directory = Path(config.compiledir)  # which makes it
        _refuse_unsafe(directory)
        _try_out(directory)
    except (OSError, ValueError) as error:
        # Theano makes a ValueError of what the system has said.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        # What is settled cannot be changed in Theano's own ways.
        type(config).compiledir.val = _temporary(config.base_compiledir, getattr(cause, "strerror", None) or str(cause))
    # libgpuarray keeps machine code, by names that cut off what tells two cards of one generation apart.
    type(config.gpuarray).cache_path.default = os.path.join(config.compiledir, "gpuarray_kernels", _cards())


def _cards() -> str:
    """A name for the models of this machine's cards, as NVIDIA's driver lists them."""
    told = "".join(sorted(path.read_text() for path in _CARDS.glob("*/information")))
    models = sorted(set(re.findall(r"^Model:\s*(.*?)\s*$", told, re.M)))
    return hashlib.sha256("\n".join(models).encode()).hexdigest()[:16]


def _temporary(cache: str, why: str) -> str:
    """A private directory until the process ends."""
    try:
        directory = str(private_directory("shardpress-compiled-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        _try_out(Path(directory))
    except OSError as error:
        raise CompileCacheUnavailable(
            f"the compile cache {cache} cannot be used ({why}), nor a temporary directory in its place ({error})"
        ) from error
    log.warning(
        "the compile cache %s cannot be used: %s. Compiling into %s, which is removed at the end.",
        cache,
        why,
        directory,
    )
    return directory


def _try_out(directory: Path) -> None:
    """Raise an OSError when nothing can be written there, or next to nothing, or the file system has no locks."""
    compilelock.try_out(str(directory))
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
    if (n_free := _n_free(directory)) < _ROOM:
        raise OSError(errno.ENOSPC, f"{n_free} bytes are free there, expected {_ROOM} at least")


def _n_free(directory: str | Path) -> float:
    """Bytes; infinity where the file system does not say."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize if found.f_blocks else math.inf


def _can_hold_temporary_files() -> bool:
    """Return whether the temporary directory has room for the compiler's files, which nobody else can replace."""
    try:
        folder = tempfile.gettempdir()
        return _n_free(folder) >= _ROOM and untrusted_above(os.path.join(folder, "any")) is None
    except FileNotFoundError:  # Python found no usual place where a file can be written
        return False


def _refuse_unsafe(directory: Path) -> None:
    """Refuse a cache that other users can write or replace: Theano unpickles and loads what lies in it."""
    found = directory.stat()
    if found.st_uid != os.geteuid():
        raise UnsafeCompileCache(
            f"the compile cache {directory} belongs to user {found.st_uid}, expected {os.geteuid()}: Theano runs what "
            "it finds there. Set base_compiledir in THEANO_FLAGS to a directory of your own."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UnsafeCompileCache(
            f"the compile cache {directory} has mode {stat.S_IMODE(found.st_mode):04o}, expected 0700: Theano runs "
            f"what it finds there. Run: chmod 700 {directory}"
        )
    problem = untrusted_above(directory)
    if problem is not None:
        raise UnsafeCompileCache(
            f"other users could put another directory in the place of the compile cache {directory}: {problem}. Theano "
            "runs what it finds there. Run chmod go-w on that directory if it is yours; otherwise set base_compiledir "
            "in THEANO_FLAGS to a directory below one of your own."
        )
