"""Storage format of features (dtype, rounding and compression), and the resulting error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import deflate
import h5py
import numpy as np

from shardpress.errors import ShardpressError
from shardpress.settings.resolve import ResolvedStorage

__all__ = ["PLAIN", "Chunked", "Storage", "TooCoarse", "storages", "write_chunked"]

_BLOCK_ROWS = 2**12  # rows to round at once; they fit into the processor's cache
_CHUNK_BYTES = 2**18  # bytes before compression; HDF5 decompresses a whole chunk for each read
_INTEGER_RANGE = 2.0**23  # float32 numbers of at least this magnitude are integers
_LEVEL = 1  # deflate level; level 4 takes twice as long and saves only 2.5 %


class TooCoarse(ShardpressError):
    """Error of a dtype that cannot store the features accurately enough."""


class Chunked(NamedTuple):
    """Values (n_rows, n_features) to store in chunks of rows, with the compression ``gzip`` or ``lzf``."""

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
        ``none``, ``lzf`` or ``gzip``. The HDF5 shuffle filter is applied before ``lzf`` and ``gzip``.
    max_error : float or None
        Largest allowed error of a stored feature. Features are rounded within this limit. If it is None, features are
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
            Results of the encoder. Bad rows are NaN.
        out : ndarray of shape (n_rows, n_features)
            Array of the storage dtype for the converted features.

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
            # If the step is a power of two, all products are exact, and the trailing bits are zeros, which compress
            # well.
            step = np.float32(2.0 ** math.floor(math.log2(2 * self.max_error)))
            with np.errstate(over="ignore"):
                rounded = np.rint(features / step) * step
            # Larger features are multiples of `step` already.
            features = np.where(np.abs(features) < _INTEGER_RANGE * step, rounded, features)
        largest = np.finfo(self.dtype).max  # larger values would become Inf in float16
        return np.clip(features, -largest, largest)


PLAIN = Storage()


def storages(settings: ResolvedStorage) -> list[Storage]:
    """Return the storage formats to try, the smallest first. The first one with an allowed error is used."""
    compression = settings.compression
    if settings.max_feature_error is None:
        return [Storage(settings.storage_dtype or "float32", compression)]
    return [Storage(dtype, compression, settings.max_feature_error) for dtype in ("float16", "float32")]


def write_chunked(file: h5py.File, name: str, chunked: Chunked) -> None:
    """Create a dataset with compressed chunks.

    For gzip, this function compresses the chunks with libdeflate, because the zlib filter of HDF5 takes three times as
    long and holds HDF5's lock during that time.
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
    """Return the bytes of a chunk after the HDF5 shuffle and gzip filters."""
    as_bytes = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize)
    shuffled = np.ascontiguousarray(as_bytes.T)
    return deflate.zlib_compress(shuffled, _LEVEL)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
