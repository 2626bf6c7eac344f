"""The only interface to the kernels: it starts devices, builds training steps, and translates Theano's errors.

Functions import the kernels when they need them. Theano takes a second to load, so errors in the command line are
reported without this delay.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

import shardpress_kernels
from shardpress.base.errors import (
    STORAGE,
    ConfigError,
    DeviceError,
    DeviceLost,
    NotPermitted,
    ReadFailed,
    ShardpressError,
    SystemLimit,
    WriteFailed,
    printable,
)
from shardpress.model.scaler import Scaler
from shardpress.settings.resolve import ResolvedTraining
from shardpress_kernels import compiler
from shardpress_kernels.network import Network, TargetLoss

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device
    from shardpress_kernels.upload import Pieces

log = logging.getLogger(__name__)

TILE_ROWS = shardpress_kernels.TILE_ROWS
"""Number of rows per tile. The pipeline rounds block sizes up to a multiple of it."""
MOST_RESIDENT = shardpress_kernels.MOST_RESIDENT
"""Maximum number of bytes of rows that a device keeps in its memory."""

_VARIABLES = ("THEANO_FLAGS", "THEANORC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")  # affect a run like settings
_COMPILE_CACHE = "the compile cache (base_compiledir in THEANO_FLAGS, by default ~/.cache/shardpress)"
# Theano and the compiler report a full disk in many ways, but their messages contain one of these texts.
_DISK_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_DOCTOR = "Run `shardpress doctor` to see what is missing"
_SLOWDOWN = "about 100 times as long"  # without a compiler


class RowEncoder(Protocol):
    """Encoder of cleaned rows (n_rows, n_inputs). Any number of threads can call its methods."""

    network: Network

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """Write features into `out` (n_rows, n_outputs), float32; return the positions of rows that may be bad.

        They are in ascending order. All other rows contain only finite numbers in the model's range. None means that
        this is not known of any row.
        """

    def errors(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the mean squared errors (n_rows,) of rows that are reconstructed from features."""

    def ignores_positions(self, dtype: np.dtype) -> bool:
        """Return whether the bits of a row of this dtype do not depend on its position among the rows of a call.

        Otherwise, a call should start at a multiple of `TILE_ROWS` of the rows of one shard.
        """


class DeviceAutoencoder(RowEncoder, Protocol):
    """Parameters on the CPU or a card. `shardpress_kernels.autoencoder` describes shapes, dtypes and errors."""

    def parameters(self) -> dict[str, np.ndarray]: ...
    def set_parameters(self, values: Mapping[str, np.ndarray]) -> None: ...
    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray: ...
    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray: ...
    def errors(self, rows: np.ndarray, features: np.ndarray | None = None) -> np.ndarray: ...
    def code(self, rows: np.ndarray) -> np.ndarray: ...
    def cost(self, rows: np.ndarray) -> float: ...


class DeviceStep(Protocol):
    """Training step of a `DeviceAutoencoder`. `shardpress_kernels.step` describes shapes, dtypes and errors."""

    def compile(self) -> None: ...
    def n_at_once(self, batch_size: int) -> int: ...
    def begin(
        self,
        minibatches: np.ndarray,
        noise: np.ndarray | None,
        batch_size: int,
        targets: np.ndarray | None = None,
        kept: np.ndarray | None = None,
    ) -> None: ...
    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None: ...
    def state(self) -> dict[str, np.ndarray]: ...
    def set_state(self, values: Mapping[str, np.ndarray]) -> None: ...


def autoencoder_of(scaler: Scaler, network: Network, dtype: np.dtype) -> DeviceAutoencoder:
    """Return an autoencoder on the device for rows of `dtype`. Its parameters are not set yet."""
    from shardpress_kernels.autoencoder import Autoencoder

    shift, scale = scaler.arrays(dtype)
    return Autoencoder(network, shift, scale, (scaler.minimum, scaler.maximum))


def training_step_of(
    autoencoder: DeviceAutoencoder,
    settings: ResolvedTraining,
    dtype: np.dtype,
    resident: np.ndarray | Pieces | None,
    loss: TargetLoss | None = None,
) -> DeviceStep:
    """Return a compiled training step for rows of `dtype`.

    Parameters
    ----------
    resident : ndarray of shape (n_rows, n_inputs), Pieces or None
        All rows, if the device keeps them in memory; minibatches are then row numbers. A device with its own memory
        can receive the rows in pieces.
    loss : TargetLoss, optional
        Loss of the targets, if the network has a head.
    """
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.step import TrainingStep

    ours = cast(Autoencoder, autoencoder)  # the only class that `autoencoder_of` returns
    step = TrainingStep(ours, settings.optimizer, dtype, resident, settings.corruption, loss)
    step.compile()  # compile now, so that the measured training time does not include the compilation
    return step


def n_cores() -> int:
    """Return the number of cores that this process uses for matrix products."""
    from shardpress_kernels import backend

    return backend.n_cores()


def seconds_compiling() -> float:
    """Return how long this process has waited for the compiler."""
    return compiler.compilations.seconds


def is_compiling() -> bool:
    """Return whether this process is waiting for the compiler."""
    return compiler.compilations.is_running


def n_device_calls() -> int:
    """Return the number of calls in progress on a device other than the CPU."""
    from shardpress_kernels import backend

    return backend.device_calls.n_running


@contextmanager
def theanos_errors() -> Iterator[None]:
    """Translate errors of Theano and the kernels into errors of shardpress, which say what the user can do."""
    try:
        yield
    except ShardpressError:
        raise
    except Exception as error:
        translated = _by_class(error) or _by_message(error)
        if translated is None:
            raise
        raise translated from error


def _by_class(error: Exception) -> ShardpressError | None:
    """Translate an error class of the kernels. Return None for other errors."""
    from shardpress_kernels import backend, compilecache, modulecache, theanofiles

    match error:
        case MemoryError():  # host memory only; a lack of device memory has no error class
            return SystemLimit("the host is out of memory. Lower --memory-budget or --threads.")
        case backend.DeviceUnavailable():
            return DeviceError(f"{error}. {_DOCTOR}, or run on the CPU with THEANO_FLAGS=device=cpu.")
        case compiler.CompilerFailed():
            return _compiler_failed(error)
        case compiler.CompilerMissing():
            return DeviceError(f"THEANO_FLAGS or .theanorc: {error}. {_advice()}.")
        case theanofiles.TheanoNotSetUp():
            return DeviceError(f"{error}.")
        case modulecache.CompileLockHeld():
            return DeviceError(_own_message(error))
        case compilecache.UnsafeCompileCache():
            return NotPermitted(str(error))
        case compilecache.CompileCacheUnavailable():
            return WriteFailed(f"{error}. Free some space, or choose another directory.")
    return None


def _by_message(error: Exception) -> ShardpressError | None:
    """Translate an error that has no class, by its message. Return None for a fault of the program."""
    from shardpress_kernels import backend, faults

    message = " ".join(str(error).split())
    # Check the disk first: if it is full, the compiler's output, which Theano repeats, can look like a lack of memory.
    failure = _disk_full(message) or _storage_failed(error)
    if failure is not None:
        return failure
    if faults.is_lost(error) or not backend.answers():
        return _device_lost(message)
    if faults.is_out_of_memory(error):
        return DeviceError(
            f"the device is out of memory: {message}. Lower --device-memory-budget or --batch-size, free memory on "
            "the device, or run on the CPU with THEANO_FLAGS=device=cpu."
        )
    return None


def _compiler_failed(error: compiler.CompilerFailed) -> ShardpressError:
    why = printable(_own_message(error))
    message = f"the C++ compiler failed: {why}. {_advice()}. Its complete output is in run.log."
    translated = _disk_full(why) or DeviceError(message)
    translated.details = error.output
    return translated


def _device_lost(message: str) -> DeviceLost:
    why = f"the device is lost: {message}"
    lost = DeviceLost(
        f"{why}. This process can no longer use it, and its data is lost. Run the same command again to resume; "
        "finished results are kept. If it happens again, check the device (nvidia-smi, `shardpress doctor`), or "
        "run on the CPU with THEANO_FLAGS=device=cpu."
    )
    lost.why = why
    return lost


def _storage_failed(error: BaseException) -> ReadFailed | None:
    """Return `ReadFailed` if an error, or one of its causes, is a failure of the storage. Otherwise return None.

    The causes are examined because Theano may replace the original error.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in STORAGE:
            where = f" file={printable(cause.filename)}:" if cause.filename else ""
            return ReadFailed(
                f"{_COMPILE_CACHE}:{where} {cause.strerror}. Check the storage, or choose another directory."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _own_message(error: Exception) -> str:
    """Return the message of a kernel error, without the node that Theano inserts before the message."""
    return str(error.args[-1])


def _disk_full(why: str) -> WriteFailed | None:
    if not any(sign in why for sign in _DISK_FULL):
        return None
    where = f"{_COMPILE_CACHE} or the temporary directory"
    return WriteFailed(f"{where} is full: {why}. Free some space, or choose another directory.")


def _advice() -> str:
    path = os.environ.get("PATH")
    where = f"PATH={printable(path)}" if path else "PATH, which is empty"
    return (
        f"The compiler and its linker are searched for in {where}. Install them (Debian: g++), or name another "
        "compiler with THEANO_FLAGS=cxx=NAME"
    )


@theanos_errors()
def start_device(is_required: bool = False) -> Device:
    """Load Theano and start the configured device. If it is unavailable and not required, start the CPU instead."""
    from shardpress_kernels import backend
    from shardpress_kernels.theanoflags import UnknownFlag

    for name in _VARIABLES:
        if name in os.environ:
            log.info("environment: %s=%s", name, printable(os.environ[name]))
    try:
        _check_for_compiler(backend.load().config)
        device = backend.start(is_required)
    except ValueError as error:
        if "compiledir" in str(error):  # Theano creates this directory while it reads its settings
            raise WriteFailed(f"{_COMPILE_CACHE}: {error} Alternatively, choose another directory.") from error
        # Theano's errors do not say where a setting comes from.
        where = "" if isinstance(error, UnknownFlag) else "THEANO_FLAGS or .theanorc: "
        raise ConfigError(f"{where}{error}") from error
    log.info("device: %s", device)
    return device


def _check_for_compiler(settings: Any) -> None:
    """Raise an error if no compiler is available, unless the user has set ``cxx=``.

    Theano itself would only log a warning, and then run in Python.
    """
    if settings.cxx:
        return
    if type(settings).cxx.is_default:  # otherwise the user has set cxx to an empty value
        if shutil.which("g++") is not None:
            raise SystemLimit(
                "g++ was found, but could not be run while Theano was loaded. The usual cause is a low limit on "
                "open files or processes. Raise the limits (ulimit -n 4096, ulimit -u), then run the same command "
                "again. If it fails again, run g++ -v to find the cause."
            )
        raise DeviceError(
            f"no C++ compiler: g++ was not found. Without a compiler, a run takes {_SLOWDOWN}. {_advice()}, or run "
            "without a compiler with THEANO_FLAGS=cxx= (an empty value)."
        )
    log.warning("cxx is empty in THEANO_FLAGS or .theanorc: without a C++ compiler this run takes %s", _SLOWDOWN)
