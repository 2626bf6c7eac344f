"""How features are stored: in which dtype, rounded to what, compressed by what; and how far that moves them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import deflate
import h5py
import numpy as np

from pipeline.errors import ShardpressError
from pipeline.settings.resolve import ResolvedStorage

__all__ = ["PLAIN", "Chunked", "Storage", "TooCoarse", "storages", "write_chunked"]

_AT_ONCE = 2**12  # rows that are rounded at once: they stay in the processor's cache
_CHUNK = 2**18  # bytes of a chunk before it is compressed: HDF5 undoes a whole one for each look into it
_DIGITS = 2.0**23  # from there on float32 has whole numbers only
_LEVEL = 1  # of deflate: 4 takes twice as long to save a fortieth


class TooCoarse(ShardpressError):
    """Features cannot be stored in a dtype without more of an error than is allowed."""


class Chunked(NamedTuple):
    """Values (n_rows, n_features) that are to be stored in chunks of rows, compressed by ``gzip`` or ``lzf``."""

    values: np.ndarray
    compression: str


@dataclass(frozen=True)
class Storage:
    """How the features of a run are stored.

    Attributes
    ----------
    dtype : str
        ``float32`` or ``float16``.
    compression : str
        ``none``, ``lzf`` or ``gzip``, the bytes of equal significance beside each other.
    max_error : float or None
        How far a stored feature may be off; they are rounded so that as much of that as possible is used. None for as
        near as the dtype has it.
    """

    dtype: str = "float32"
    compression: str = "none"
    max_error: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether features are stored as they come from the encoder."""
        return self == PLAIN

    @property
    def itemsize(self) -> int:
        """Bytes of a feature before it is compressed."""
        return np.dtype(self.dtype).itemsize

    def store(self, features: np.ndarray, out: np.ndarray) -> float:
        """Put features into the form in which they are stored.

        Parameters
        ----------
        features, out : ndarray of shape (n_rows, n_features)
            As they come from the encoder, float32, NaN where they do not count; and of this dtype.

        Returns
        -------
        float
            How far one is off at most.

        Raises
        ------
        TooCoarse
            When that is more than is allowed.
        """
        error = 0.0
        for rows in _pieces(len(features), _AT_ONCE):
            out[rows] = self._rounded(features[rows])
            # In float32: of two numbers that are nearly equal the difference is exact.
            off = np.subtract(out[rows], features[rows], dtype=np.float32)
            error = max(
                error, float(np.fmax.reduce(np.abs(off, out=off), axis=None, initial=0))
            )  # which passes over NaN
        if self.max_error is not None and error > self.max_error:
            raise TooCoarse(f"{self.dtype} is off by {error:.3g}, expected {self.max_error:g} at most")
        return error

    def _rounded(self, features: np.ndarray) -> np.ndarray:
        if self.max_error is not None:
            # A power of two: no product is rounded, and trailing bits become 0, which compressors see.
            step = np.float32(2.0 ** math.floor(math.log2(2 * self.max_error)))
            with np.errstate(over="ignore"):
                few = np.rint(features / step) * step
            features = np.where(np.abs(features) < _DIGITS * step, few, features)  # float32 has no more of the others
        most = np.finfo(self.dtype).max  # beyond it float16 would have Inf, which is no feature
        return np.clip(features, -most, most)


PLAIN = Storage()


def storages(settings: ResolvedStorage) -> list[Storage]:
    """How features are to be stored, as far as their error allows it: the smallest one first."""
    compression = settings.compression
    if settings.max_feature_error is None:
        return [Storage(settings.storage_dtype or "float32", compression)]
    return [Storage(dtype, compression, settings.max_feature_error) for dtype in ("float16", "float32")]


def write_chunked(file: h5py.File, name: str, chunked: Chunked) -> None:
    """Have HDF5 store values in compressed chunks; gzip is left to libdeflate, in several threads where there are."""
    values, compression = chunked
    row_bytes = values.dtype.itemsize * values.shape[1]
    n_rows = max(1, min(len(values), _CHUNK // row_bytes))
    item = file.create_dataset(
        name,
        values.shape,
        values.dtype,
        chunks=(n_rows, values.shape[1]),
        compression=compression,
        shuffle=True,
        track_times=False,  # equal parts are equal bytes
    )
    if compression == "lzf":
        item[...] = values
        return
    chunk = np.zeros(item.chunks, values.dtype)
    for rows in _pieces(len(values), n_rows):
        piece = values[rows]
        chunk[: len(piece)], chunk[len(piece) :] = piece, 0
        shuffled = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T
        # Past HDF5's zlib, which takes three times as long and holds the lock of all threads.
        item.id.write_direct_chunk((rows.start, 0), deflate.zlib_compress(np.ascontiguousarray(shuffled), _LEVEL))


def _pieces(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
