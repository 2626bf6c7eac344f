"""Rows on their way to a device's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from kernels import MOST_RESIDENT, backend

__all__ = ["Pieces", "TwoBuffers", "uploaded"]


class Pieces(Protocol):
    """Rows (n_rows, n_inputs) that come piece by piece, in their order; its length is how many they are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


def uploaded(pieces: Pieces, n_inputs: int, dtype: np.dtype, name: str) -> Any:
    """Put rows on the active device, which is not the CPU, one piece after the other: the host never has them all.

    Raises
    ------
    ValueError
        When they take more than `kernels.MOST_RESIDENT` bytes.
    """
    if (n_bytes := len(pieces) * n_inputs * np.dtype(dtype).itemsize) > MOST_RESIDENT:
        raise ValueError(f"{n_bytes} bytes of rows to be kept on a device, expected {MOST_RESIDENT} at most")
    gpuarray = backend.load().gpuarray
    whole = gpuarray.pygpu.empty((len(pieces), n_inputs), dtype=dtype, context=gpuarray.get_context(None))
    start = 0
    for piece in pieces:
        whole[start : start + len(piece)].write(np.ascontiguousarray(piece))
        start += len(piece)
    return gpuarray.gpuarray_shared_constructor(whole, name=name, borrow=True, target=None)


class TwoBuffers:
    """Memory of the active device, which is not the CPU, that arrays go to by turns.

    So one can be on its way while steps are taken on the other; and each of a kind goes where the last but one was.
    """

    def __init__(self) -> None:
        self._buffers: list[Any] = [None, None]

    def put(self, array: np.ndarray) -> Any:
        """An array's values (n, ...) on the device, where they stay until the next but one is put."""
        self._buffers.reverse()
        kept = self._buffers[0]
        if kept is None or kept.dtype != array.dtype or kept.shape[1:] != array.shape[1:] or len(kept) < len(array):
            gpuarray = backend.load().gpuarray
            kept = gpuarray.pygpu.empty(array.shape, dtype=array.dtype, context=gpuarray.get_context(None))
            self._buffers[0] = kept
        there = kept[: len(array)]
        there.write(np.ascontiguousarray(array))
        return there
