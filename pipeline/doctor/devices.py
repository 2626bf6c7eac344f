"""Checks that each device computes.

A child process with a time limit takes the device as a run does, compiles something, and compares a small model with
NumPy: a driver may hang or crash the process that calls it.
"""

from __future__ import annotations

import configparser
import ctypes
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.childprocess import collect_reports, report
from pipeline.doctor.check import Check, Status
from pipeline.doctor.cuda import rungs
from pipeline.doctor.packages import complaint, missing_proc
from pipeline.errors import ConfigError
from pipeline.gpu.driver import files_of

if TYPE_CHECKING:
    import numpy as np

    from pipeline.model import Model

__all__ = ["main", "tried", "wished"]

_SECONDS = 60.0  # of the libraries, which only have to be loaded
# libgpuarray opens the bare name, which may lie in the environment's lib/ alone.
_OPENCL = ("libOpenCL.so.1", "libOpenCL.so")
_WIDTHS = (96, 32, 8)
# For float32 on any device, see docs/devices.md. A wrong library or kernel is off by far more.
_TOLERANCE = 1e-4
# Libraries that decide how products are computed and files are read.
_LIBRARIES = {
    "cuda": ("libcuda.", "libnvrtc.", "libcublas.", "libcublasLt."),
    "opencl": ("libOpenCL", "libclblast", "libpocl"),
    "gpuarray": ("libgpuarray",),
    "blas": ("libscipy_openblas", "libopenblas", "libblas", "libmkl"),
    "hdf5": ("libhdf5",),
}

Found = tuple[Check, dict[str, list[str]]]


def tried(seconds: float) -> Iterator[Found]:
    """Yield checks of each device, and of what it depends on, with the files of its libraries.

    Parameters
    ----------
    seconds : float
        Time limit of each device.
    """
    if missing_proc():  # Theano could not read our settings; `the_machine` reports it
        return
    chosen = wished()
    cpu = _try(device="cpu", chosen=chosen, seconds=seconds)
    yield from _of(cpu, "cpu", chosen)
    libraries = collect_reports("pipeline.doctor.cuda", min(seconds, _SECONDS))
    for check in rungs(libraries, chosen.startswith("cuda")):
        yield check, {}
    if cpu is None or cpu.get("code") == ConfigError.exit_code:  # the other devices would report the same
        return
    first: dict[str, Any] = {}
    if chosen != "cpu":
        first = _try(chosen, chosen, seconds) or {}
    if first:
        yield from _of(first, chosen, chosen)
    for device in _others(libraries, chosen, first.get("place")):
        yield from _of(_try(device, chosen, seconds), device, chosen)


def wished() -> str:
    """Return the device of THEANO_FLAGS or .theanorc, read without Theano."""
    in_flags = re.findall(r"(?:^|[,\s])device\s*=\s*([^,\s]+)", os.environ.get("THEANO_FLAGS", ""))
    if in_flags:
        return str(in_flags[-1])
    files = configparser.ConfigParser(strict=False, interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):
        files.read(map(os.path.expanduser, os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)))
    return files.get("global", "device", fallback="cpu")


def _try(device: str, chosen: str, seconds: float) -> dict[str, Any] | None:
    """Return what a child reports about a device; None without Theano."""
    if find_spec("theano") is None:
        return None
    flags = [os.environ.get("THEANO_FLAGS")]
    if device != chosen:
        flags.append(f"device={device}")  # later flags win
    environment = dict(os.environ)
    environment["THEANO_FLAGS"] = ",".join(filter(None, flags))
    if not environment["THEANO_FLAGS"]:
        del environment["THEANO_FLAGS"]
    return collect_reports(__name__, seconds, environment)


def _others(libraries: Mapping[str, Any], chosen: str, place: str | None) -> Iterator[str]:
    """Yield available devices in addition to that of the settings."""
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


def _of(found: dict[str, Any] | None, device: str, chosen: str) -> Iterator[Found]:
    if found is None:
        yield _without_theano(device), {}
        return
    if "blas" in found:
        yield _blas(found), {}
    if device == "cpu" and found.get("cache"):
        yield Check("cache", "pass", f"{found['cache']}: what is compiled is kept there"), {}
    yield _judged(device, found, device == chosen), found.get("libraries", {})


def _without_theano(device: str) -> Check:
    found = "there is no Theano in this Python, so nothing is computed here"
    if sys.version_info[:2] == (3, 11):
        return Check(device, "fail", found, complaint(), is_setting=True)
    return Check(device, "absent", found)  # there is no Theano for later Pythons, which can read features


def _blas(found: Mapping[str, Any]) -> Check:
    """Check what computes products on the processor."""
    speed = f"{found['flops'] / 1e9:,.0f} GFLOP/s in float32"
    if not found["blas"]:
        fix = "take blas.ldflags= out of THEANO_FLAGS and .theanorc"
        return Check("blas", "warn", f"none is linked, so NumPy's own is called: {speed}", fix)
    files = [path for path in found.get("libraries", {}).get("blas", []) if ".libs" not in path]  # which are NumPy's
    return Check("blas", "pass", f"{speed}: {', '.join(files) or found['blas']}")


def _judged(device: str, found: Mapping[str, Any], is_chosen: bool) -> Check:
    if "failed" in found:
        status: Status = "fail" if is_chosen or device == "cpu" else "warn"
        return Check(device, status, found["failed"], is_setting=found.get("code") == ConfigError.exit_code)
    words = [
        f"{found['name']}: compiled anew in {found['seconds']:.1f} s",
        f"features are NumPy's but for {found['difference']:.0e}",
    ]
    if device != "cpu":
        there = found["bytes_per_second"]["there"] / 1e9
        back = found["bytes_per_second"]["back"] / 1e9
        words.append(f"{found['flops'] / 1e9:,.0f} GFLOP/s")
        words.append(f"{there:.1f} GB/s there and {back:.1f} back")
    use = "a run takes it" if is_chosen else f"THEANO_FLAGS=device={device} takes it"
    return Check(device, "pass", "; ".join([*words, use]))


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report what the device of THEANO_FLAGS does."""
    logging.disable(logging.CRITICAL)
    from pipeline.device import theanos_errors
    from pipeline.errors import ShardpressError

    try:
        with theanos_errors():
            for found in _probe():
                report(**found)
    except ShardpressError as error:
        report(failed=str(error), code=error.exit_code)
    loaded = {name: files_of(*begins) for name, begins in _LIBRARIES.items()}
    report(libraries={name: files for name, files in loaded.items() if files}, done=True)


def _probe() -> Iterator[dict[str, Any]]:
    import numpy as np

    from pipeline.device import autoencoder_of, compile_anew, device_speeds, start_device

    device = start_device(is_required=True)
    yield {"device": device.used, "name": device.name, "place": device.place}
    seconds, cache = compile_anew()
    yield {"seconds": seconds, "cache": cache}
    model, rows = _model_and_rows()
    autoencoder = autoencoder_of(model.scaler, model.network, rows.dtype)
    autoencoder.set_parameters(model.parameters)
    difference = float(np.abs(autoencoder.encode(rows) - model.encode(rows)).max())
    yield {"difference": difference}
    if not difference <= _TOLERANCE:
        yield {"failed": f"its features differ from NumPy's by {difference:.1g}, expected {_TOLERANCE} at most"}
    yield device_speeds(device)


def _model_and_rows() -> tuple[Model, np.ndarray]:
    """Return a small model, and rows of bytes (300, 96)."""
    import numpy as np

    from kernels.network import Network
    from pipeline.model import Model
    from pipeline.scan.scaler import Scaler

    network = Network(_WIDTHS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (300, _WIDTHS[0])).astype(np.uint8)
    parameters = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in network.shapes.items()}
    return Model(Scaler(rows.min(axis=0), rows.max(axis=0)), network, parameters), rows
