"""In a process of its own: take a device as a run would, compile something, and hold a small model against NumPy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from pipeline.doctor.ask import tell
from pipeline.doctor.libraries import files_of

__all__ = ["main"]

_WIDTHS = (96, 32, 8)
# Of float32 on any device, see docs/devices.md; a wrong library or kernel is off by far more.
_TOLERANCE = 1e-4
# Of what is loaded, what decides how products are computed and files are read.
_LIBRARIES = {
    "cuda": ("libcuda.", "libnvrtc.", "libcublas.", "libcublasLt."),
    "opencl": ("libOpenCL", "libclblast", "libpocl"),
    "gpuarray": ("libgpuarray",),
    "blas": ("libscipy_openblas", "libopenblas", "libblas", "libmkl"),
    "hdf5": ("libhdf5",),
}


def main() -> None:
    """Write what was found, line by line, as JSON."""
    logging.disable(logging.CRITICAL)
    from pipeline.device import theanos_errors
    from pipeline.errors import ShardpressError

    try:
        with theanos_errors():
            for found in _tried():
                tell(**found)
    except ShardpressError as error:
        tell(failed=str(error), code=error.exit_code)
    loaded = {name: files_of(*begins) for name, begins in _LIBRARIES.items()}
    tell(libraries={name: files for name, files in loaded.items() if files}, done=True)


def _tried() -> Iterator[dict[str, Any]]:
    import numpy as np

    from kernels.network import Network
    from pipeline.device import autoencoder_of, compile_anew, device_speeds, start_device
    from pipeline.model import Model
    from pipeline.scan.scaler import Scaler

    device = start_device(is_required=True)
    yield {"device": device.used, "name": device.name, "place": device.place}
    seconds, cache = compile_anew()
    yield {"seconds": seconds, "cache": cache}
    rng = np.random.default_rng(0)
    network, rows = Network(_WIDTHS), rng.integers(0, 256, (300, _WIDTHS[0])).astype(np.uint8)
    parameters = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in network.shapes.items()}
    model = Model(Scaler(rows.min(axis=0), rows.max(axis=0)), network, parameters)
    autoencoder = autoencoder_of(model.scaler, network, rows.dtype)
    autoencoder.set_parameters(parameters)
    difference = float(np.abs(autoencoder.encode(rows) - model.encode(rows)).max())
    yield {"difference": difference}
    if not difference <= _TOLERANCE:
        yield {"failed": f"its features differ from NumPy's by {difference:.1g}, expected {_TOLERANCE} at most"}
    yield device_speeds(device)
