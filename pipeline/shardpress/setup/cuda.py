"""Checks of NVIDIA's driver, of the libraries that libgpuarray opens, and of each card.

A child process loads each library as libgpuarray does, and compiles a kernel for each card. The child uses the standard
library only, since other packages may be broken.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from ctypes import byref, c_char_p, c_size_t, c_void_p
from typing import Any

from shardpress.base.childprocess import collect_reports, report
from shardpress.base.driver import Version, error_name, format_version, report_driver
from shardpress.setup.diagnosis import Check, Status

_INSTALL = "shardpress setup-gpu (in a checkout: make gpu); it needs no root, see docs/gpu.md"
_IN_CONTAINERS = "in a container: --gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_DRIVER = (
    "NVIDIA's driver (Debian: apt-get install nvidia-driver; Ubuntu: ubuntu-drivers install), of the same version as "
    f"the kernel module (see /proc/driver/nvidia/version); {_IN_CONTAINERS}; or device=cpu"
)
# Advice by the error code of the first kernel (see cuda.h). Other codes are faults of the card or the driver.
_ADVICE = {
    221: f"install the driver's package with libnvidia-ptxjitcompiler.so.1; {_IN_CONTAINERS}",
    222: f"install a newer driver, or an NVRTC that fits this driver: {_INSTALL}",
    223: "unset CUDA_DISABLE_PTX_JIT, since the driver must compile NVRTC's PTX for the card",
}
_OTHER_CARD = "see nvidia-smi, or use another card: THEANO_FLAGS=device=cuda1"
_LIBRARIES = ("libgpuarray.so.3", "libcuda.so", "libnvrtc.so", "libcublas.so")
# Directories of the environment that libgpuarray searches first, see install_pygpu.sh.
_FOLDERS = ("lib/shardpress-gpu", "lib")
_SECONDS = 60.0  # time limit
_EMPTY_KERNEL = b'extern "C" __global__ void nothing() {}\n'


def cuda_checks(is_wanted: bool) -> list[Check]:
    """Return the checks. Unless a run would use CUDA, faults are warnings, and a missing driver is no fault."""
    reports = collect_reports(__name__, _SECONDS)
    bad: Status = "fail" if is_wanted else "warn"
    driver = _driver(reports, bad)
    if "cuda" not in reports and not is_wanted:  # without a driver the other libraries are not needed
        return [Check("driver", "absent", driver.found)]
    checks = [driver, _libraries(reports, bad)]
    cards = reports.get("cards", [])
    if "failed" in reports and driver.status == "pass":
        cards.append((reports["failed"], _OTHER_CARD))
    for number, (finding, fix) in enumerate(cards):
        checks.append(Check(f"card{number}", bad if fix else "pass", finding, fix))
    return checks


def _driver(reports: Mapping[str, Any], bad: Status) -> Check:
    failed = reports.get("error") or reports.get("failed")
    if "cuda" not in reports:
        reason = f": {failed}" if failed else ""
        return Check("driver", bad, f"no NVIDIA driver (libcuda.so.1) answers{reason}", f"install {_DRIVER}")
    supported = f"{reports['file']} supports CUDA {format_version(reports['cuda'])} or earlier"
    if reports.get("capabilities"):
        return Check("driver", "pass", supported)
    fix = f"install {_DRIVER}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        fix = f"CUDA_VISIBLE_DEVICES is {visible!r}: unset or correct it. Otherwise, {fix}"
    return Check("driver", bad, f"{supported}, but {failed or 'finds no card'}", fix)


def _libraries(reports: Mapping[str, Any], bad: Status) -> Check:
    if reports.get("missing") == []:
        return Check("libraries", "pass", ", ".join(map(_find, _LIBRARIES)))
    missing = reports.get("missing", ["the libraries cannot be loaded"])
    return Check("libraries", bad, "; ".join(missing), _INSTALL)


def _find(name: str) -> str:
    """Return the path of a library in the directories that libgpuarray searches, otherwise its name."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders += [os.path.join(sys.exec_prefix, folder) for folder in _FOLDERS]
    paths = [os.path.join(folder, name) for folder in folders if folder]
    return next(filter(os.path.lexists, paths), name)


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report missing libraries, the driver, and a finding with advice for each card.

    If a call hangs or crashes, earlier reports remain.
    """
    libraries = {}
    missing = []
    for name in _LIBRARIES:
        try:
            libraries[name] = ctypes.CDLL(_find(name))
        except OSError as error:
            missing.append(str(error))
    report(missing=missing)
    driver, capabilities = report_driver()
    cards = []
    for card, capability in enumerate(capabilities):
        cards.append(_check_card(driver, card, capability, libraries.get("libnvrtc.so")))
        report(cards=cards)
    report(done=True)


def _check_card(driver: Any, card: int, capability: Version, nvrtc: ctypes.CDLL | None) -> tuple[str, str]:
    """Open a card, and load a kernel that NVRTC compiles. Return the finding, and advice or an empty string."""
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), card)
    finding = f"{name.value.decode(errors='replace')}, capability {format_version(capability)}"
    context = c_void_p()
    code = driver.cuDevicePrimaryCtxRetain(byref(context), card) or driver.cuCtxPushCurrent_v2(context)
    if code:
        return f"{finding}: cannot be opened: {error_name(driver, code)}", _OTHER_CARD
    free = c_size_t()
    total = c_size_t()
    driver.cuMemGetInfo_v2(byref(free), byref(total))
    finding += f", {free.value / 1e9:.1f} of {total.value / 1e9:.1f} GB free"
    if nvrtc is None:
        return finding, ""
    architecture = "compute_{}{}".format(*capability)[:10]  # libgpuarray truncates the name in this way
    ptx, error = _compile(nvrtc, architecture)
    if error:
        fix = f"install an NVRTC that supports this card: {_INSTALL}"
        return f"{finding}: NVRTC cannot compile for {architecture}: {error}", fix
    code = driver.cuModuleLoadData(byref(c_void_p()), ptx)
    if code:
        fix = _ADVICE.get(code, _OTHER_CARD)
        return f"{finding}: the driver refuses NVRTC's kernel: {error_name(driver, code)}", fix
    return finding, ""


def _compile(nvrtc: ctypes.CDLL, architecture: str) -> tuple[bytes, str]:
    """Return the PTX of an empty kernel, or the error."""
    program = c_void_p()
    nvrtc.nvrtcCreateProgram(byref(program), _EMPTY_KERNEL, b"nothing.cu", 0, None, None)
    options = (c_char_p * 2)(b"-arch", architecture.encode())
    code = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if code:
        nvrtc.nvrtcGetErrorString.restype = c_char_p
        text = nvrtc.nvrtcGetErrorString(code) or b"unknown error"
        return b"", text.decode(errors="replace")
    size = c_size_t()
    nvrtc.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value, ""
