"""Checks of the libraries that a CUDA device needs, from libgpuarray to each card.

A child process opens each library as libgpuarray does, and this process evaluates its reports. The child uses the
standard library only, since other packages may be broken.
"""

from __future__ import annotations

import csv
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shardpress.childprocess import report
from shardpress.doctor.check import Check, Status
from shardpress.gpu.driver import capability_of, count_cards, cuda_version, files_of, format_version

_INSTALL = "shardpress setup-gpu (in a checkout: make gpu); it needs no root, see docs/gpu.md"
_DRIVER = "NVIDIA's driver (Debian: apt-get install nvidia-driver; Ubuntu: ubuntu-drivers install)"
_IN_CONTAINERS = "in a container: --gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_NO_JIT = f"install the driver's package with libnvidia-ptxjitcompiler.so.1; {_IN_CONTAINERS}"
_ALLOW_JIT = "unset CUDA_DISABLE_PTX_JIT, since the driver must compile NVRTC's PTX for the card"
# Advice by the error code of the first kernel (see cuda.h). Other codes are faults of the card or the driver.
_ADVICE = {
    221: _NO_JIT,
    222: f"install a newer driver, or an NVRTC that fits this driver: {_INSTALL}",
    223: _ALLOW_JIT,
}
_PCI_DEVICES = "/sys/bus/pci/devices"
_SECONDS = 20.0  # time limit of nvidia-smi
_NO_REPORT = {"error": "the checking process exited without a report"}
_USERS = "pid,process_name,used_memory,gpu_bus_id"
_EMPTY_KERNEL = b'extern "C" __global__ void nothing() {}\n'
_PTX = 1  # CU_JIT_INPUT_PTX
# Directories of the environment that libgpuarray searches first, see install_pygpu.sh.
_FOLDERS = ("lib/shardpress-gpu", "lib")
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: the driver works, but sees no card
_JIT = "libnvidia-ptxjitcompiler.so.1"  # the driver opens it for the first kernel


def cuda_checks(found: Mapping[str, Any], is_wanted: bool) -> Iterator[Check]:
    """Yield the checks. Each check follows the checks that it depends on.

    Parameters
    ----------
    found : mapping
        Reports of the child.
    is_wanted : bool
        Whether a run would use CUDA. Otherwise missing libraries are not a failure.
    """
    yield _pygpu("fail" if is_wanted else "absent")
    if "failed" in found:
        yield Check("cuda", "fail" if is_wanted else "warn", found["failed"], _DRIVER)
    driver = found.get("driver", {})
    bad = _bad_status(driver, is_wanted)
    yield from _library_checks(found, bad)
    users = []
    if driver.get("n_cards"):
        users = _users()
    cards = [name for name in found if name.startswith("card")]
    for name in sorted(cards, key=_card_number):
        yield _card(name, found[name], bad, users)


def _bad_status(driver: Mapping[str, Any], is_wanted: bool) -> Status:
    """Return the status of a library or card that cannot be used."""
    if is_wanted:
        return "fail"
    if "files" in driver or "found_instead" in driver:
        return "warn"
    return "absent"


def _library_checks(found: Mapping[str, Any], bad: Status) -> Iterator[Check]:
    driver = found.get("driver", {})
    checks = [
        _library("libgpuarray", found, bad),
        _driver(driver, bad),
        _nvrtc(found, bad),
        _library("cublas", found, bad),
        *_kernels(driver, bad),
    ]
    for check in checks:
        if check.status != "absent":
            yield check
        elif check.name == "driver":  # without a driver the other libraries are not needed
            yield Check("driver", "absent", check.found)


def _card_number(name: str) -> int:
    return int(name.removeprefix("card"))


def newest_ptx(cuda: Sequence[int]) -> tuple[int, int]:
    """Return the newest version of PTX that a driver accepts, given its version of CUDA.

    Source: release notes of NVIDIA's "PTX ISA". The major version is CUDA's major version minus four. The minor
    version is CUDA's minor version, except that CUDA 12.5 and 12.6 share one version of PTX.
    """
    major, minor = cuda
    return major - 4, minor - (major == 12 and minor > 5)


def _pygpu(bad: Status) -> Check:
    spec = find_spec("pygpu")
    if spec is None or spec.origin is None:
        return Check("pygpu", bad, "not installed", _INSTALL)
    installed = "unknown version"
    with suppress(PackageNotFoundError):
        installed = version("pygpu")
    return Check("pygpu", "pass", f"{installed}: {os.path.dirname(spec.origin)}")


def _library(name: str, found: Mapping[str, Any], bad: Status) -> Check:
    facts = found.get(name, _NO_REPORT)
    if "files" not in facts:
        return Check(name, bad, f"not found: {facts['error']}", _INSTALL)
    files = _files(facts)
    if "version" not in facts:
        return Check(name, "pass", files)
    return Check(name, "pass", f"{format_version(facts['version'])}: {files}")


def _driver(facts: Mapping[str, Any], bad: Status) -> Check:
    if "files" not in facts:
        return _no_driver(facts, bad)
    supported = "reports no version"
    if "version" in facts:
        supported = f"supports CUDA {format_version(facts['version'])} or earlier"
    place = _files(facts)
    if "module" in facts:
        place += f"; {facts['module']}"
    if "error" in facts:
        fix = f"{_DRIVER}, of the same version as the kernel module (see /proc/driver/nvidia/version); {_IN_CONTAINERS}"
        return Check("driver", bad, f"{supported}, but {facts['error']}: {place}", fix)
    if not facts.get("n_cards"):
        fix = _IN_CONTAINERS
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            fix = f"CUDA_VISIBLE_DEVICES is {visible!r}: unset or correct it; {_IN_CONTAINERS}"
        return Check("driver", bad, f"{supported}, but finds no card: {place}", fix)
    return Check("driver", "pass", f"{supported}: {place}")


def _no_driver(facts: Mapping[str, Any], bad: Status) -> Check:
    if "found_instead" in facts:
        found = f"{facts['found_instead']} exists, but not libcuda.so, which libgpuarray opens"
        return Check("driver", bad, found, _INSTALL)
    cards = _pci_cards()
    hint = "and the PCI bus has no NVIDIA card"
    if cards:
        hint = f"although the PCI bus has an NVIDIA card ({cards[0]})"
    return Check("driver", bad, f"no NVIDIA driver (libcuda.so.1) is installed, {hint}", f"{_DRIVER}, or device=cpu")


def _nvrtc(found: Mapping[str, Any], bad: Status) -> Check:
    facts = found.get("nvrtc", _NO_REPORT)
    if "ptx" not in facts:
        problem = "not found"
        if "files" in facts:
            problem = f"cannot compile: {_files(facts)}"
        return Check("nvrtc", bad, f"{problem}: {facts.get('error')}", _INSTALL)
    ptx = f"{format_version(facts['version'])} generates PTX {format_version(facts['ptx'])}"
    driver = found.get("driver", {})
    if "version" not in driver:
        return Check("nvrtc", "pass", f"{ptx}: {_files(facts)}")
    newest = newest_ptx(driver["version"])
    both = f"{ptx}, and the driver accepts PTX up to {format_version(newest)}: {_files(facts)}"
    if tuple(facts["ptx"]) <= newest:
        return Check("nvrtc", "pass", both)
    return Check("nvrtc", bad, both, _ADVICE[222])


def _kernels(driver: Mapping[str, Any], bad: Status) -> Iterator[Check]:
    """Yield a check if the driver cannot compile PTX."""
    if "files" not in driver:
        return
    if os.environ.get("CUDA_DISABLE_PTX_JIT", "0") not in ("", "0"):
        yield Check("kernels", bad, "CUDA_DISABLE_PTX_JIT is set, so the first kernel fails with error 223", _ALLOW_JIT)
    # If there is a card, a kernel has been compiled for it.
    elif driver.get("jit") is False and not driver.get("n_cards"):
        found = "libnvidia-ptxjitcompiler.so.1 is not found, so the first kernel fails with error 221"
        yield Check("kernels", bad, found, _NO_JIT)


def _card(name: str, facts: Mapping[str, Any], bad: Status, users: Sequence[Mapping[str, str]]) -> Check:
    found = _describe_card(facts, users)
    if "error" not in facts:
        return Check(name, "pass", found)
    fix = _ADVICE.get(facts.get("code", 0), "see nvidia-smi, or use another card: THEANO_FLAGS=device=cuda1")
    if "NVRTC" in facts["error"] and "code" not in facts:
        fix = f"install an NVRTC that supports this card: {_INSTALL}"
    return Check(name, bad, f"{found}: {facts['error']}", fix)


def _describe_card(facts: Mapping[str, Any], users: Sequence[Mapping[str, str]]) -> str:
    """Return the name, capability, address and free memory of a card, and the processes that use it."""
    text = f"{facts['name']}, capability {format_version(facts['capability'])}, at {facts['place']}"
    if "free" in facts:
        text += f", {facts['free'] / 1e9:.1f} of {facts['total'] / 1e9:.1f} GB free"
    address = facts["place"].lower()
    for each in users:
        if (
            each["gpu_bus_id"].lower().endswith(address)
        ):  # nvidia-smi writes eight digits of the domain, the driver four
            text += f"; {each['process_name']} ({each['pid']}) uses {each['used_memory']}"
    return text


def _users() -> list[dict[str, str]]:
    """Return the processes that compute on cards, according to nvidia-smi."""
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


def _pci_cards() -> list[str]:
    """Return the addresses of NVIDIA's cards on the PCI bus, with or without a driver."""
    addresses = []
    for folder in sorted(Path(_PCI_DEVICES).glob("*")):
        with suppress(OSError):
            is_display = (folder / "class").read_text().startswith("0x03")
            if is_display and (folder / "vendor").read_text().strip() == "0x10de":
                addresses.append(folder.name)
    return addresses


def _files(facts: Mapping[str, Any]) -> str:
    """Return the file of a library. If it forwards calls to other files, also return these files."""
    first, *others = facts["files"] or ["unknown file"]
    if others:
        return f"{first}, which forwards calls to {', '.join(others)}"
    return str(first)


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report facts about each library. If a call hangs or crashes, earlier reports remain."""
    _, facts = _open("libgpuarray.so.3", "libgpuarray.")
    report(libgpuarray=facts)
    cublas, facts = _open("libcublas.so", "libcublas.")
    report(cublas={**facts, **_facts_of(cublas, _cublas_version)})
    nvrtc, facts = _open("libnvrtc.so", "libnvrtc.")
    report(nvrtc={**facts, **_facts_of(nvrtc, _compiler)})
    cuda = _report_driver()
    if cuda is not None:
        for number, card in enumerate(_cards(cuda, nvrtc)):
            report(**{f"card{number}": card})
    report(done=True)


def _report_driver() -> ctypes.CDLL | None:
    cuda, facts = _open("libcuda.so", "libcuda.")
    if cuda is None and _load("libcuda.so.1") is not None:  # libgpuarray does not try this name
        files = files_of("libcuda.")
        facts["found_instead"] = (files or ["libcuda.so.1"])[0]
    report(driver=facts)
    report(driver={**facts, **_facts_of(cuda, _driver_facts), "jit": _load(_JIT) is not None})
    return cuda


def _open(name: str, prefix: str) -> tuple[ctypes.CDLL | None, dict[str, Any]]:
    """Open a library as libgpuarray does.

    Return the library, and facts about it: its files whose names start with `prefix`, or the error.
    """
    try:
        library = ctypes.CDLL(_find(name))
    except OSError as error:
        return None, {"error": str(error)}
    return library, {"files": files_of(prefix)}


def _find(name: str) -> str:
    """Return the path of a library in the directories that libgpuarray searches, otherwise its name."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders += [os.path.join(sys.exec_prefix, folder) for folder in _FOLDERS]
    paths = [os.path.join(folder, name) for folder in folders if folder]
    return next(filter(os.path.lexists, paths), name)


def _load(name: str) -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL(name)
    return None


def _facts_of(library: ctypes.CDLL | None, query: Callable[[ctypes.CDLL], dict[str, Any]]) -> dict[str, Any]:
    """Return the facts about a library, or the name of a function that it lacks."""
    if library is None:
        return {}
    try:
        return query(library)
    except AttributeError as error:
        return {"error": str(error)}


def _cublas_version(cublas: ctypes.CDLL) -> dict[str, Any]:
    """Return the version, without a card. Some libraries lack the only function that needs no card."""
    version = []
    with suppress(AttributeError):
        for part in range(3):
            number = c_int()
            if cublas.cublasGetProperty(part, byref(number)):
                return {}
            version.append(number.value)
    if not version:
        return {}
    return {"version": version}


def _compiler(nvrtc: ctypes.CDLL) -> dict[str, Any]:
    """Return the versions of NVRTC and of the PTX that it writes."""
    major = c_int()
    minor = c_int()
    nvrtc.nvrtcVersion(byref(major), byref(minor))
    ptx, error = _compile(nvrtc)
    match = re.search(rb"\.version (\d+)\.(\d+)", ptx)
    if match is None:
        return {"error": error}
    return {"version": [major.value, minor.value], "ptx": [int(each) for each in match.groups()]}


def _compile(nvrtc: ctypes.CDLL, *options: bytes) -> tuple[bytes, str]:
    """Return the PTX of an empty kernel, or the error."""
    program = c_void_p()
    nvrtc.nvrtcCreateProgram(byref(program), _EMPTY_KERNEL, b"nothing.cu", 0, None, None)
    code = nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
    if code:
        return b"", _error_text(nvrtc, code)
    size = c_size_t()
    nvrtc.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value, ""


def _error_text(nvrtc: ctypes.CDLL, code: int) -> str:
    nvrtc.nvrtcGetErrorString.restype = c_char_p
    text = nvrtc.nvrtcGetErrorString(code) or b""
    return text.decode(errors="replace") or f"error {code}"


def _driver_facts(cuda: ctypes.CDLL) -> dict[str, Any]:
    """Return the newest version of CUDA that a driver supports, its kernel module, and the number of its cards."""
    facts: dict[str, Any] = {}
    version = cuda_version(cuda)
    if version is not None:
        facts["version"] = list(version)
    with suppress(OSError), open("/proc/driver/nvidia/version") as file:  # this file is missing in some containers
        facts["module"] = file.readline().strip()
    code, n_cards = count_cards(cuda)
    if code not in (0, _NO_DEVICE):
        return {**facts, "error": f"cuInit: {_name_of(cuda, code)}"}
    return {**facts, "n_cards": n_cards}


def _name_of(cuda: ctypes.CDLL, code: int) -> str:
    name = c_char_p()
    with suppress(AttributeError):
        cuda.cuGetErrorName(code, byref(name))
    if not name.value:
        return f"error {code}"
    return f"{name.value.decode()} ({code})"


def _cards(cuda: ctypes.CDLL, nvrtc: ctypes.CDLL | None) -> Iterator[dict[str, Any]]:
    code, n_cards = count_cards(cuda)
    if code == 0:
        for number in range(n_cards):
            yield _card_facts(cuda, number, nvrtc)


def _card_facts(cuda: ctypes.CDLL, card: int, nvrtc: ctypes.CDLL | None) -> dict[str, Any]:
    """Return facts about a card and its memory, and an error if the card does not accept a kernel from NVRTC."""
    facts = _card_identity(cuda, card)
    context = c_void_p()
    code = cuda.cuDevicePrimaryCtxRetain(byref(context), card) or cuda.cuCtxPushCurrent_v2(context)
    if code:
        return {**facts, "error": f"cannot be opened: {_name_of(cuda, code)}"}
    free = c_size_t()
    total = c_size_t()
    cuda.cuMemGetInfo_v2(byref(free), byref(total))
    facts |= {"free": free.value, "total": total.value}
    if nvrtc is not None:
        facts |= _kernel_error(cuda, nvrtc, facts["capability"])
    cuda.cuCtxPopCurrent_v2(byref(context))
    return facts


def _card_identity(cuda: ctypes.CDLL, card: int) -> dict[str, Any]:
    name = ctypes.create_string_buffer(256)
    place = ctypes.create_string_buffer(16)
    cuda.cuDeviceGetName(name, len(name), card)
    cuda.cuDeviceGetPCIBusId(place, len(place), card)
    return {
        "name": name.value.decode(errors="replace"),
        "place": place.value.decode(),
        "capability": capability_of(cuda, card),
    }


def _kernel_error(cuda: ctypes.CDLL, nvrtc: ctypes.CDLL, capability: list[int]) -> dict[str, Any]:
    """Compile a kernel as libgpuarray does. Return the error, or an empty dict if the compilation succeeds."""
    architecture = "compute_{}{}".format(*capability)[:10]  # libgpuarray truncates the name in this way
    ptx, error = _compile(nvrtc, b"-arch", architecture.encode())
    if error:
        return {"error": f"NVRTC cannot compile for {architecture}: {error}"}
    code = _link(cuda, ptx)
    if not code:
        return {}
    return {"error": f"the driver refuses NVRTC's kernel: {_name_of(cuda, code)}", "code": code}


def _link(cuda: ctypes.CDLL, ptx: bytes) -> int:
    """Compile PTX for the current card, and return the driver's error code."""
    state = c_void_p()
    binary = c_void_p()
    size = c_size_t()
    code = cuda.cuLinkCreate(0, None, None, byref(state))
    code = code or cuda.cuLinkAddData(state, _PTX, ptx + b"\0", c_size_t(len(ptx) + 1), b"nothing", 0, None, None)
    return code or cuda.cuLinkComplete(state, byref(binary), byref(size))
