"""What Theano reads while it is imported: our settings below the user's own, and a compile cache that is private."""

from __future__ import annotations

import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["UnsafeCompileCache", "below_the_users", "cache_checked_before_use", "requested_device", "without_scipy"]

# Every BLAS routine that Theano's real-valued operations call.
_BLAS_ROUTINES = ("gemm", "gemv", "ger", "dot", "axpy", "scal")


class UnsafeCompileCache(RuntimeError):
    """The compile cache could be written by somebody else, and Theano runs whatever it finds there."""


@contextmanager
def below_the_users() -> Iterator[None]:
    """Hand Theano our defaults as the first, and so the weakest, of its configuration files.

    THEANORC is a list of files in which later ones win, and THEANO_FLAGS wins over all of them. The device is taken
    out for the import by a last, strongest flag. The environment is put back, so that a spawned child starts as this
    process did.
    """
    before = {name: os.environ.get(name) for name in ("THEANORC", "THEANO_FLAGS")}
    # A parent that had a GPU leaves this behind, and Theano in a spawned child would refuse to start one.
    os.environ.pop("THEANO_GPU_IS_ALREADY_ACTIVE", None)
    umask = os.umask(0o077)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".theanorc") as ours:
            ours.write(_default_settings())
            ours.flush()
            theirs = "~/.theanorc" if before["THEANORC"] is None else before["THEANORC"]
            os.environ["THEANORC"] = os.pathsep.join([ours.name, theirs])
            # The line's end closes a comment: Theano's reader knows them.
            flags = f"{before['THEANO_FLAGS'] or ''}\n,device=cpu,init_gpu_device=,contexts="
            os.environ["THEANO_FLAGS"] = flags
            yield
    finally:
        os.umask(umask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _default_settings() -> str:
    """Our defaults, as the text of a Theano configuration file."""
    # The macro alone makes gcc call the vector expf of glibc. Real -ffast-math would also switch the whole process to
    # flush-to-zero. Theano adds the processor's own -march flags itself, and makes them part of its cache's keys.
    cxxflags = "-O3 -D__FAST_MATH__"
    if platform.machine() == "x86_64":
        cxxflags += " -mprefer-vector-width=512"
    sections = {
        "global": {
            "floatX": "float32",
            "base_compiledir": _compile_cache(),
            "print_active_device": "False",
        },
        # Several cold processes share one lock, and the default gives up on a slow machine.
        "compile": {"timeout": "600"},
        "gcc": {"cxxflags": cxxflags},
        "blas": {"ldflags": _blas_flags()},
        # Theano knows cuDNN up to version 7 only, and this model needs none of it.
        "dnn": {"enabled": "False"},
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value.replace('%', '%%')}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _blas_flags() -> str:
    """Link flags for the newest OpenBLAS on PyPI, whose symbols carry a prefix."""
    import scipy_openblas32

    renames = [f"-D{t}{name}_=scipy_{t}{name}_" for t in "sd" for name in _BLAS_ROUTINES]
    return " ".join([f"-L{scipy_openblas32.get_lib_dir()}", "-lscipy_openblas", *renames])


def requested_device() -> str:
    """The device in the user's flags and files, read and checked by Theano's own code."""
    from theano import configdefaults, configparser

    flags = configparser.parse_config_string(os.environ.get("THEANO_FLAGS", ""), issue_warnings=False)
    parameter = configdefaults.DeviceParam("cpu")
    parameter.fullname = "device"
    in_files = configparser.theano_raw_cfg.get("global", "device", fallback="cpu")
    return str(parameter.filter(flags.get("device", in_files)))


class _NoScipy(MetaPathFinder):
    """Says that there is no SciPy, unless it is imported already."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "scipy":
            raise ModuleNotFoundError("not needed by this model", name=fullname)


@contextmanager
def without_scipy() -> Iterator[None]:
    """Theano takes SciPy where it finds it, for operations that this model has none of, and 0.5 s to import it."""
    finder = _NoScipy()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


# -- the compile cache -------------------------------------------------------------------------------------------


def _compile_cache() -> str:
    """A private directory for compiled code, one for each pair of Theano and NumPy, which its own name leaves out."""
    from importlib.metadata import version

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardpress"
    return str(root / f"theano-{version('Theano')}-numpy-{np.__version__}")


class _CacheCheck(MetaPathFinder):
    """Finds no module, but looks at the compile cache when the first one that loads code from there is asked for."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == "theano.gof":
            _refuse_unsafe(Path(sys.modules["theano.configdefaults"].config.compiledir))


@contextmanager
def cache_checked_before_use() -> Iterator[None]:
    """Theano settles where its cache lies and then runs code from it, both while it is imported."""
    check = _CacheCheck()
    sys.meta_path.insert(0, check)
    try:
        yield
    finally:
        sys.meta_path.remove(check)


def _refuse_unsafe(directory: Path) -> None:
    """Theano unpickles and loads what lies in its cache, so nobody else may be able to put anything there.

    Nor to put another directory in its place: whoever can write to the folder around it can, unless that is sticky.
    """
    found, around = directory.stat(), directory.parent.stat()
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
    if around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX:
        raise UnsafeCompileCache(
            f"the compile cache lies in {directory.parent} of mode {stat.S_IMODE(around.st_mode):04o}, so that others "
            f"could put another in its place; expected no write permission for them. Run: chmod go-w {directory.parent}"
        )
