"""The only door to Theano: its flags, its compile cache, the choice of the device and the fall back to the CPU.

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
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["Device", "DeviceUnavailable", "UnsafeCompileCache", "load", "shared", "start", "use_cores_for"]

log = logging.getLogger(__name__)

# NumPy 1.24 removed these aliases of Python's own types. Without np.complex nothing fails, but Theano no longer
# recognises constants and silently loses optimisations.
_REMOVED_NUMPY_NAMES = ("bool", "int", "float", "complex", "object", "str")

_FLOPS_WORTH_A_THREAD = 2**24

# Every BLAS routine that Theano's real-valued operations call.
_BLAS_ROUTINES = ("gemm", "gemv", "ger", "dot", "axpy", "scal")


class DeviceUnavailable(RuntimeError):
    """The device that was asked for cannot compute here."""


class UnsafeCompileCache(RuntimeError):
    """The compile cache could be written by somebody else, and Theano runs whatever it finds there."""


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
    """

    requested: str
    used: str
    name: str
    reason: str = ""

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
    UnsafeCompileCache
        When the compile cache belongs to somebody else or others may write to it.
    ValueError
        When the user's flags are refused by Theano.
    """
    for name in _REMOVED_NUMPY_NAMES:
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))
    with _settings_below_the_users(), _cache_checked_before_use(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Theano 1.0.5 is older than the things it is warned about
        for about_a_slip in ("Theano does not recognise this flag", "Config key '.*' has no value"):
            warnings.filterwarnings("default", message=about_a_slip)
        import theano
    return theano


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
    if _active():
        # theano.shared would leave integers on the host.
        return theano.gpuarray.gpuarray_shared_constructor(value, name=name, target=None)
    return theano.shared(value, name=name, borrow=True)


def use_cores_for(n_flops: int) -> None:
    """Let products of `n_flops` floating-point operations each run on one core, or on all.

    On two cores a product of 13 million gains nothing from the second one (0.72 and 0.70 ms a step), one of 50 million
    a quarter. But BLAS threads wait for each other by spinning, and where another process takes a core's time a step of
    many small products becomes ten times slower. ``OPENBLAS_NUM_THREADS`` in the environment wins.
    """
    if "OPENBLAS_NUM_THREADS" not in os.environ and not _active():
        _set_blas_threads(1 if n_flops < _FLOPS_WORTH_A_THREAD else len(os.sched_getaffinity(0)))


@lru_cache(maxsize=1)  # calls the library only when the number changes
def _set_blas_threads(n_threads: int) -> None:
    import scipy_openblas32

    library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
    library.scipy_openblas_set_num_threads(n_threads)


# -- settings ----------------------------------------------------------------------------------------------------


@contextmanager
def _settings_below_the_users() -> Iterator[None]:
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


def _requested_device() -> str:
    """The device in the user's flags and files, read and checked by Theano's own code."""
    from theano import configdefaults, configparser

    flags = configparser.parse_config_string(os.environ.get("THEANO_FLAGS", ""), issue_warnings=False)
    parameter = configdefaults.DeviceParam("cpu")
    parameter.fullname = "device"
    in_files = configparser.theano_raw_cfg.get("global", "device", fallback="cpu")
    return str(parameter.filter(flags.get("device", in_files)))


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
def _cache_checked_before_use() -> Iterator[None]:
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


# -- the device --------------------------------------------------------------------------------------------------


@cache
def _started() -> tuple[Device, Exception | None]:
    """The device, and what kept it from being the requested one. Once a process: Theano opens no device twice."""
    theano = load()
    requested = _requested_device()
    if requested == "cpu":
        return Device("cpu", "cpu", _processor_name()), None
    try:
        _activate(requested)
    except Exception as error:  # the GPU stack raises anything, from ImportError to pygpu's own classes
        return Device(requested, "cpu", _processor_name(), _explain(error)), error
    context = theano.gpuarray.get_context(None)
    return Device(requested, requested, context.devname.strip("\0 ")), None


@cache
def _fall_back(device: Device) -> Device:
    """Say once that the CPU stands in."""
    log.warning("device=%s cannot be used, running on the CPU instead: %s", device.requested, device.reason)
    return device


def _active() -> bool:
    """Whether a device other than the CPU is in use."""
    return _started.cache_info().currsize > 0 and _started()[0].used != "cpu"


def _activate(device: str) -> None:
    """Make `device` the place of all products, or raise and leave Theano on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import theano.gpuarray
    if theano.gpuarray.pygpu is None:
        raise ImportError("pygpu is not installed; scripts/install_pygpu.sh puts it into the virtual environment")
    _patch_opencl_reduction()
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
    product = theano.function([symbol], theano.tensor.dot(symbol, theano.shared(right)))
    operations = [type(node.op).__name__ for node in product.maker.fgraph.apply_nodes]
    if not any(name.startswith(("GpuDot", "GpuGemm")) for name in operations):
        raise DeviceUnavailable(f"a product compiles to {sorted(operations)}, none of them on the device")
    if not np.array_equal(np.asarray(product(left)), left @ right):
        raise DeviceUnavailable("a product of two small matrices comes out wrong")


def _explain(error: BaseException) -> str:
    """The GPU stack's words on one line, with what usually helps."""
    raw = error.args[0] if error.args else ""  # pygpu puts bytes there
    words = " ".join((raw.decode(errors="replace") if isinstance(raw, bytes) else str(error)).split())
    words = words or type(error).__name__
    hints = {
        "libcuda": "no NVIDIA driver was found (is nvidia-smi there?)",
        "libnvrtc": "the CUDA compiler library is missing (see 'CUDA' in the README)",
        "libcublas": "cuBLAS is missing (see 'CUDA' in the README)",
        "Missing Blas": "no BLAS for this device (OpenCL needs libclblast.so, CUDA libcublas.so)",
        "INVALID_OPTION": "libgpuarray 0.7.6 cannot name this card's architecture (see 'CUDA' in the README)",
    }
    for sign, hint in hints.items():
        if sign in words:
            return f"{hint}; {words}"
    return words


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# -- a repair ----------------------------------------------------------------------------------------------------


def _patch_opencl_reduction() -> None:
    """Give the generated code of every OpenCL reduction room for all its arguments.

    ``GpuCAReduceCPY.c_code`` declares ``void *args[4 + 2 * nd]`` and writes ``5 + 2 * nd`` entries: the count, the
    output with its offset, the input with its offset, and an extent and a stride for each of `nd` dimensions. The last
    one lands beside the array, on the stack.
    """
    from theano.gpuarray.elemwise import GpuCAReduceCPY

    original_code, original_version = GpuCAReduceCPY.c_code, GpuCAReduceCPY.c_code_cache_version_apply

    @wraps(original_code)
    def c_code(self: Any, node: Any, name: str, inp: Any, out: Any, sub: Any) -> str:
        n_dims = node.inputs[0].ndim
        code: str = original_code(self, node, name, inp, out, sub)
        return code.replace(f"void *args[{4 + 2 * n_dims}];", f"void *args[{5 + 2 * n_dims}];")

    @wraps(original_version)
    def c_code_cache_version_apply(self: Any, node: Any) -> tuple[Any, ...]:
        return (*original_version(self, node), "room for every argument")

    GpuCAReduceCPY.c_code = c_code
    GpuCAReduceCPY.c_code_cache_version_apply = c_code_cache_version_apply
