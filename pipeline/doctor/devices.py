"""Whether each device computes, tried in a child with a time limit: a driver may hang or crash whoever asks it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.doctor.check import Check

__all__ = ["tried"]

_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from pipeline.doctor.child import main; main()"
# What each device needs first. libgpuarray opens the bare names, which may lie in the environment's lib/ alone.
_DRIVERS = {"cuda": ("libcuda.so.1", "libcuda.so"), "opencl0:0": ("libOpenCL.so.1", "libOpenCL.so")}
_PYGPU = "install_pygpu.sh (in scripts/, or beside shardpress) installs it, without root: docs/devices.md"


def tried(seconds: float) -> Iterator[tuple[Check, dict[str, list[str]]]]:
    """What became of each device within so many seconds, that of the settings first; and its libraries' files."""
    if find_spec("theano") is None:
        yield Check("device", "absent", "there is no Theano in this Python, so nothing is computed here"), {}
        return
    found = _asked(None, seconds)
    chosen = found.get("device", "")
    yield _judged(chosen or "device", found, is_chosen=True), found.get("libraries", {})
    yield from ((check, {}) for check in _of_cuda(found.get("cuda", {})))
    if cache := found.get("cache"):
        yield Check("cache", "ok", f"{cache}: what is compiled is kept there"), {}
    for device in ("cpu", *_DRIVERS):
        if not chosen.startswith(device.partition("0")[0]):
            yield _other(device, seconds)


def _other(device: str, seconds: float) -> tuple[Check, dict[str, list[str]]]:
    drivers = _DRIVERS.get(device, ())
    if drivers and find_spec("pygpu") is None:
        return Check(device, "absent", "pygpu is not installed", _PYGPU), {}
    if drivers and not any(map(_can_be_loaded, drivers)):
        return Check(device, "absent", f"{drivers[0]} is not there, so no driver either"), {}
    found = _asked(device, seconds)
    return _judged(device, found, is_chosen=False), found.get("libraries", {})


def _can_be_loaded(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _of_cuda(versions: dict[str, list[int]]) -> Iterator[Check]:
    """Whether the driver takes the code that NVRTC writes: PTX of a later version of CUDA than its own it refuses."""
    if "driver" not in versions or "nvrtc" not in versions:
        return
    driver, nvrtc = (".".join(map(str, versions[name])) for name in ("driver", "nvrtc"))
    found = f"the driver takes code of CUDA {driver}, NVRTC writes that of {nvrtc}"
    if versions["nvrtc"] > versions["driver"]:
        yield Check("nvrtc", "fail", found, f"a newer driver, or pip install 'nvidia-cuda-nvrtc-cu12<={driver}.999'")
    else:
        yield Check("nvrtc", "ok", found)


def _judged(device: str, found: dict[str, Any], is_chosen: bool) -> Check:
    if "failed" in found:
        return Check(device, "fail" if is_chosen else "warn", found["failed"])
    proof = f"compiled anew in {found['seconds']:.1f} s; features are NumPy's but for {found['difference']:.0e}"
    use = "a run takes it" if is_chosen else f"THEANO_FLAGS=device={device} takes it"
    return Check(device, "ok", f"{found['name']}: {proof}; {use}")


def _asked(device: str | None, seconds: float) -> dict[str, Any]:
    """What a child has found."""
    flags = ",".join(filter(None, [os.environ.get("THEANO_FLAGS"), device and f"device={device}"]))
    environment = {**os.environ, "THEANO_FLAGS": flags} if flags else {**os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {seconds:.0f} s"}
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"failed": f"the process that tried it ended with {done.returncode}: {last}"}
