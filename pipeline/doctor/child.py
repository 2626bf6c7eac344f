"""In a process of its own: take a device as a run would, compile something, and hold a small model against NumPy."""

from __future__ import annotations

import ctypes
import json
import logging
from contextlib import suppress
from typing import Any

__all__ = ["main"]

_WIDTHS = (96, 32, 8)
# Of float32 on any device, see docs/devices.md; a wrong library or kernel is off by far more.
_TOLERANCE = 1e-4
# Of what is loaded, what decides how products are computed and files are read.
_LIBRARIES = (
    "libcuda.",
    "libnvrtc.",
    "libcublas.",
    "libOpenCL",
    "libclblast",
    "libpocl",
    "libgpuarray",
    "openblas",
    "libhdf5",
)


def main() -> None:
    """Write what was found, as JSON, on standard output."""
    logging.disable(logging.CRITICAL)
    from pipeline.device import theanos_errors
    from pipeline.errors import ShardpressError

    try:
        with theanos_errors():
            found = _tried()
    except ShardpressError as error:
        found = {"failed": str(error)}
    libraries = _loaded()
    print("\n" + json.dumps({**found, "libraries": libraries, "cuda": _cuda(libraries)}))


def _tried() -> dict[str, Any]:
    import numpy as np

    from kernels.network import Network
    from pipeline.device import autoencoder_of, compile_anew, start_device
    from pipeline.model import Model
    from pipeline.scan.scaler import Scaler

    device = start_device(is_required=True)
    seconds, cache = compile_anew()
    rng = np.random.default_rng(0)
    network, rows = Network(_WIDTHS), rng.integers(0, 256, (300, _WIDTHS[0])).astype(np.uint8)
    parameters = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in network.shapes.items()}
    model = Model(Scaler(rows.min(axis=0), rows.max(axis=0)), network, parameters)
    autoencoder = autoencoder_of(model.scaler, network, rows.dtype)
    autoencoder.set_parameters(parameters)
    difference = float(np.abs(autoencoder.encode(rows) - model.encode(rows)).max())
    found: dict[str, Any] = {"device": device.used, "name": device.name, "seconds": seconds, "cache": cache}
    if not difference <= _TOLERANCE:
        return {
            **found,
            "failed": f"its features differ from NumPy's by {difference:.1g}, expected {_TOLERANCE} at most",
        }
    return {**found, "difference": difference}


def _cuda(libraries: dict[str, list[str]]) -> dict[str, list[int]]:
    """Up to which version of CUDA the driver takes code, and in which one NVRTC writes it, where they are loaded."""
    found, numbers = {}, (ctypes.c_int(), ctypes.c_int())
    with suppress(LookupError, OSError, AttributeError):
        ctypes.CDLL(libraries["libcuda."][0]).cuDriverGetVersion(ctypes.byref(numbers[0]))
        found["driver"] = [numbers[0].value // 1000, numbers[0].value % 1000 // 10]
    with suppress(LookupError, OSError, AttributeError):
        ctypes.CDLL(libraries["libnvrtc."][0]).nvrtcVersion(*map(ctypes.byref, numbers))
        found["nvrtc"] = [number.value for number in numbers]
    return found


def _loaded() -> dict[str, list[str]]:
    """The files that each library of this process came from."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    named = {name: sorted(path for path in paths if name in path.rsplit("/", 1)[-1]) for name in _LIBRARIES}
    return {name: found for name, found in named.items() if found}
