"""Calls of the CUDA driver, as libgpuarray makes them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

CUDA = ctypes.CDLL("libcuda.so")


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


class Card:
    """The first card, whose context is made current in this thread."""

    def __init__(self) -> None:
        device = ctypes.c_int()
        self.context = ctypes.c_void_p()
        self.stream = ctypes.c_void_p()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(device), 0)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        call("cuCtxPushCurrent_v2", self.context)
        call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def allocate(self, n_bytes: int) -> ctypes.c_void_p:
        place = ctypes.c_void_p()
        call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(n_bytes))
        return place

    def upload(self, array: np.ndarray) -> ctypes.c_void_p:
        place = self.allocate(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        call("cuMemcpyHtoDAsync_v2", place, source, size, self.stream)
        return place

    def download(self, place: ctypes.c_void_p, target: np.ndarray) -> np.ndarray:
        """Start a copy to the host, without waiting for it."""
        size = ctypes.c_size_t(target.nbytes)
        call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(target.ctypes.data), place, size, self.stream)
        return target

    def synchronise(self) -> None:
        call("cuStreamSynchronize", self.stream)
