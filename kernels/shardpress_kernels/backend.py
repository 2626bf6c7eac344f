"""The only module that imports Theano. It chooses the device, and falls back to the CPU.

Theano configures itself while it is imported. It never raises for a missing GPU: it logs, stays on the CPU, and
``theano.config.device`` still names the GPU. Therefore this module imports Theano on the CPU and then activates the
requested device, which raises if it fails. A small product checks that the device computes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from shardpress_kernels.faults import explain, is_out_of_memory
from shardpress_kernels.theanofiles import check_theano
from shardpress_kernels.theanoflags import check_flags, default_settings, requested_device

log = logging.getLogger(__name__)

_MIN_FLOPS_FOR_THREADS = 2**24
"""Smallest number of floating-point operations of a product that several threads compute faster than one."""

_MAX_PREALLOCATED = 0.95
"""Largest fraction of a device's memory that Theano sets aside, see ``theano.gpuarray.init_dev``."""

_compile_lock = threading.Lock()


class DeviceUnavailable(RuntimeError):
    """The requested device cannot be used on this machine."""


class _DeviceCalls:
    """A context manager that counts the running calls of all threads."""

    def __init__(self) -> None:
        self.n_running = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.n_running += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self.n_running -= 1


device_calls = _DeviceCalls()
"""Calls of compiled functions that are running on a device. A signal or a progress report may have to wait for them."""


@dataclass(frozen=True)
class Device:
    """The device that computes products."""

    requested: str  # device in the user's flags: ``cpu``, ``cuda``, ``cudaN`` or ``openclP:D``
    used: str  # `requested`, or ``cpu``
    name: str  # manufacturer's name of the processor or card
    reason: str = ""  # why `used` differs from `requested`
    place: str = ""  # bus address of a CUDA card, as its driver reports it
    free: int = 0  # bytes of its own memory that were available to this process at its start; 0 if unknown

    def __str__(self) -> str:
        text = f"{self.used} ({self.name})"
        if self.reason:
            text += f" instead of {self.requested}: {self.reason}"
        return text


@cache
def load() -> ModuleType:
    """Import Theano on the CPU, with our defaults, which the user's settings override.

    Raises
    ------
    shardpress_kernels.compilecache.UnsafeCompileCache
        If the compile cache belongs to another user, or other users can write to it.
    shardpress_kernels.compilecache.CompileCacheUnavailable
        If neither the compile cache nor a temporary directory can be used.
    shardpress_kernels.theanofiles.TheanoNotSetUp
        If Theano is not installed, or was not installed by this version of shardpress.
    shardpress_kernels.compiler.CompilerMissing, shardpress_kernels.compiler.CompilerFailed
        If the configured compiler cannot be started, or fails; also if it does not report the processor's flags.
    ValueError
        If Theano refuses the user's flags; `UnknownFlag` if it does not know them.
    """
    check_theano()
    # Theano turns NumPy's floating-point warnings off for the whole process; `errstate` restores them.
    with default_settings(), warnings.catch_warnings(), np.errstate():
        warnings.simplefilter("ignore")  # Theano 1.0.5 uses deprecated features of later packages
        import theano
    check_flags()
    return theano


def start(require: bool = False) -> Device:
    """Activate the device that the user's Theano settings request, or fall back to the CPU.

    Raises
    ------
    DeviceUnavailable
        If the device cannot be used, and `require` or ``force_device=True`` in the user's settings is set.
    ValueError
        If Theano knows no device of this name.
    """
    device, error = _start_once()
    if error is None:
        return device
    if require or load().config.force_device:
        raise DeviceUnavailable(f"device={device.requested} cannot be used: {device.reason}") from error
    return _fall_back(device)


def shared(value: np.ndarray, name: str) -> Any:
    """Put an array on the active device as a shared variable; the CPU uses the array in place."""
    theano = load()
    if is_active():
        # theano.shared keeps integers on the host.
        return theano.gpuarray.gpuarray_shared_constructor(value, name=name, target=None)
    return theano.shared(value, name=name, borrow=True)


def matrix(dtype: np.dtype, name: str) -> Any:
    """Return a symbolic matrix without broadcastable axes."""
    return load().tensor.TensorType(dtype.name, (False, False))(name)


def compile_function(inputs: Sequence[Any], outputs: Any, **options: Any) -> Any:
    """Return a ``theano.function`` that does not check its inputs; callers pass arrays of the right type and layout.

    Only one thread at a time compiles, because Theano's compilation is not thread-safe.
    """
    with _compile_lock:
        function = load().function(inputs, outputs, **options)
    function.trust_input = True
    return function


def device_call() -> AbstractContextManager[None]:
    """Return a context for a call of a compiled function, which counts the calls that run on a device."""
    return device_calls if is_active() else nullcontext()


def answers() -> bool:
    """Return whether an array can be sent to the active device and read back.

    This distinguishes a lost device from other errors, because Theano does not report why a read failed.
    """
    if not is_active():
        return True
    gpuarray = load().gpuarray
    sent = np.arange(4, dtype=np.float32)
    try:
        return np.array_equal(gpuarray.pygpu.array(sent, context=gpuarray.get_context(None)), sent)
    except Exception as error:  # pygpu raises errors of many classes
        return is_out_of_memory(error)  # a device without free memory still works


def uses_ops() -> bool:
    """Return whether the Ops of `shardpress_kernels.ops` are used instead of Theano's own.

    They are C code for the CPU. Flags of Theano without C code turn them off, as does ``optimizer_excluding=fused``.
    """
    config = load().config
    is_excluded = "fused" in config.optimizer_excluding.split(":")
    runs_c = bool(config.cxx) and config.linker != "py" and config.mode != "FAST_COMPILE"
    return runs_c and not is_excluded and not is_active()


def n_cores() -> int:
    """Return how many threads to use: OPENBLAS_NUM_THREADS or OMP_NUM_THREADS, or the cores of this process."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0))


def use_cores_for(n_flops: int) -> None:
    """Set the number of BLAS threads for products of `n_flops` floating-point operations each: one, or all cores.

    A second core does not speed up products of 13 million operations (0.72 and 0.70 ms per step). It speeds up products
    of 50 million operations by a quarter. BLAS threads wait for each other by spinning, so steps of many small products
    become ten times slower if another process uses one of the cores. ``OPENBLAS_NUM_THREADS`` in the environment takes
    precedence.
    """
    if "OPENBLAS_NUM_THREADS" in os.environ or is_active():
        return
    n_threads = 1
    if n_flops >= _MIN_FLOPS_FOR_THREADS:
        n_threads = len(os.sched_getaffinity(0))
    _set_blas_threads(n_threads)


@lru_cache(maxsize=1)  # calls the library only if the number changes
def _set_blas_threads(n_threads: int) -> None:
    import scipy_openblas32

    library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
    library.scipy_openblas_set_num_threads(n_threads)


# -- the device --------------------------------------------------------------------------------------------------


@cache
def _start_once() -> tuple[Device, Exception | None]:
    """Start the requested device once in this process, because Theano cannot open a device twice.

    Also return the reason why the requested device cannot be used, if so.
    """
    load()  # before `requested_device`, which imports parts of Theano
    requested = requested_device()
    if requested == "cpu":
        return Device("cpu", "cpu", _processor_name()), None
    try:
        _activate(requested)
    except Exception as error:  # the GPU stack raises anything, from ImportError to pygpu's own classes
        return Device(requested, "cpu", _processor_name(), explain(error)), error
    return _describe_device(requested), None


def _describe_device(requested: str) -> Device:
    context = load().gpuarray.get_context(None)
    # pygpu pads names to the length of its buffers. OpenCL reports no address.
    name = context.devname.strip("\0 ")
    place = ""
    if context.kind == b"cuda":
        place = context.unique_id.strip("\0 ")
    return Device(requested, requested, name, place=place, free=_free_bytes(context))


def _free_bytes(context: Any) -> int:
    """Return the memory that the user's flags set aside for this process, or the free memory; 0 if unknown."""
    theano = load()
    preallocated = float(theano.config.gpuarray.preallocate)
    try:
        if preallocated > 1:
            return int(preallocated * 2**20)
        if preallocated > 0:
            return int(min(preallocated, _MAX_PREALLOCATED) * context.total_gmem)
        return int(context.free_gmem)
    except theano.gpuarray.pygpu.gpuarray.GpuArrayException:
        return 0


@cache  # logs once
def _fall_back(device: Device) -> Device:
    log.warning(
        "device=%s cannot be used; running on the CPU instead: %s. Run `shardpress doctor` to see what is missing",
        device.requested,
        device.reason,
    )
    return device


def is_active() -> bool:
    """Return whether a device is in use instead of the CPU."""
    if _start_once.cache_info().currsize == 0:
        return False
    device, _ = _start_once()
    return device.used != "cpu"


def _activate(device: str) -> None:
    """Make Theano compute all products on `device`; if that fails, raise any error and keep Theano on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import theano.gpuarray
    if theano.gpuarray.pygpu is None:
        raise ImportError(
            "pygpu is not installed. Install it with install_pygpu.sh, in scripts/ or where pip installs programs"
        )
    theano.gpuarray.use(device, force=True)
    try:
        _probe()
    except Exception:
        _deactivate()
        raise


def _deactivate() -> None:
    """Undo the changes that ``theano.gpuarray.use`` makes after it has opened a device."""
    import theano.gpuarray

    theano.compile.optdb.remove_tags("gpuarray_opt", "fast_run", "fast_compile")
    theano.compile.optdb.remove_tags("gpua_scanOp_make_inplace", "fast_run")
    theano.compile.shared_constructor(theano.gpuarray.gpuarray_shared_constructor, remove=True)


def _probe() -> None:
    """Compile and run a product; raise an error unless its value is right, and it ran on the active device."""
    theano = load()
    # To detect swapped or padded sides, the matrices are not square, and one side is not a power of two.
    values = np.arange(12, dtype=np.float32)
    left = values.reshape(3, 4)
    right = values.reshape(4, 3)
    symbol = theano.tensor.fmatrix()
    product = theano.function([symbol], theano.tensor.dot(symbol, theano.shared(right)))
    _check_place(product)
    if not np.array_equal(np.asarray(product(left)), left @ right):
        raise DeviceUnavailable("it returned a wrong product of two small matrices")


def _check_place(product: Any) -> None:
    operations = [type(node.op).__name__ for node in product.maker.fgraph.apply_nodes]
    if not any(name.startswith(("GpuDot", "GpuGemm")) for name in operations):
        raise DeviceUnavailable(
            f"Theano compiled a product to operations that do not run on the device: {sorted(operations)}"
        )


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
