"""The one door from the pipeline to the kernels: the device, what computes on it, and its troubles in our words.

Kernels are imported where they are called for: Theano takes a second to load, which a typing error in a command line
need not wait for.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import kernels
from kernels import compiler
from kernels.calls import on_device
from kernels.network import Network
from pipeline.errors import (
    STORAGE,
    ConfigError,
    DeviceError,
    DeviceLost,
    NotPermitted,
    ReadFailed,
    ShardpressError,
    SystemLimit,
    WriteFailed,
    shown,
)
from pipeline.scan.scaler import Scaler
from pipeline.settings.resolve import ResolvedTraining

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.backend import Device
    from kernels.step import TrainingStep
    from kernels.upload import Pieces

__all__ = [
    "MOST_RESIDENT",
    "TILE_ROWS",
    "autoencoder_of",
    "compile_anew",
    "device_speeds",
    "is_compiling",
    "n_cores",
    "n_device_calls",
    "seconds_compiling",
    "start_device",
    "theanos_errors",
    "training_step_of",
]

log = logging.getLogger(__name__)

TILE_ROWS = kernels.TILE_ROWS  # what the pipeline rounds its blocks up to
MOST_RESIDENT = kernels.MOST_RESIDENT  # bytes of rows that a device may keep

# What changes a run from outside and stands in no setting.
_VARIABLES = ("THEANO_FLAGS", "THEANORC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_COMPILE_CACHE = "the compile cache (base_compiledir in THEANO_FLAGS, else ~/.cache/shardpress)"
# What ours would have said in its own words, Theano and the compiler say in these.
_DISK_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_DOCTOR = "`shardpress doctor` says what is missing"
_WITHOUT = "a hundred times as long"


def autoencoder_of(scaler: Scaler, network: Network, dtype: np.dtype) -> Autoencoder:
    """An autoencoder of rows of `dtype` on the device, its parameters not yet set."""
    from kernels.autoencoder import Autoencoder

    minimum, scale = scaler.arrays(dtype)
    return Autoencoder(network, minimum, scale, scaler.maximum.astype(minimum.dtype))


def training_step_of(
    autoencoder: Autoencoder, settings: ResolvedTraining, dtype: np.dtype, resident: np.ndarray | Pieces | None
) -> TrainingStep:
    """A compiled step of its training, by the rule that the settings name.

    Given all rows, of shape (n_rows, n_inputs) and `dtype`, the device keeps them, and minibatches are their numbers.
    To one that has memory of its own they may come in pieces.
    """
    from kernels.step import TrainingStep
    from kernels.updates import Rule

    rule = Rule(settings.optimizer, settings.momentum, settings.weight_decay)
    step = TrainingStep(autoencoder, rule, dtype, resident, settings.corruption)
    step.compile()  # now, so that a training's time and rate are its own
    return step


def n_cores() -> int:
    """How many of them this process may take for its products."""
    from kernels import backend

    return backend.n_cores()


def compile_anew() -> tuple[float, str]:
    """Compile and run something that no cache holds: how many seconds that took, and where the cache is.

    Raises
    ------
    kernels.compiler.CompilerFailed
        And what else Theano raises: see `theanos_errors`.
    """
    from kernels import backend, trial

    return trial.compile_anew(), str(backend.load().config.compiledir)


def device_speeds(device: Device) -> dict[str, Any]:
    """How fast the device is that was started.

    Returns
    -------
    dict
        ``flops``, a second; of another one than the CPU ``bytes_per_second``, ``there`` and ``back``; of the CPU
        ``blas``, what Theano links its products with.
    """
    from kernels import backend, trial

    found: dict[str, Any] = {"flops": trial.flops()}
    if device.used == "cpu":
        return {**found, "blas": str(backend.load().config.blas.ldflags)}
    return {**found, "bytes_per_second": dict(zip(("there", "back"), trial.bytes_per_second(), strict=True))}


def seconds_compiling() -> float:
    """How long this process has waited for the compiler so far."""
    return compiler.seconds_spent()


def is_compiling() -> bool:
    """Whether this process waits for the compiler now."""
    return compiler.is_at_work()


def n_device_calls() -> int:
    """How many calls a device other than the CPU is at work on."""
    return on_device.n


@contextmanager
def theanos_errors() -> Iterator[None]:
    """Say of what Theano raises what has run out or failed, and what to do about it."""
    try:
        yield
    except ShardpressError:
        raise
    except Exception as error:
        found = _in_our_words(error)
        if found is None:
            raise
        raise found from error


def _if_storage_failed(error: BaseException) -> ShardpressError | None:
    """Return an error of ours for a failure of the storage, in whose place Theano may have raised another error."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.errno in STORAGE:
            where = f" file={shown(each.filename)}:" if each.filename else ""
            return ReadFailed(f"{_COMPILE_CACHE}:{where} {each.strerror}. Check the storage, or choose another place.")
        each = each.__cause__ or each.__context__
    return None


def _in_our_words(error: Exception) -> ShardpressError | None:
    """Ours for one of the kernels' errors, or for one that Theano has no class for; None for a fault of the program."""
    from kernels import backend, compilecache, compilelock, faults

    match error:
        case MemoryError():  # of the host; a device's is known by its words only
            return SystemLimit("the host's memory has run out. Lower --memory-budget or --threads.")
        case backend.DeviceUnavailable():
            return DeviceError(f"{error}. {_DOCTOR}; mend it, or run on the CPU with THEANO_FLAGS=device=cpu.")
        case compiler.CompilerFailed():
            why = shown(_own_words(error))
            said = f"the C++ compiler has failed: {why}. {_advice()}. All that it said stands in run.log."
            found = _if_full(why) or DeviceError(said)
            found.details = error.output  # pages, perhaps, and this is one line
            return found
        case compiler.CompilerMissing():
            return DeviceError(f"THEANO_FLAGS or .theanorc: {error}. {_advice()}.")
        case compilelock.CompileLockHeld():
            return DeviceError(_own_words(error))
        case compilecache.UnsafeCompileCache():
            return NotPermitted(str(error))
        case compilecache.CompileCacheUnavailable():
            return WriteFailed(f"{error}. Free some space, or choose another place.")
    words = " ".join(str(error).split())
    # The disk first: Theano repeats what the compiler said, and there a full disk can read like a full memory.
    if failure := _if_full(words) or _if_storage_failed(error):
        return failure
    if faults.is_lost(error) or not backend.answers():
        why = f"the device is lost: {words}"
        lost = DeviceLost(
            f"{why}. This process can use it no more, and what it held is gone. Type the same command again: it goes "
            "on from what was finished. Should it happen again, look at the device (nvidia-smi, `shardpress doctor`), "
            "or run on the CPU with THEANO_FLAGS=device=cpu."
        )
        lost.why = why
        return lost
    if faults.is_out_of_memory(error):
        return DeviceError(
            f"the device's memory has run out: {words}. Lower --device-memory-budget or --batch-size, free some of the "
            "device's memory, or run on the CPU with THEANO_FLAGS=device=cpu."
        )
    return None


def _own_words(error: Exception) -> str:
    """What an error of `kernels` says: Theano puts the node that it was compiling before it."""
    return str(error.args[-1])


def _if_full(why: str) -> WriteFailed | None:
    if not any(sign in why for sign in _DISK_FULL):
        return None
    where = f"{_COMPILE_CACHE} or the temporary directory"
    return WriteFailed(f"{where} is full: {why}. Free some space, or choose another place.")


def _advice() -> str:
    path = os.environ.get("PATH")
    where = f"PATH={shown(path)}" if path else "PATH, which is empty"
    return (
        f"It and its linker are looked for in {where}. Install them (Debian: g++), or name another compiler with "
        "THEANO_FLAGS=cxx=NAME"
    )


@theanos_errors()
def start_device(is_required: bool = False) -> Device:
    """Load Theano and activate the device that its settings ask for, or else, unless it is required, the CPU.

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
    from kernels.flags import UnknownFlag

    for name in _VARIABLES:
        if name in os.environ:
            log.info("environment: %s=%s", name, shown(os.environ[name]))
    try:
        _check_for_compiler(backend.load().config)
        device = backend.start(is_required)
    except ValueError as error:
        if "compiledir" in str(error):  # Theano tries to make it while it reads its settings
            raise WriteFailed(f"{_COMPILE_CACHE}: {error} Or choose another place.") from error
        # Ours names the place itself, Theano does not.
        where = "" if isinstance(error, UnknownFlag) else "THEANO_FLAGS or .theanorc: "
        raise ConfigError(f"{where}{error}") from error
    log.info("device: %s", device)
    return device


def _check_for_compiler(settings: Any) -> None:
    """Without one Theano computes in Python, and says so in a warning only."""
    if settings.cxx:
        return
    if type(settings).cxx.is_default:  # else the user has chosen to go without
        if shutil.which("g++") is not None:
            raise SystemLimit(
                "g++ was found, but could not be run while Theano was loaded: too few files or processes are allowed, "
                "as a rule. Raise the limits (ulimit -n 4096, ulimit -u), then type the same command again; if it is "
                "the same then, run g++ -v to see what is wrong with it."
            )
        raise DeviceError(
            f"no C++ compiler: g++ was not found, and without one a run takes {_WITHOUT}. {_advice()}; with "
            "THEANO_FLAGS=cxx= it goes without."
        )
    log.warning("cxx is empty in THEANO_FLAGS or .theanorc: without a C++ compiler this run takes about %s", _WITHOUT)
