"""The device for a run, and in our words what Theano and the compiler have to say."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DeviceError, NotPermitted, ShardpressError, SystemLimit, WriteFailed, shown
from pipeline.settings.config import Config

if TYPE_CHECKING:
    from kernels.backend import Device
    from kernels.compiler import CompilerFailed

__all__ = ["start_device", "theanos_errors"]

log = logging.getLogger(__name__)

# What changes a run from outside and stands in no setting.
_VARIABLES = ("THEANO_FLAGS", "THEANORC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_COMPILE_CACHE = "the compile cache (base_compiledir in THEANO_FLAGS, else ~/.cache/shardpress)"
# What ours would have said in its own words, Theano and the compiler say in these.
_DISK_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_WITHOUT = "a hundred times as long"


@contextmanager
def theanos_errors() -> Iterator[None]:
    """Say of what Theano raises, who has no classes for it, what has run out and what to do about it."""
    from kernels import backend, compilecache, compilelock, compiler

    try:
        yield
    except ShardpressError:
        raise
    except MemoryError as error:
        raise SystemLimit("the host's memory has run out. Lower --memory-budget or --threads.") from error
    except compiler.CompilerFailed as error:
        raise _of_the_compiler(error) from error
    except compiler.CompilerMissing as error:
        raise DeviceError(f"THEANO_FLAGS or .theanorc: {error}. {_advice()}.") from error
    except compilelock.CompileLockHeld as error:
        raise DeviceError(_own_words(error)) from error
    except compilecache.CompileCacheUnavailable as error:
        raise WriteFailed(f"{error}. Free some space, or choose another place.") from error
    except Exception as error:
        words = " ".join(str(error).split())
        if any(sign in words for sign in _DISK_FULL):
            raise _full(words) from error
        if not backend.is_out_of_memory(error):
            raise
        raise DeviceError(
            f"the device's memory has run out: {words}. Lower --device-memory-budget or --batch-size, free some of the "
            "device's memory, or run on the CPU with THEANO_FLAGS=device=cpu."
        ) from error


def _own_words(error: Exception) -> str:
    """What an error of `kernels` says: Theano puts the node that it was compiling before it."""
    return str(error.args[-1])


def _full(why: str) -> WriteFailed:
    return WriteFailed(
        f"{_COMPILE_CACHE} or the temporary directory is full: {why}. Free some space, or choose another place."
    )


def _of_the_compiler(error: CompilerFailed) -> ShardpressError:
    """One line of what can be pages; they stand in run.log."""
    why = shown(_own_words(error))
    if any(sign in why for sign in _DISK_FULL):
        found: ShardpressError = _full(why)
    else:
        found = DeviceError(f"the C++ compiler has failed: {why}. {_advice()}. All that it said stands in run.log.")
    found.details = error.output
    return found


def _advice() -> str:
    path = os.environ.get("PATH")
    where = f"PATH={shown(path)}" if path else "PATH, which is empty"
    return (
        f"It and its linker are looked for in {where}. Install them (Debian: g++), or name another compiler with "
        "THEANO_FLAGS=cxx=NAME"
    )


@theanos_errors()
def start_device(config: Config) -> Device:
    """Load Theano and activate the device that its settings ask for.

    Raises
    ------
    DeviceError
        When there is no compiler, or the device is required and cannot be used.
    ConfigError
        When Theano's settings cannot be understood.
    NotPermitted
        When others may write to the compile cache.
    WriteFailed
        When there is no room for compiled code.
    """
    from kernels import backend
    from kernels.compilecache import UnsafeCompileCache
    from kernels.flags import UnknownFlag

    for name in _VARIABLES:
        if name in os.environ:
            log.info("environment: %s=%s", name, shown(os.environ[name]))
    try:
        _check_for_compiler(backend.load().config)
        device = backend.start(config.require_device)
    except backend.DeviceUnavailable as error:
        raise DeviceError(f"{error}. Mend it, or run on the CPU with THEANO_FLAGS=device=cpu.") from error
    except UnsafeCompileCache as error:
        raise NotPermitted(str(error)) from error
    except ValueError as error:
        if "compiledir" in str(error):
            raise WriteFailed(f"{_COMPILE_CACHE}: {error} Or choose another place.") from error
        where = "" if isinstance(error, UnknownFlag) else "THEANO_FLAGS or .theanorc: "
        raise ConfigError(f"{where}{error}") from error
    log.info("device: %s", device)
    return device


def _check_for_compiler(settings: Any) -> None:
    """Without one Theano computes in Python, and says so in a warning only."""
    if settings.cxx:
        return
    if type(settings).cxx.is_default:
        raise DeviceError(
            f"no C++ compiler: g++ was not found, and without one a run takes {_WITHOUT}. {_advice()}; with "
            "THEANO_FLAGS=cxx= it goes without."
        )
    log.warning("cxx is empty in THEANO_FLAGS or .theanorc: without a C++ compiler this run takes about %s", _WITHOUT)
