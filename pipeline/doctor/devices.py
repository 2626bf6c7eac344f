"""Whether each device computes, tried in children with a time limit: a driver may hang or crash whoever asks it."""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from pipeline.doctor.ask import asked
from pipeline.doctor.check import Check, Status
from pipeline.doctor.cuda import rungs
from pipeline.doctor.packages import complaint, missing_proc
from pipeline.errors import ConfigError

__all__ = ["tried", "wished"]

_SECONDS = 60.0  # of the libraries, which only have to be loaded
# libgpuarray opens the bare name, which may lie in the environment's lib/ alone.
_OPENCL = ("libOpenCL.so.1", "libOpenCL.so")

Found = tuple[Check, dict[str, list[str]]]


def tried(seconds: float) -> Iterator[Found]:
    """What became of each device within so many seconds, and what it stands on; and its libraries' files."""
    if missing_proc():  # Theano would read no settings of ours; `the_machine` reports it
        return
    chosen = wished()
    cpu = _asked("cpu", chosen, seconds)
    yield from _of(cpu, "cpu", chosen)
    libraries = asked("pipeline.doctor.libraries", min(seconds, _SECONDS))
    for check in rungs(libraries, chosen.startswith("cuda")):
        yield check, {}
    if cpu is None or cpu.get("code") == ConfigError.exit_code:  # which all others would say again
        return
    first = {} if chosen == "cpu" else _asked(chosen, chosen, seconds)
    if first:
        yield from _of(first, chosen, chosen)
    for device in _others(libraries, chosen, (first or {}).get("place")):
        yield from _of(_asked(device, chosen, seconds), device, chosen)


def wished() -> str:
    """The device of THEANO_FLAGS or, else, .theanorc, as far as that can be told without Theano."""
    in_flags = re.findall(r"(?:^|[,\s])device\s*=\s*([^,\s]+)", os.environ.get("THEANO_FLAGS", ""))
    if in_flags:
        return str(in_flags[-1])
    files = configparser.ConfigParser(strict=False, interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):
        files.read(map(os.path.expanduser, os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)))
    return files.get("global", "device", fallback="cpu")


def _asked(device: str, chosen: str, seconds: float) -> dict[str, Any] | None:
    """What a child has found of a device; None without Theano."""
    if find_spec("theano") is None:
        return None
    return asked("pipeline.doctor.child", seconds, "" if device == chosen else f"device={device}")


def _others(libraries: Mapping[str, Any], chosen: str, place: str | None) -> Iterator[str]:
    """Devices beside that of the settings which seem to be there."""
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
    if device == "cpu" and (cache := found.get("cache")):
        yield Check("cache", "pass", f"{cache}: what is compiled is kept there"), {}
    yield _judged(device, found, device == chosen), found.get("libraries", {})


def _without_theano(device: str) -> Check:
    found = "there is no Theano in this Python, so nothing is computed here"
    if sys.version_info[:2] == (3, 11):
        return Check(device, "fail", found, complaint(), is_setting=True)
    return Check(device, "absent", found)  # which a later one cannot have, and reads features all the same


def _blas(found: Mapping[str, Any]) -> Check:
    """What computes products on the processor."""
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
        there, back = (found["bytes_per_second"][way] / 1e9 for way in ("there", "back"))
        words += [f"{found['flops'] / 1e9:,.0f} GFLOP/s", f"{there:.1f} GB/s there and {back:.1f} back"]
    use = "a run takes it" if is_chosen else f"THEANO_FLAGS=device={device} takes it"
    return Check(device, "pass", "; ".join([*words, use]))
