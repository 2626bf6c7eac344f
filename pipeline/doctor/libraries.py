"""In a process of its own: what the libraries say that a CUDA device needs, opened as libgpuarray opens them.

The standard library alone, since whoever asks may have nothing else that works.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

from pipeline.doctor.ask import tell

__all__ = ["files_of", "main"]

_NOTHING = b'extern "C" __global__ void nothing() {}\n'
_MAJOR, _MINOR = 75, 76  # of a card's capability: cuda.h, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_PTX = 1  # CU_JIT_INPUT_PTX
# Where libgpuarray, in the environment's lib/, looks before it asks the system: see install_pygpu.sh.
_FOLDERS = ("lib/shardpress-gpu", "lib")
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: it is well, but sees no card
_JIT = "libnvidia-ptxjitcompiler.so.1"  # which the driver opens for the first kernel


def main() -> None:
    """Write what was found, line by line, as JSON: a driver that hangs costs no answer of the others."""
    tell(libgpuarray=_opened("libgpuarray.so.3", "libgpuarray.")[1])
    cublas, told = _opened("libcublas.so", "libcublas.")
    tell(cublas={**told, **_asked(_version_of_cublas, cublas)})
    nvrtc, told = _opened("libnvrtc.so", "libnvrtc.")
    tell(nvrtc={**told, **_asked(_compiler, nvrtc)})
    cuda, told = _opened("libcuda.so", "libcuda.")
    if cuda is None and _loaded("libcuda.so.1") is not None:
        told["beside"] = (files_of("libcuda.") or ["libcuda.so.1"])[0]  # by another name than libgpuarray's
    tell(driver=told)
    tell(driver={**told, **_asked(_version_of_driver, cuda), "jit": _loaded(_JIT) is not None})
    for number, found in enumerate(_cards(cuda, nvrtc) if cuda else ()):
        tell(**{f"card{number}": found})
    tell(done=True)


def files_of(*names: str) -> list[str]:
    """The files of this process whose names begin so; those that pass calls on to others come first."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    found = [path for path in paths if os.path.basename(path).startswith(names)]
    return sorted(found, key=lambda path: (not path.endswith(".so"), path))  # a library's own name has a version


def _opened(name: str, begins: str) -> tuple[ctypes.CDLL | None, dict[str, Any]]:
    """A library as libgpuarray finds it, which looks beside itself, too; its files, or why there is none."""
    ours = [os.path.join(sys.exec_prefix, folder) for folder in _FOLDERS]
    folders = [*filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")), *ours]
    paths = [os.path.join(folder, name) for folder in folders]
    try:
        library = ctypes.CDLL(next(filter(os.path.lexists, paths), name))
    except OSError as error:
        return None, {"error": str(error)}
    return library, {"files": files_of(begins)}


def _loaded(name: str) -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL(name)
    return None


def _asked(question: Callable[[ctypes.CDLL], dict[str, Any]], library: ctypes.CDLL | None) -> dict[str, Any]:
    """The answer, if there is a library and it knows what is asked."""
    try:
        return question(library) if library else {}
    except AttributeError as error:  # of a function that it lacks
        return {"error": str(error)}


# -- compilers ---------------------------------------------------------------------------------------------------


def _version_of_cublas(cublas: ctypes.CDLL) -> dict[str, Any]:
    """Its version, by the one call that needs no card."""
    numbers = [c_int() for _ in range(3)]
    with suppress(AttributeError):  # it need not tell
        codes = [cublas.cublasGetProperty(kind, byref(number)) for kind, number in enumerate(numbers)]
        return {} if any(codes) else {"version": [number.value for number in numbers]}
    return {}


def _compiler(nvrtc: ctypes.CDLL) -> dict[str, Any]:
    """NVRTC's version, and that of the PTX that it writes."""
    numbers = c_int(), c_int()
    nvrtc.nvrtcVersion(*map(byref, numbers))
    ptx, error = _compiled(nvrtc)
    found = re.search(rb"\.version (\d+)\.(\d+)", ptx)
    version = [number.value for number in numbers]
    return {"version": version, "ptx": [int(each) for each in found.groups()]} if found else {"error": error}


def _compiled(nvrtc: ctypes.CDLL, *options: bytes) -> tuple[bytes, str]:
    """PTX of a kernel that does nothing, or what NVRTC says instead."""
    program, size = c_void_p(), c_size_t()
    nvrtc.nvrtcCreateProgram(byref(program), _NOTHING, b"nothing.cu", 0, None, None)
    code = nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
    if code:
        nvrtc.nvrtcGetErrorString.restype = c_char_p
        return b"", (nvrtc.nvrtcGetErrorString(code) or b"").decode(errors="replace") or f"error {code}"
    nvrtc.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value, ""


# -- the driver and its cards ------------------------------------------------------------------------------------


def _version_of_driver(cuda: ctypes.CDLL) -> dict[str, Any]:
    """Up to which version of CUDA it takes code, and whether it sees cards."""
    number, n_cards = c_int(), c_int()
    cuda.cuDriverGetVersion(byref(number))
    found: dict[str, Any] = {"version": [number.value // 1000, number.value % 1000 // 10]}
    try:
        with open("/proc/driver/nvidia/version") as file:
            found["module"] = file.readline().strip()
    except OSError:  # in some containers
        pass
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(byref(n_cards))
    if code not in (0, _NO_DEVICE):
        return {**found, "error": f"cuInit: {_name_of(cuda, code)}"}
    return {**found, "n_cards": n_cards.value}


def _name_of(cuda: ctypes.CDLL, code: int) -> str:
    name = c_char_p()
    with suppress(AttributeError):
        cuda.cuGetErrorName(code, byref(name))
    return f"{name.value.decode()} ({code})" if name.value else f"error {code}"


def _cards(cuda: ctypes.CDLL, nvrtc: ctypes.CDLL | None) -> Iterator[dict[str, Any]]:
    n_cards = c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(byref(n_cards)):
        return
    for number in range(n_cards.value):
        device = c_int()
        cuda.cuDeviceGet(byref(device), number)
        yield _card(cuda, device, nvrtc)


def _card(cuda: ctypes.CDLL, device: c_int, nvrtc: ctypes.CDLL | None) -> dict[str, Any]:
    """Which it is, how much of its memory is free, and whether it takes what NVRTC compiles for it."""
    name, place = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    capability = c_int(), c_int()
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetPCIBusId(place, len(place), device)
    for number, attribute in zip(capability, (_MAJOR, _MINOR), strict=True):
        cuda.cuDeviceGetAttribute(byref(number), attribute, device)
    found: dict[str, Any] = {"name": name.value.decode(errors="replace"), "place": place.value.decode()}
    found["capability"] = [number.value for number in capability]
    context, free, total = c_void_p(), c_size_t(), c_size_t()
    code = cuda.cuDevicePrimaryCtxRetain(byref(context), device) or cuda.cuCtxPushCurrent_v2(context)
    if code:
        return {**found, "error": f"cannot be opened: {_name_of(cuda, code)}"}
    cuda.cuMemGetInfo_v2(byref(free), byref(total))
    found |= {"free": free.value, "total": total.value}
    if nvrtc is not None:
        found |= _refusal(cuda, nvrtc, found["capability"])
    cuda.cuCtxPopCurrent_v2(byref(context))
    return found


def _refusal(cuda: ctypes.CDLL, nvrtc: ctypes.CDLL, capability: list[int]) -> dict[str, Any]:
    """Why a kernel cannot be made for a card as libgpuarray makes it; nothing where it can."""
    architecture = "compute_{}{}".format(*capability)[:10]  # which is how libgpuarray cuts it
    ptx, error = _compiled(nvrtc, b"-arch", architecture.encode())
    if error:
        return {"error": f"NVRTC makes no kernel of {architecture}: {error}"}
    state, binary, size = c_void_p(), c_void_p(), c_size_t()
    code = cuda.cuLinkCreate(0, None, None, byref(state))
    code = code or cuda.cuLinkAddData(state, _PTX, ptx + b"\0", c_size_t(len(ptx) + 1), b"nothing", 0, None, None)
    code = code or cuda.cuLinkComplete(state, byref(binary), byref(size))
    return {"error": f"the driver refuses NVRTC's kernel: {_name_of(cuda, code)}", "code": code} if code else {}
