"""Calls of the driver and NVRTC as libgpuarray makes them: for children of the stub's own tests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["CUDA", "Card", "CudaError", "call", "code_of"]

CUDA = ctypes.CDLL("libcuda.so")
NVRTC = ctypes.CDLL("libnvrtc.so")
PTX = 1  # CU_JIT_INPUT_PTX


class CudaError(RuntimeError):
    """A call that gave another number than 0."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {code}")
        self.code = code


def call(name: str, *arguments: object) -> None:
    """Call the driver, or raise what it answers."""
    if code := getattr(CUDA, name)(*arguments):
        raise CudaError(name, code)


def code_of(function: Callable[..., object], *arguments: object) -> int:
    """What the driver answers to what a function calls; 0 where it takes all of it."""
    try:
        function(*arguments)
    except CudaError as error:
        return error.code
    return 0


def pointer(value: int | None = None) -> ctypes.c_void_p:
    return ctypes.c_void_p(value)


class Card:
    """The first card, with its context on this thread's stack unless that is left out."""

    def __init__(self, with_context: bool = True) -> None:
        call("cuInit", 0)
        device, self.context, self.stream = ctypes.c_int(), pointer(), pointer()
        call("cuDeviceGet", ctypes.byref(device), 0)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        if with_context:
            call("cuCtxPushCurrent_v2", self.context)
            call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def allocate(self, n_bytes: int) -> ctypes.c_void_p:
        place = pointer()
        call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(n_bytes))
        return place

    def upload(self, array: np.ndarray) -> ctypes.c_void_p:
        place = self.allocate(array.nbytes)
        source, size = pointer(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        call("cuMemcpyHtoDAsync_v2", place, source, size, self.stream)
        return place

    def download(self, place: ctypes.c_void_p, target: np.ndarray) -> np.ndarray:
        """Ask for it: nothing is waited for."""
        size = ctypes.c_size_t(target.nbytes)
        call("cuMemcpyDtoHAsync_v2", pointer(target.ctypes.data), place, size, self.stream)
        return target

    def synchronise(self) -> None:
        call("cuStreamSynchronize", self.stream)

    def kernel(self, source: str, name: str, architecture: str = "compute_75") -> ctypes.c_void_p:
        """Compile, link and load, as libgpuarray does."""
        link, image, size, module, found = pointer(), pointer(), ctypes.c_size_t(), pointer(), pointer()
        ptx = compile_ptx(source, architecture)
        call("cuLinkCreate", 0, None, None, ctypes.byref(link))
        call("cuLinkAddData", link, PTX, ptx, ctypes.c_size_t(len(ptx)), b"kernel code", 0, None, None)
        call("cuLinkComplete", link, ctypes.byref(image), ctypes.byref(size))
        copy = ctypes.string_at(image, size.value)
        call("cuLinkDestroy", link)
        call("cuModuleLoadData", ctypes.byref(module), copy)
        call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return found

    def launch(
        self,
        kernel: ctypes.c_void_p,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[ctypes._SimpleCData],
    ) -> None:
        """With 4 bytes for each of a block's threads to share."""
        shared = 4 * int(np.prod(block))
        sides = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        places = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        call("cuLaunchKernel", kernel, *sides, shared, self.stream, places, None)


def compile_ptx(source: str, architecture: str) -> bytes:
    """By NVRTC; its log is the error's text."""
    program, size = pointer(), ctypes.c_size_t()
    assert NVRTC.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(b"-arch", architecture.encode())
    if NVRTC.nvrtcCompileProgram(program, 2, options):
        NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        NVRTC.nvrtcGetProgramLog(program, log)
        raise ValueError(log.value.decode())
    NVRTC.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    NVRTC.nvrtcGetPTX(program, ptx)
    NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.raw
