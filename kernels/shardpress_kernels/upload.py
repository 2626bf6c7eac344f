"""Copies of rows and minibatches to the memory of the active device, which is not the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from shardpress_kernels import MOST_RESIDENT, backend

# A copy to the device takes as long as several kernels of a step, and may wait until the device is idle. Therefore
# several minibatches are sent at once. Their number is limited to what a slow device processes in a second or two,
# because signals and progress reports have to wait for the device.
MAX_MINIBATCHES = 32
"""Largest number of minibatches that are sent at once."""
_MAX_BYTES = 2**24
_MAX_FLOPS = 2**35


class Pieces(Protocol):
    """Rows of shape (n_rows, n_inputs) in consecutive pieces; `len` returns the number of rows."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


def n_minibatches_at_once(batch_size: int, row_bytes: int, flops_per_row: int) -> int:
    """Return how many minibatches to send to a device at once: between 1 and `MAX_MINIBATCHES`."""
    n_rows = min(_MAX_BYTES // row_bytes, _MAX_FLOPS // flops_per_row)
    return max(1, min(MAX_MINIBATCHES, n_rows // batch_size))


def upload_rows(pieces: Pieces, n_inputs: int, dtype: np.dtype, name: str) -> Any:
    """Put rows (n, n_inputs) on the active device piece by piece, so that the host never holds all of them.

    Return a shared variable. Raise `ValueError` if the rows take more than `MOST_RESIDENT` bytes.
    """
    n_bytes = len(pieces) * n_inputs * np.dtype(dtype).itemsize
    if n_bytes > MOST_RESIDENT:
        raise ValueError(f"the rows to keep on the device have {n_bytes} bytes, expected at most {MOST_RESIDENT}")
    rows = _empty((len(pieces), n_inputs), dtype)
    start = 0
    for piece in pieces:
        stop = start + len(piece)
        rows[start:stop].write(np.ascontiguousarray(piece))
        start = stop
    gpuarray = backend.load().gpuarray
    return gpuarray.gpuarray_shared_constructor(rows, name=name, borrow=True, target=None)


class TwoBuffers:
    """Two buffers in the memory of the active device, which receive arrays alternately.

    One buffer can be filled while steps use the other. Arrays of the same dtype and row shape reuse the memory.
    """

    def __init__(self) -> None:
        self._next: Any = None
        self._other: Any = None

    def put(self, array: np.ndarray) -> Any:
        """Copy an array of shape (n, ...) to the device; the copy is valid until the call after the next one."""
        buffer = self._next
        if buffer is None or not _has_room(buffer, array):
            buffer = _empty(array.shape, array.dtype)
        self._next = self._other
        self._other = buffer
        copy = buffer[: len(array)]
        copy.write(np.ascontiguousarray(array))
        return copy


def _has_room(buffer: Any, array: np.ndarray) -> bool:
    is_same_kind = buffer.dtype == array.dtype and buffer.shape[1:] == array.shape[1:]
    return is_same_kind and len(buffer) >= len(array)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    gpuarray = backend.load().gpuarray
    return gpuarray.pygpu.empty(shape, dtype=dtype, context=gpuarray.get_context(None))
