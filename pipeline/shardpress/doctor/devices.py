"""Checks that each device computes correctly.

A child process opens the device as a run does, compiles a kernel, and compares a small model with NumPy. It has a time
limit, because a driver can hang or crash the process that calls it.
"""

from __future__ import annotations

import configparser
import ctypes
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shardpress.childprocess import collect_reports, report
from shardpress.doctor.check import Check, Status
from shardpress.doctor.cuda import cuda_checks
from shardpress.doctor.packages import complaint, missing_proc
from shardpress.errors import ConfigError
from shardpress.gpu.driver import files_of

if TYPE_CHECKING:
    import numpy as np

    from shardpress.model import Model

_SECONDS = 60.0  # time limit for the libraries, which only have to be loaded
# libgpuarray opens the name without a version, which may exist only in the environment's lib/.
_OPENCL = ("libOpenCL.so.1", "libOpenCL.so")
_WIDTHS = (96, 32, 8)
# Tolerance for float32 on any device: see docs/gpu.md. A wrong library or kernel causes far larger differences.
_TOLERANCE = 1e-4
_WRONG_FEATURES = "update the driver and the library that computes matrix products, or use another device"
# Libraries that decide how products are computed and files are read.
_LIBRARIES = {
    "cuda": ("libcuda.", "libnvrtc.", "libcublas.", "libcublasLt."),
    "opencl": ("libOpenCL", "libclblast", "libpocl"),
    "gpuarray": ("libgpuarray",),
    "blas": ("libscipy_openblas", "libopenblas", "libblas", "libmkl"),
    "hdf5": ("libhdf5",),
}

_CheckAndFiles = tuple[Check, dict[str, list[str]]]
"""A check, and the files of loaded libraries by their kind."""


def device_checks(seconds: float) -> Iterator[_CheckAndFiles]:
    """Yield checks of each device, and of the libraries that it needs, with the files of these libraries.

    Parameters
    ----------
    seconds : float
        Time limit for each device.
    """
    if missing_proc():  # without /proc Theano cannot read our settings; `machine_checks` reports the problem
        return
    chosen = chosen_device()
    cpu = _probe_in_child(device="cpu", chosen=chosen, seconds=seconds)
    yield from _checks_of(cpu, "cpu", chosen)
    libraries = collect_reports("shardpress.doctor.cuda", min(seconds, _SECONDS))
    for check in cuda_checks(libraries, chosen.startswith("cuda")):
        yield check, {}
    if cpu is None or cpu.get("code") == ConfigError.exit_code:  # the other devices would report the same error
        return
    yield from _checks_of_others(libraries, chosen, seconds)


def _checks_of_others(libraries: Mapping[str, Any], chosen: str, seconds: float) -> Iterator[_CheckAndFiles]:
    """Yield checks of all devices except the CPU. The chosen device comes first."""
    reports: dict[str, Any] = {}
    if chosen != "cpu":
        reports = _probe_in_child(chosen, chosen, seconds) or {}
    if reports:
        yield from _checks_of(reports, chosen, chosen)
    for device in _other_devices(libraries, chosen, reports.get("place")):
        yield from _checks_of(_probe_in_child(device, chosen, seconds), device, chosen)


def chosen_device() -> str:
    """Return the device of THEANO_FLAGS or .theanorc, read without Theano."""
    in_flags = re.findall(r"(?:^|[,\s])device\s*=\s*([^,\s]+)", os.environ.get("THEANO_FLAGS", ""))
    if in_flags:
        return str(in_flags[-1])
    paths = os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):
        parser.read(map(os.path.expanduser, paths))
    return parser.get("global", "device", fallback="cpu")


def _probe_in_child(device: str, chosen: str, seconds: float) -> dict[str, Any] | None:
    """Return the reports of a child about a device, or None if Theano is not installed."""
    if find_spec("theano") is None:
        return None
    flags = [os.environ.get("THEANO_FLAGS")]
    if device != chosen:
        flags.append(f"device={device}")  # later flags override earlier flags
    environment = dict(os.environ)
    environment["THEANO_FLAGS"] = ",".join(filter(None, flags))
    if not environment["THEANO_FLAGS"]:
        del environment["THEANO_FLAGS"]
    return collect_reports(__name__, seconds, environment)


def _other_devices(libraries: Mapping[str, Any], chosen: str, place: str | None) -> Iterator[str]:
    """Yield the available devices, except the configured one and the CPU."""
    if find_spec("pygpu") is None:
        return
    cards = [each for each in libraries if re.fullmatch(r"card\d+", each)]
    for name in cards:
        device = f"cuda{name.removeprefix('card')}"
        if chosen != device and libraries[name].get("place") != place:
            yield device
    if not chosen.startswith("opencl") and any(map(_can_be_loaded, _OPENCL)):
        yield "opencl0:0"


def _can_be_loaded(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _checks_of(reports: dict[str, Any] | None, device: str, chosen: str) -> Iterator[_CheckAndFiles]:
    if reports is None:
        yield _without_theano(device), {}
        return
    if "blas" in reports:
        yield _blas(reports), {}
    if device == "cpu" and reports.get("cache"):
        yield Check("cache", "pass", f"compiled code is kept in {reports['cache']}"), {}
    yield _device(device, reports, device == chosen), reports.get("libraries", {})


def _without_theano(device: str) -> Check:
    found = "Theano is not installed in this Python: features can be read, but no run is possible"
    return Check(device, "fail", found, complaint(), is_setting=True)


def _blas(reports: Mapping[str, Any]) -> Check:
    """Check the BLAS library of the CPU."""
    speed = f"{reports['flops'] / 1e9:,.0f} GFLOP/s in float32"
    if not reports["blas"]:
        fix = "remove blas.ldflags= from THEANO_FLAGS and .theanorc"
        found = f"Theano is not linked to a BLAS library, so the library of NumPy is used: {speed}"
        return Check("blas", "warn", found, fix)
    files = reports.get("libraries", {}).get("blas", [])
    linked = [path for path in files if ".libs" not in path]  # paths with .libs belong to NumPy's wheel
    return Check("blas", "pass", f"{speed}: {', '.join(linked) or reports['blas']}")


def _device(device: str, reports: Mapping[str, Any], is_chosen: bool) -> Check:
    if "failed" in reports:
        status: Status = "fail" if is_chosen or device == "cpu" else "warn"
        is_setting = reports.get("code") == ConfigError.exit_code
        return Check(device, status, reports["failed"], reports.get("fix", ""), is_setting)
    words = [
        f"{reports['name']}: compiles in {reports['seconds']:.1f} s",
        f"features agree with NumPy within {reports['difference']:.0e}",
    ]
    if device != "cpu":
        words += _speeds(reports)
    if is_chosen:
        words.append("runs use this device")
    else:
        words.append(f"THEANO_FLAGS=device={device} selects it")
    return Check(device, "pass", "; ".join(words))


def _speeds(reports: Mapping[str, Any]) -> list[str]:
    to_device = reports["bytes_per_second"]["there"] / 1e9
    from_device = reports["bytes_per_second"]["back"] / 1e9
    transfers = f"{to_device:.1f} GB/s to the device and {from_device:.1f} GB/s back"
    return [f"{reports['flops'] / 1e9:,.0f} GFLOP/s", transfers]


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report facts about the device of THEANO_FLAGS."""
    logging.disable(logging.CRITICAL)
    from shardpress.device import theanos_errors
    from shardpress.errors import ShardpressError

    try:
        with theanos_errors():
            for facts in _probe():
                report(**facts)
    except ShardpressError as error:
        report(failed=str(error), code=error.exit_code)
    loaded = {name: files_of(*prefixes) for name, prefixes in _LIBRARIES.items()}
    report(libraries={name: files for name, files in loaded.items() if files}, done=True)


def _probe() -> Iterator[dict[str, Any]]:
    """Compile, compare features with NumPy, and measure speeds. Yield facts after each step."""
    from shardpress.device import device_speeds, start_device, time_compilation

    device = start_device(is_required=True)
    yield {"device": device.used, "name": device.name, "place": device.place}
    seconds, cache = time_compilation()
    yield {"seconds": seconds, "cache": cache}
    difference = _difference_from_numpy()
    yield {"difference": difference}
    if not difference <= _TOLERANCE:
        failed = f"its features differ from the features of NumPy by {difference:.1g}, expected at most {_TOLERANCE}"
        yield {"failed": failed, "fix": _WRONG_FEATURES}
    yield device_speeds(device)


def _difference_from_numpy() -> float:
    import numpy as np

    from shardpress.device import autoencoder_of

    model, rows = _model_and_rows()
    autoencoder = autoencoder_of(model.scaler, model.network, rows.dtype)
    autoencoder.set_parameters(model.parameters)
    return float(np.abs(autoencoder.encode(rows) - model.encode(rows)).max())


def _model_and_rows() -> tuple[Model, np.ndarray]:
    """Return a small model, and rows (300, 96), uint8."""
    import numpy as np

    from shardpress.model import Model
    from shardpress.scan.scaler import Scaler
    from shardpress_kernels.network import Network

    network = Network(_WIDTHS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (300, _WIDTHS[0])).astype(np.uint8)
    parameters = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in network.shapes.items()}
    return Model(Scaler(rows.min(axis=0), rows.max(axis=0)), network, parameters), rows
