"""The only door to Theano: the choice of the device and the fall back to the CPU.

Theano configures itself while it is imported, and it never raises for a missing GPU: it logs, stays on the CPU, and
``theano.config.device`` still names the GPU. So this module imports Theano on the CPU, activates the device the user
asked for afterwards, where a failure is an exception, and proves with a small product that it really computes.
"""

from __future__ import annotations

import builtins
import ctypes
import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kernels.calls import on_device
from kernels.compilecache import SettledCache
from kernels.compiler import check_processor_flags
from kernels.faults import explain, is_out_of_memory
from kernels.flags import NoScipy, below_the_users, check_flags, requested_device
from kernels.repairs import repair_generated_code

__all__ = [
    "Device",
    "DeviceUnavailable",
    "answers",
    "compile_function",
    "device_call",
    "is_active",
    "load",
    "matrix",
    "n_cores",
    "shared",
    "start",
    "use_cores_for",
    "uses_ops",
]

log = logging.getLogger(__name__)

# NumPy 1.24 removed these aliases of Python's own types. Without np.complex nothing fails, but Theano no longer
# recognises constants and silently loses optimisations.
_REMOVED_NUMPY_NAMES = ("bool", "int", "float", "complex", "object", "str")

_FLOPS_WORTH_A_THREAD = 2**24

_compiling = threading.Lock()


class DeviceUnavailable(RuntimeError):
    """The device that was asked for cannot compute here."""


@dataclass(frozen=True)
class Device:
    """Where the products run.

    Attributes
    ----------
    requested : str
        What the user's flags ask for: ``cpu``, ``cuda``, ``cudaN`` or ``openclP:D``.
    used : str
        What computes: `requested`, or ``cpu``.
    name : str
        The maker's name of the processor or card.
    reason : str
        Why `used` is not `requested`; empty when it is.
    place : str
        Where a CUDA card is, as its driver says; else empty.
    free : int
        Bytes of a device's own memory that this process could have when it was started; 0 where it does not tell.
    """

    requested: str
    used: str
    name: str
    reason: str = ""
    place: str = ""
    free: int = 0

    def __str__(self) -> str:
        text = f"{self.used} ({self.name})"
        return f"{text} instead of {self.requested}: {self.reason}" if self.reason else text


@cache
def load() -> ModuleType:
    """Import Theano on the CPU, with our defaults below the user's own settings.

    Returns
    -------
    module
        ``theano``, ready to build graphs.

    Raises
    ------
    kernels.compilecache.UnsafeCompileCache
        When the compile cache belongs to somebody else or others may write to it.
    kernels.compilecache.CompileCacheUnavailable
        When there is no room for one, nor for a temporary one.
    kernels.compiler.CompilerMissing, kernels.compiler.CompilerFailed
        When the compiler that is set cannot be started, or fails, also at reporting the flags of this processor.
    ValueError
        When the user's flags are refused by Theano, or `UnknownFlag` when Theano does not know them.
    """
    for name in _REMOVED_NUMPY_NAMES:
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))
    # Theano also turns NumPy's floating-point warnings off for the whole process: they are put back.
    with below_the_users(), _asked_first(SettledCache(), NoScipy()), warnings.catch_warnings(), np.errstate():
        warnings.simplefilter("ignore")  # Theano 1.0.5 is older than the things it is warned about
        import theano
    check_flags()
    check_processor_flags(theano.gof.cmodule, theano.config)
    return theano


@contextmanager
def _asked_first(*finders: MetaPathFinder) -> Iterator[None]:
    """Python asks these for each module, before all others."""
    sys.meta_path[:0] = finders
    try:
        yield
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)


def start(require: bool = False) -> Device:
    """Activate the device that the user's Theano settings ask for.

    Parameters
    ----------
    require : bool
        Raise instead of falling back to the CPU. ``force_device=True`` in the user's settings means the same.

    Returns
    -------
    Device
        Where products run from now on in this process.

    Raises
    ------
    DeviceUnavailable
        When the device cannot be used and `require` or ``force_device`` is set.
    ValueError
        When the settings name no device that Theano knows.
    """
    device, error = _started()
    if error is None:
        return device
    if require or load().config.force_device:
        raise DeviceUnavailable(f"device={device.requested} cannot be used: {device.reason}") from error
    return _fall_back(device)


def shared(value: np.ndarray, name: str) -> Any:
    """Put an array on the active device, whatever its dtype.

    Parameters
    ----------
    value : ndarray of any shape and real dtype
        On the CPU it is used in place, so the caller gives it away.
    name : str
        How graphs and profiles call it.

    Returns
    -------
    theano shared variable
    """
    theano = load()
    if is_active():
        # theano.shared would leave integers on the host.
        return theano.gpuarray.gpuarray_shared_constructor(value, name=name, target=None)
    return theano.shared(value, name=name, borrow=True)


def matrix(dtype: np.dtype, name: str) -> Any:
    """A symbolic matrix."""
    return load().tensor.TensorType(dtype.name, (False, False))(name)


def compile_function(inputs: Sequence[Any], outputs: Any, **options: Any) -> Any:
    """``theano.function`` of inputs that it need not look at: of the right type, in memory that is as it wants it.

    One thread at a time compiles, whichever model it is for: Theano can do no more, and its lock on the compile cache
    counts for the whole process.
    """
    with _compiling:
        function = load().function(inputs, outputs, **options)
    function.trust_input = True
    return function


def device_call() -> AbstractContextManager[None]:
    """To be held around each call of what `compiled` gave: on a device, others can see that it is under way."""
    return on_device if is_active() else nullcontext()


def answers() -> bool:
    """Whether the device in use gives back what it is sent: of a failed read Theano keeps the driver's words back."""
    if not is_active():
        return True
    gpuarray = load().gpuarray
    sent = np.arange(4, dtype=np.float32)
    try:
        return np.array_equal(gpuarray.pygpu.array(sent, context=gpuarray.get_context(None)), sent)
    except Exception as error:  # of whatever class; a full device is there
        return is_out_of_memory(error)


def uses_ops() -> bool:
    """Whether the Ops of `kernels.ops` do the work, and not Theano's own.

    They do on the CPU, where there is a compiler. ``optimizer_excluding=fused`` in the user's Theano flags says no.
    """
    config = load().config
    return not is_active() and bool(config.cxx) and "fused" not in config.optimizer_excluding.split(":")


def n_cores() -> int:
    """How many threads are worth starting: OPENBLAS_NUM_THREADS or OMP_NUM_THREADS, else the cores we may use."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0))


def use_cores_for(n_flops: int) -> None:
    """Let products of `n_flops` floating-point operations each run on one core, or on all.

    On two cores a product of 13 million gains nothing from the second one (0.72 and 0.70 ms a step), one of 50 million
    a quarter. But BLAS threads wait for each other by spinning, and where another process takes a core's time a step of
    many small products becomes ten times slower. ``OPENBLAS_NUM_THREADS`` in the environment wins.
    """
    if "OPENBLAS_NUM_THREADS" not in os.environ and not is_active():
        _set_blas_threads(1 if n_flops < _FLOPS_WORTH_A_THREAD else len(os.sched_getaffinity(0)))


@lru_cache(maxsize=1)  # calls the library only when the number changes
def _set_blas_threads(n_threads: int) -> None:
    import scipy_openblas32

    library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
    library.scipy_openblas_set_num_threads(n_threads)


# -- the device --------------------------------------------------------------------------------------------------


@cache
def _started() -> tuple[Device, Exception | None]:
    """The device, and what kept it from being the requested one. Once a process: Theano opens no device twice."""
    theano = load()
    requested = requested_device()
    if requested == "cpu":
        return Device("cpu", "cpu", _processor_name()), None
    try:
        _activate(requested)
    except Exception as error:  # the GPU stack raises anything, from ImportError to pygpu's own classes
        return Device(requested, "cpu", _processor_name(), explain(error)), error
    context = theano.gpuarray.get_context(None)  # whose name comes padded from pygpu's buffer
    place = context.unique_id.strip("\0 ") if context.kind == b"cuda" else ""  # OpenCL tells none
    return Device(requested, requested, context.devname.strip("\0 "), place=place, free=_free_bytes(context)), None


def _free_bytes(context: Any) -> int:
    """What is set aside for this process, if the user's flags have asked for that; else what is free; 0 if unknown."""
    theano = load()
    preallocated = float(theano.config.gpuarray.preallocate)
    try:
        if preallocated > 1:
            return int(preallocated * 2**20)
        if preallocated > 0:  # as `theano.gpuarray.init_dev` reads it
            return int(min(preallocated, 0.95) * context.total_gmem)
        return int(context.free_gmem)
    except theano.gpuarray.pygpu.gpuarray.GpuArrayException:
        return 0


@cache
def _fall_back(device: Device) -> Device:
    """Say once that the CPU stands in."""
    log.warning(
        "device=%s cannot be used, running on the CPU instead: %s; `shardpress doctor` says what is missing",
        *(device.requested, device.reason),
    )
    return device


def is_active() -> bool:
    """Whether a device other than the CPU is in use."""
    return _started.cache_info().currsize > 0 and _started()[0].used != "cpu"


def _activate(device: str) -> None:
    """Make `device` the place of all products, or raise and leave Theano on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import theano.gpuarray
    if theano.gpuarray.pygpu is None:
        raise ImportError("pygpu is not installed; install_pygpu.sh (in scripts/, or where pip puts programs) does it")
    repair_generated_code()
    theano.gpuarray.use(device, force=True)
    try:
        _probe()
    except Exception:
        _deactivate()
        raise


def _deactivate() -> None:
    """Undo what ``theano.gpuarray.use`` does once a device is open."""
    import theano.gpuarray

    theano.compile.optdb.remove_tags("gpuarray_opt", "fast_run", "fast_compile")
    theano.compile.optdb.remove_tags("gpua_scanOp_make_inplace", "fast_run")
    theano.compile.shared_constructor(theano.gpuarray.gpuarray_shared_constructor, remove=True)


def _probe() -> None:
    """Compile and run a product on the active device: right value, and really there."""
    theano = load()
    left, right = (np.arange(12, dtype=np.float32).reshape(shape) for shape in ((3, 4), (4, 3)))
    symbol = theano.tensor.fmatrix()
    # Of a size that is no power of two and not square, so that a swapped or a padded one shows.
    product = theano.function([symbol], theano.tensor.dot(symbol, theano.shared(right)))
    operations = [type(node.op).__name__ for node in product.maker.fgraph.apply_nodes]
    if not any(name.startswith(("GpuDot", "GpuGemm")) for name in operations):
        raise DeviceUnavailable(f"a product compiles to {sorted(operations)}, none of them on the device")
    if not np.array_equal(np.asarray(product(left)), left @ right):
        raise DeviceUnavailable("a product of two small matrices comes out wrong")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
