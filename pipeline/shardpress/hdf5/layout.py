"""Layouts of datasets: where their bytes are in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)  # there can be 100,000
class Layout:
    """Location of the bytes of a dataset."""

    name: str  # path in the file
    shape: tuple[int, ...]
    dtype: np.dtype  # as stored
    kind: str  # ``contiguous``, ``chunked``, ``inline`` (in the metadata), or ``asked`` (from the child)
    offset: int = 0  # of a contiguous dataset
    chunks: tuple[int, ...] = ()  # shape of a chunk
    filters: tuple[tuple[int, tuple[int, ...]], ...] = ()  # codes and parameters, in the order of their application
    # Offset, size and filter mask of every chunk: shape (3, n_chunks), int64, in C order of the chunk grid. The order
    # is arbitrary if `kind` is ``asked``.
    index: np.ndarray | None = None
    data: bytes = b""  # values of an ``inline`` dataset

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Decompressed size of one chunk in bytes. Chunks at the edges have the same size."""
        return prod(self.chunks) * self.dtype.itemsize


def bytes_of(array: np.ndarray) -> np.ndarray:
    """Return a flat uint8 view of an array."""
    return array.reshape(-1).view(np.uint8)


def grid_of(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Return the number of chunks along each axis. Raise `ValueError` if the ranks differ."""
    return tuple(-(-n // size) for n, size in zip(shape, chunks, strict=True))
