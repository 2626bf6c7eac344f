"""Calls of the CUDA driver and NVRTC, as libgpuarray makes them, for tests of the emulated card itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

CUDA = ctypes.CDLL("libcuda.so")
NVRTC = ctypes.CDLL("libnvrtc.so")
PTX = 1  # CU_JIT_INPUT_PTX


class CudaError(RuntimeError):
    """Raised if a call returns an error number."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {code}")
        self.code = code


def call(name: str, *arguments: object) -> None:
    """Call the driver. Raise `CudaError` if it returns an error."""
    code = getattr(CUDA, name)(*arguments)
    if code:
        raise CudaError(name, code)


def code_of(function: Callable[..., object], *arguments: object) -> int:
    """Return the error number of the first failing call of a function, or 0 if no call fails."""
    try:
        function(*arguments)
    except CudaError as error:
        return error.code
    return 0


def pointer(value: int | None = None) -> ctypes.c_void_p:
    return ctypes.c_void_p(value)


class Card:
    """The first card. By default, its context is made current in this thread."""

    def __init__(self, with_context: bool = True) -> None:
        device = ctypes.c_int()
        self.context = pointer()
        self.stream = pointer()
        call("cuInit", 0)
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
        source = pointer(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        call("cuMemcpyHtoDAsync_v2", place, source, size, self.stream)
        return place

    def download(self, place: ctypes.c_void_p, target: np.ndarray) -> np.ndarray:
        """Start a copy to the host, without waiting for it."""
        size = ctypes.c_size_t(target.nbytes)
        call("cuMemcpyDtoHAsync_v2", pointer(target.ctypes.data), place, size, self.stream)
        return target

    def synchronise(self) -> None:
        call("cuStreamSynchronize", self.stream)

    def kernel(self, source: str, name: str, architecture: str = "compute_75") -> ctypes.c_void_p:
        """Compile, link and load a kernel, as libgpuarray does."""
        image = link_ptx(compile_ptx(source, architecture))
        module = pointer()
        function = pointer()
        call("cuModuleLoadData", ctypes.byref(module), image)
        call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(
        self,
        kernel: ctypes.c_void_p,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[ctypes._SimpleCData],
    ) -> None:
        """Launch a kernel with 4 bytes of shared memory for each thread of a block."""
        shared = 4 * int(np.prod(block))
        sides = [*in_three_dimensions(grid), *in_three_dimensions(block)]
        addresses = [ctypes.addressof(argument) for argument in arguments]
        places = (ctypes.c_void_p * len(arguments))(*addresses)
        call("cuLaunchKernel", kernel, *sides, shared, self.stream, places, None)


def in_three_dimensions(sizes: Sequence[int]) -> list[int]:
    """Return the sizes of a grid or block, with 1 for each missing dimension."""
    return [*sizes, *[1] * (3 - len(sizes))]


def link_ptx(ptx: bytes) -> bytes:
    """Return the image that the driver links from PTX."""
    link = pointer()
    image = pointer()
    size = ctypes.c_size_t()
    call("cuLinkCreate", 0, None, None, ctypes.byref(link))
    call("cuLinkAddData", link, PTX, ptx, ctypes.c_size_t(len(ptx)), b"kernel code", 0, None, None)
    call("cuLinkComplete", link, ctypes.byref(image), ctypes.byref(size))
    copy = ctypes.string_at(image, size.value)
    call("cuLinkDestroy", link)
    return copy


def compile_ptx(source: str, architecture: str) -> bytes:
    """Compile a kernel with NVRTC. If this fails, raise `ValueError` with the log."""
    program = pointer()
    size = ctypes.c_size_t()
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
