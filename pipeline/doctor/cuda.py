"""The rungs that a CUDA device stands on, from libgpuarray to each card, out of what `libraries` has found."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.doctor.check import Check, Status

__all__ = ["newest_ptx", "rungs"]

_INSTALL = "shardpress setup-gpu (in a checkout: make gpu), without root: docs/gpu.md"
_DRIVER = "NVIDIA's driver (Debian: apt-get install nvidia-driver; Ubuntu: ubuntu-drivers install)"
_IN_CONTAINERS = "in a container: --gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_NO_JIT = f"the driver's package with libnvidia-ptxjitcompiler.so.1; {_IN_CONTAINERS}"
_ALLOW_JIT = "unset CUDA_DISABLE_PTX_JIT: NVRTC's kernels are made for a card by the driver"
# What a driver says of the first kernel, see cuda.h; of what else it says, the card or the driver has to be looked at.
_ADVICE = {
    221: _NO_JIT,
    222: f"a newer driver, or the NVRTC that fits this one: {_INSTALL}",
    223: _ALLOW_JIT,
}
_SEEN = "/sys/bus/pci/devices"
_SECONDS = 20.0  # of nvidia-smi
_SILENCE = {"error": "the process that looked for it has not told"}
_USERS = "pid,process_name,used_memory,gpu_bus_id"


def rungs(found: Mapping[str, Any], is_wanted: bool) -> Iterator[Check]:
    """One after the other, each on what stands before it.

    Parameters
    ----------
    found : mapping
        What `libraries` has told.
    is_wanted : bool
        Whether a run would ask for CUDA: else what is missing is missed by nobody.
    """
    driver = found.get("driver", {})
    is_there = "files" in driver or "beside" in driver
    bad: Status = "fail" if is_wanted else "warn" if is_there else "absent"
    yield _pygpu("fail" if is_wanted else "absent")
    if "failed" in found:
        yield Check("cuda", "fail" if is_wanted else "warn", found["failed"], _DRIVER)
    looks = (
        _library("libgpuarray", found, bad),
        _driver(driver, bad),
        _nvrtc(found, bad),
        _library("cublas", found, bad),
    )
    for check in (*looks, *_kernels(driver, bad)):
        if check.status != "absent":
            yield check
        elif check.name == "driver":  # without one nobody looks for the others
            yield Check("driver", "absent", check.found)
    users = _users() if driver.get("n_cards") else []
    for name in sorted((each for each in found if each.startswith("card")), key=lambda each: int(each[4:])):
        yield _card(name, found[name], bad, users)


def newest_ptx(cuda: Sequence[int]) -> tuple[int, int]:
    """The newest PTX that the driver of a version of CUDA takes, by the release notes in NVIDIA's "PTX ISA".

    CUDA 11 and 13 count it as themselves, four less; of CUDA 12, 12.5 and 12.6 have one version in common.
    """
    major, minor = cuda
    return major - 4, minor - (major == 12 and minor > 5)


def _pygpu(bad: Status) -> Check:
    spec = find_spec("pygpu")
    if spec is None or spec.origin is None:
        return Check("pygpu", bad, "is not installed", _INSTALL)
    number = "of unknown version"
    with suppress(PackageNotFoundError):
        number = version("pygpu")
    return Check("pygpu", "pass", f"{number}: {os.path.dirname(spec.origin)}")


def _library(name: str, found: Mapping[str, Any], bad: Status) -> Check:
    told = found.get(name, _SILENCE)
    if "files" not in told:
        return Check(name, bad, f"is not found: {told['error']}", _INSTALL)
    number = f"{_dotted(told['version'])}: " if "version" in told else ""
    return Check(name, "pass", number + _files(told))


def _driver(told: Mapping[str, Any], bad: Status) -> Check:
    if "files" not in told:
        if beside := told.get("beside"):
            return Check("driver", bad, f"{beside} is there, but not libcuda.so, which libgpuarray opens", _INSTALL)
        cards = _seen()
        hint = f"though the PCI bus shows an NVIDIA card ({cards[0]})" if cards else "nor an NVIDIA card on the PCI bus"
        return Check("driver", bad, f"no NVIDIA driver: there is no libcuda.so.1, {hint}", f"{_DRIVER}, or device=cpu")
    takes = f"takes code of CUDA {_dotted(told['version'])}" if "version" in told else "does not say its version"
    module = f"; {told['module']}" if "module" in told else ""
    if "error" in told:
        fix = f"{_DRIVER}, of the version that the kernel runs (nvidia-smi says more); {_IN_CONTAINERS}"
        return Check("driver", bad, f"{takes}, but {told['error']}: {_files(told)}{module}", fix)
    if not told.get("n_cards"):
        fix = f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}; {_IN_CONTAINERS}"
        return Check("driver", bad, f"{takes}, but sees no card: {_files(told)}{module}", fix)
    return Check("driver", "pass", f"{takes}: {_files(told)}{module}")


def _nvrtc(found: Mapping[str, Any], bad: Status) -> Check:
    told, driver = found.get("nvrtc", _SILENCE), found.get("driver", {})
    if "ptx" not in told:
        what = f"compiles nothing: {_files(told)}" if "files" in told else "is not found"
        return Check("nvrtc", bad, f"{what}: {told.get('error')}", _INSTALL)
    writes = f"{_dotted(told['version'])} writes PTX {_dotted(told['ptx'])}"
    if "version" not in driver:
        return Check("nvrtc", "pass", f"{writes}: {_files(told)}")
    takes = newest_ptx(driver["version"])
    both = f"{writes}, the driver takes up to {_dotted(takes)}: {_files(told)}"
    if tuple(told["ptx"]) <= takes:
        return Check("nvrtc", "pass", both)
    return Check("nvrtc", bad, both, _ADVICE[222])


def _kernels(driver: Mapping[str, Any], bad: Status) -> Iterator[Check]:
    """What keeps a driver from making kernels of PTX."""
    if "files" not in driver:
        return
    if os.environ.get("CUDA_DISABLE_PTX_JIT", "0") not in ("", "0"):
        yield Check("kernels", bad, "CUDA_DISABLE_PTX_JIT is set: the first kernel ends with 223", _ALLOW_JIT)
    # A card for which one was made shows that it can be done.
    elif driver.get("jit") is False and not driver.get("n_cards"):
        found = "libnvidia-ptxjitcompiler.so.1 is not found: the first kernel ends with 221"
        yield Check("kernels", bad, found, _NO_JIT)


def _card(name: str, told: Mapping[str, Any], bad: Status, users: Sequence[Mapping[str, str]]) -> Check:
    capability = ".".join(map(str, told["capability"]))
    head = f"{told['name']}, capability {capability}, at {told['place']}"
    if "free" in told:
        head += f", {told['free'] / 1e9:.1f} of {told['total'] / 1e9:.1f} GB free"
    # nvidia-smi writes eight digits of the domain, the driver four.
    here = [each for each in users if each["gpu_bus_id"].lower().endswith(told["place"].lower())]
    head += "".join(f"; {each['process_name']} ({each['pid']}) has {each['used_memory']}" for each in here)
    if "error" not in told:
        return Check(name, "pass", head)
    fix = _ADVICE.get(told.get("code", 0), "nvidia-smi says more; another card: THEANO_FLAGS=device=cuda1")
    if "NVRTC" in told["error"] and "code" not in told:
        fix = f"an NVRTC that knows this card: {_INSTALL}"
    return Check(name, bad, f"{head}: {told['error']}", fix)


def _users() -> list[dict[str, str]]:
    """Processes that compute on cards, as far as nvidia-smi tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-compute-apps={_USERS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    names = _USERS.split(",")
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def _seen() -> list[str]:
    """NVIDIA's cards that the PCI bus shows, driver or not, as nvidia-smi would write their places."""
    found = []
    for folder in sorted(Path(_SEEN).glob("*")):
        with suppress(OSError):
            is_display = (folder / "class").read_text().startswith("0x03")
            if is_display and (folder / "vendor").read_text().strip() == "0x10de":
                found.append(folder.name)
    return found


def _files(told: Mapping[str, Any]) -> str:
    """Which file it came from; and one that passes all calls on, whereto."""
    first, *others = told["files"] or ["its file is not known"]
    return f"{first}, which passes on to {', '.join(others)}" if others else str(first)


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
