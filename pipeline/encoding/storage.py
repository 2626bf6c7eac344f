"""Storage of features: their dtype, rounding and compression, and the error that this causes."""

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

_BLOCK_ROWS = 2**12  # rows that are rounded at once, few enough for the processor's cache
_CHUNK_BYTES = 2**18  # bytes before compression; HDF5 decompresses a whole chunk for each read
_INTEGER_RANGE = 2.0**23  # from this magnitude on, float32 holds only integers
_LEVEL = 1  # level of deflate; level 4 takes twice as long and saves only 2.5 %


class TooCoarse(ShardpressError):
    """Error of features that cannot be stored in a dtype within the allowed error."""


class Chunked(NamedTuple):
    """Values (n_rows, n_features) to store in chunks of rows, compressed by ``gzip`` or ``lzf``."""

    values: np.ndarray
    compression: str


@dataclass(frozen=True)
class Storage:
    """Storage format of the features of a run.

    Attributes
    ----------
    dtype : str
        ``float32`` or ``float16``.
    compression : str
        ``none``, ``lzf`` or ``gzip``; the last two after HDF5's shuffle filter.
    max_error : float or None
        Largest allowed error of a stored feature. Features are rounded within this limit. If it is None, they are
        rounded to the nearest value of the dtype.
    """

    dtype: str = "float32"
    compression: str = "none"
    max_error: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether features are stored exactly as the encoder returns them."""
        return self == PLAIN

    @property
    def itemsize(self) -> int:
        """Bytes of a feature before compression."""
        return np.dtype(self.dtype).itemsize

    def store(self, features: np.ndarray, out: np.ndarray) -> float:
        """Convert features to their stored form.

        Parameters
        ----------
        features : ndarray of shape (n_rows, n_features), float32
            Results of the encoder, NaN in bad rows.
        out : ndarray of shape (n_rows, n_features), this dtype
            Array for the converted features.

        Returns
        -------
        float
            Largest difference between a stored feature and the encoder's result.

        Raises
        ------
        TooCoarse
            If the error is larger than allowed.
        """
        error = 0.0
        for rows in _slices(len(features), _BLOCK_ROWS):
            out[rows] = self._round(features[rows])
            # The difference of two nearly equal numbers is exact in float32.
            difference = np.subtract(out[rows], features[rows], dtype=np.float32)
            np.abs(difference, out=difference)
            largest = np.fmax.reduce(difference, axis=None, initial=0)  # ignores NaN
            error = max(error, float(largest))
        if self.max_error is not None and error > self.max_error:
            raise TooCoarse(f"{self.dtype} has a rounding error of {error:.3g}, expected at most {self.max_error:g}")
        return error

    def _round(self, features: np.ndarray) -> np.ndarray:
        if self.max_error is not None:
            # With a power of two all products are exact, and trailing zero bits remain, which compress well.
            step = np.float32(2.0 ** math.floor(math.log2(2 * self.max_error)))
            with np.errstate(over="ignore"):
                rounded = np.rint(features / step) * step
            # Larger features have no bits below `step`.
            features = np.where(np.abs(features) < _INTEGER_RANGE * step, rounded, features)
        largest = np.finfo(self.dtype).max  # float16 would turn larger values into Inf
        return np.clip(features, -largest, largest)


PLAIN = Storage()


def storages(settings: ResolvedStorage) -> list[Storage]:
    """Return the storage formats to try, the smallest first. The error of the features decides which one is used."""
    compression = settings.compression
    if settings.max_feature_error is None:
        return [Storage(settings.storage_dtype or "float32", compression)]
    return [Storage(dtype, compression, settings.max_feature_error) for dtype in ("float16", "float32")]


def write_chunked(file: h5py.File, name: str, chunked: Chunked) -> None:
    """Create a dataset with compressed chunks.

    For gzip, this function compresses the chunks with libdeflate, because HDF5's zlib takes three times as long and
    holds HDF5's lock meanwhile.
    """
    values = chunked.values
    dataset = _create_chunked(file, name, chunked)
    if chunked.compression == "lzf":
        dataset[...] = values
        return
    chunk = np.zeros(dataset.chunks, values.dtype)
    for rows in _slices(len(values), len(chunk)):
        n_rows = rows.stop - rows.start
        chunk[:n_rows] = values[rows]
        chunk[n_rows:] = 0
        dataset.id.write_direct_chunk((rows.start, 0), _compress(chunk))


def _create_chunked(file: h5py.File, name: str, chunked: Chunked) -> h5py.Dataset:
    n_rows, n_features = chunked.values.shape
    dtype = chunked.values.dtype
    chunk_rows = max(1, min(n_rows, _CHUNK_BYTES // (dtype.itemsize * n_features)))
    return file.create_dataset(
        name,
        (n_rows, n_features),
        dtype,
        chunks=(chunk_rows, n_features),
        compression=chunked.compression,
        shuffle=True,
        track_times=False,  # so that equal parts have equal bytes
    )


def _compress(chunk: np.ndarray) -> bytearray:
    """Return the bytes of a chunk after HDF5's filters shuffle and gzip."""
    as_bytes = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize)
    shuffled = np.ascontiguousarray(as_bytes.T)
    return deflate.zlib_compress(shuffled, _LEVEL)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
