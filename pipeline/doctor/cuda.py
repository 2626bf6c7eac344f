"""Checks of what a CUDA device needs, from libgpuarray to each card.

A child process opens each library as libgpuarray does, and this process judges what it reports. The child needs the
standard library alone, since other packages may be broken.
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

from pipeline.childprocess import report
from pipeline.doctor.check import Check, Status
from pipeline.gpu.driver import capability_of, count_cards, cuda_version, dotted, files_of

__all__ = ["main", "newest_ptx", "rungs"]

_INSTALL = "shardpress setup-gpu (in a checkout: make gpu), without root: docs/gpu.md"
_DRIVER = "NVIDIA's driver (Debian: apt-get install nvidia-driver; Ubuntu: ubuntu-drivers install)"
_IN_CONTAINERS = "in a container: --gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_NO_JIT = f"the driver's package with libnvidia-ptxjitcompiler.so.1; {_IN_CONTAINERS}"
_ALLOW_JIT = "unset CUDA_DISABLE_PTX_JIT: NVRTC's kernels are made for a card by the driver"
# Errors of cuda.h for the first kernel. Any other error is a matter of the card or the driver.
_ADVICE = {
    221: _NO_JIT,
    222: f"a newer driver, or the NVRTC that fits this one: {_INSTALL}",
    223: _ALLOW_JIT,
}
_SEEN = "/sys/bus/pci/devices"
_SECONDS = 20.0  # of nvidia-smi
_NO_REPORT = {"error": "the process that looked for it has not told"}
_USERS = "pid,process_name,used_memory,gpu_bus_id"
_NOTHING = b'extern "C" __global__ void nothing() {}\n'
_PTX = 1  # CU_JIT_INPUT_PTX
# Directories of the environment in which libgpuarray looks first, see install_pygpu.sh.
_FOLDERS = ("lib/shardpress-gpu", "lib")
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: the driver works, but sees no card
_JIT = "libnvidia-ptxjitcompiler.so.1"  # which the driver opens for the first kernel


def rungs(found: Mapping[str, Any], is_wanted: bool) -> Iterator[Check]:
    """Yield one check after the other, each after those that it depends on.

    Parameters
    ----------
    found : mapping
        What the child has reported.
    is_wanted : bool
        Whether a run would use CUDA. If not, missing parts are no failure.
    """
    driver = found.get("driver", {})
    is_there = "files" in driver or "beside" in driver
    bad: Status = "absent"
    if is_wanted:
        bad = "fail"
    elif is_there:
        bad = "warn"
    yield _pygpu("fail" if is_wanted else "absent")
    if "failed" in found:
        yield Check("cuda", "fail" if is_wanted else "warn", found["failed"], _DRIVER)
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
        elif check.name == "driver":  # without a driver the others are not needed
            yield Check("driver", "absent", check.found)
    users = _users() if driver.get("n_cards") else []
    cards = [name for name in found if name.startswith("card")]
    for name in sorted(cards, key=_card_number):
        yield _card(name, found[name], bad, users)


def _card_number(name: str) -> int:
    return int(name.removeprefix("card"))


def newest_ptx(cuda: Sequence[int]) -> tuple[int, int]:
    """Return the newest PTX that a driver takes, by its version of CUDA (release notes of NVIDIA's "PTX ISA").

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
    facts = found.get(name, _NO_REPORT)
    if "files" not in facts:
        return Check(name, bad, f"is not found: {facts['error']}", _INSTALL)
    files = _files(facts)
    if "version" not in facts:
        return Check(name, "pass", files)
    return Check(name, "pass", f"{dotted(facts['version'])}: {files}")


def _driver(facts: Mapping[str, Any], bad: Status) -> Check:
    if "files" not in facts:
        return _no_driver(facts, bad)
    takes = f"takes code of CUDA {dotted(facts['version'])}" if "version" in facts else "does not say its version"
    place = _files(facts)
    if "module" in facts:
        place += f"; {facts['module']}"
    if "error" in facts:
        fix = f"{_DRIVER}, of the version that the kernel runs (nvidia-smi says more); {_IN_CONTAINERS}"
        return Check("driver", bad, f"{takes}, but {facts['error']}: {place}", fix)
    if not facts.get("n_cards"):
        fix = f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}; {_IN_CONTAINERS}"
        return Check("driver", bad, f"{takes}, but sees no card: {place}", fix)
    return Check("driver", "pass", f"{takes}: {place}")


def _no_driver(facts: Mapping[str, Any], bad: Status) -> Check:
    if "beside" in facts:
        return Check(
            "driver", bad, f"{facts['beside']} is there, but not libcuda.so, which libgpuarray opens", _INSTALL
        )
    cards = _seen()
    hint = f"though the PCI bus shows an NVIDIA card ({cards[0]})" if cards else "nor an NVIDIA card on the PCI bus"
    return Check("driver", bad, f"no NVIDIA driver: there is no libcuda.so.1, {hint}", f"{_DRIVER}, or device=cpu")


def _nvrtc(found: Mapping[str, Any], bad: Status) -> Check:
    facts = found.get("nvrtc", _NO_REPORT)
    driver = found.get("driver", {})
    if "ptx" not in facts:
        what = f"compiles nothing: {_files(facts)}" if "files" in facts else "is not found"
        return Check("nvrtc", bad, f"{what}: {facts.get('error')}", _INSTALL)
    writes = f"{dotted(facts['version'])} writes PTX {dotted(facts['ptx'])}"
    if "version" not in driver:
        return Check("nvrtc", "pass", f"{writes}: {_files(facts)}")
    takes = newest_ptx(driver["version"])
    both = f"{writes}, the driver takes up to {dotted(takes)}: {_files(facts)}"
    if tuple(facts["ptx"]) <= takes:
        return Check("nvrtc", "pass", both)
    return Check("nvrtc", bad, both, _ADVICE[222])


def _kernels(driver: Mapping[str, Any], bad: Status) -> Iterator[Check]:
    """Yield what keeps a driver from compiling PTX."""
    if "files" not in driver:
        return
    if os.environ.get("CUDA_DISABLE_PTX_JIT", "0") not in ("", "0"):
        yield Check("kernels", bad, "CUDA_DISABLE_PTX_JIT is set: the first kernel ends with 223", _ALLOW_JIT)
    # If there is a card, a kernel has been compiled for it.
    elif driver.get("jit") is False and not driver.get("n_cards"):
        found = "libnvidia-ptxjitcompiler.so.1 is not found: the first kernel ends with 221"
        yield Check("kernels", bad, found, _NO_JIT)


def _card(name: str, facts: Mapping[str, Any], bad: Status, users: Sequence[Mapping[str, str]]) -> Check:
    head = f"{facts['name']}, capability {dotted(facts['capability'])}, at {facts['place']}"
    if "free" in facts:
        head += f", {facts['free'] / 1e9:.1f} of {facts['total'] / 1e9:.1f} GB free"
    place = facts["place"].lower()
    for each in users:
        if each["gpu_bus_id"].lower().endswith(place):  # nvidia-smi writes eight digits of the domain, the driver four
            head += f"; {each['process_name']} ({each['pid']}) has {each['used_memory']}"
    if "error" not in facts:
        return Check(name, "pass", head)
    fix = _ADVICE.get(facts.get("code", 0), "nvidia-smi says more; another card: THEANO_FLAGS=device=cuda1")
    if "NVRTC" in facts["error"] and "code" not in facts:
        fix = f"an NVRTC that knows this card: {_INSTALL}"
    return Check(name, bad, f"{head}: {facts['error']}", fix)


def _users() -> list[dict[str, str]]:
    """Return the processes that compute on cards, as far as nvidia-smi lists them."""
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
    """Return the addresses of NVIDIA's cards on the PCI bus, with or without a driver."""
    found = []
    for folder in sorted(Path(_SEEN).glob("*")):
        with suppress(OSError):
            is_display = (folder / "class").read_text().startswith("0x03")
            if is_display and (folder / "vendor").read_text().strip() == "0x10de":
                found.append(folder.name)
    return found


def _files(facts: Mapping[str, Any]) -> str:
    """Return the file of a library, and the files that it passes all calls on to."""
    first, *others = facts["files"] or ["its file is not known"]
    return f"{first}, which passes on to {', '.join(others)}" if others else str(first)


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report what each library says; reports before a hanging or crashing call are kept."""
    _, facts = _open("libgpuarray.so.3", "libgpuarray.")
    report(libgpuarray=facts)
    cublas, facts = _open("libcublas.so", "libcublas.")
    report(cublas={**facts, **_ask(_cublas_version, cublas)})
    nvrtc, facts = _open("libnvrtc.so", "libnvrtc.")
    report(nvrtc={**facts, **_ask(_compiler, nvrtc)})
    cuda, facts = _open("libcuda.so", "libcuda.")
    if cuda is None and _load("libcuda.so.1") is not None:  # a name that libgpuarray does not know
        files = files_of("libcuda.")
        facts["beside"] = files[0] if files else "libcuda.so.1"
    report(driver=facts)
    report(driver={**facts, **_ask(_driver_facts, cuda), "jit": _load(_JIT) is not None})
    if cuda is not None:
        for number, card in enumerate(_cards(cuda, nvrtc)):
            report(**{f"card{number}": card})
    report(done=True)


def _open(name: str, begins: str) -> tuple[ctypes.CDLL | None, dict[str, Any]]:
    """Open a library as libgpuarray does, which also looks next to itself; return its files, or the error."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders += [os.path.join(sys.exec_prefix, folder) for folder in _FOLDERS]
    paths = [os.path.join(folder, name) for folder in folders if folder]
    found = next(filter(os.path.lexists, paths), name)
    try:
        library = ctypes.CDLL(found)
    except OSError as error:
        return None, {"error": str(error)}
    return library, {"files": files_of(begins)}


def _load(name: str) -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL(name)
    return None


def _ask(question: Callable[[ctypes.CDLL], dict[str, Any]], library: ctypes.CDLL | None) -> dict[str, Any]:
    """Return the facts about a library, or the name of a function that it lacks."""
    if library is None:
        return {}
    try:
        return question(library)
    except AttributeError as error:
        return {"error": str(error)}


def _cublas_version(cublas: ctypes.CDLL) -> dict[str, Any]:
    """Return the version by the one function that needs no card; some libraries lack it."""
    version = []
    with suppress(AttributeError):
        for kind in range(3):
            number = c_int()
            if cublas.cublasGetProperty(kind, byref(number)):
                return {}
            version.append(number.value)
    return {"version": version} if version else {}


def _compiler(nvrtc: ctypes.CDLL) -> dict[str, Any]:
    """Return the versions of NVRTC and of the PTX that it writes."""
    major = c_int()
    minor = c_int()
    nvrtc.nvrtcVersion(byref(major), byref(minor))
    ptx, error = _compile(nvrtc)
    found = re.search(rb"\.version (\d+)\.(\d+)", ptx)
    if found is None:
        return {"error": error}
    return {"version": [major.value, minor.value], "ptx": [int(each) for each in found.groups()]}


def _compile(nvrtc: ctypes.CDLL, *options: bytes) -> tuple[bytes, str]:
    """Return the PTX of a kernel that does nothing, or the error."""
    program = c_void_p()
    nvrtc.nvrtcCreateProgram(byref(program), _NOTHING, b"nothing.cu", 0, None, None)
    code = nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
    if code:
        nvrtc.nvrtcGetErrorString.restype = c_char_p
        words = nvrtc.nvrtcGetErrorString(code) or b""
        return b"", words.decode(errors="replace") or f"error {code}"
    size = c_size_t()
    nvrtc.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value, ""


def _driver_facts(cuda: ctypes.CDLL) -> dict[str, Any]:
    """Return the version of CUDA whose code a driver takes, its kernel module, and the number of its cards."""
    found: dict[str, Any] = {}
    version = cuda_version(cuda)
    if version is not None:
        found["version"] = list(version)
    with suppress(OSError), open("/proc/driver/nvidia/version") as file:  # some containers have none
        found["module"] = file.readline().strip()
    code, n_cards = count_cards(cuda)
    if code not in (0, _NO_DEVICE):
        return {**found, "error": f"cuInit: {_name_of(cuda, code)}"}
    return {**found, "n_cards": n_cards}


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
    """Return what a card is, how much of its memory is free, and whether it takes what NVRTC compiles for it."""
    name = ctypes.create_string_buffer(256)
    place = ctypes.create_string_buffer(16)
    cuda.cuDeviceGetName(name, len(name), card)
    cuda.cuDeviceGetPCIBusId(place, len(place), card)
    found: dict[str, Any] = {
        "name": name.value.decode(errors="replace"),
        "place": place.value.decode(),
        "capability": capability_of(cuda, card),
    }
    context = c_void_p()
    code = cuda.cuDevicePrimaryCtxRetain(byref(context), card) or cuda.cuCtxPushCurrent_v2(context)
    if code:
        return {**found, "error": f"cannot be opened: {_name_of(cuda, code)}"}
    free = c_size_t()
    total = c_size_t()
    cuda.cuMemGetInfo_v2(byref(free), byref(total))
    found["free"] = free.value
    found["total"] = total.value
    if nvrtc is not None:
        found |= _refusal(cuda, nvrtc, found["capability"])
    cuda.cuCtxPopCurrent_v2(byref(context))
    return found


def _refusal(cuda: ctypes.CDLL, nvrtc: ctypes.CDLL, capability: list[int]) -> dict[str, Any]:
    """Return why no kernel can be compiled for a card as libgpuarray does it; nothing if it can."""
    architecture = "compute_{}{}".format(*capability)[:10]  # libgpuarray cuts it like this
    ptx, error = _compile(nvrtc, b"-arch", architecture.encode())
    if error:
        return {"error": f"NVRTC makes no kernel of {architecture}: {error}"}
    state = c_void_p()
    binary = c_void_p()
    size = c_size_t()
    code = cuda.cuLinkCreate(0, None, None, byref(state))
    code = code or cuda.cuLinkAddData(state, _PTX, ptx + b"\0", c_size_t(len(ptx) + 1), b"nothing", 0, None, None)
    code = code or cuda.cuLinkComplete(state, byref(binary), byref(size))
    if not code:
        return {}
    return {"error": f"the driver refuses NVRTC's kernel: {_name_of(cuda, code)}", "code": code}
