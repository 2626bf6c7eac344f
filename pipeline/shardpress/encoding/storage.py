"""Storage format of features (dtype, rounding and compression), and the resulting error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import deflate
import h5py
import numpy as np

from shardpress.settings.config import StorageSettings

_BLOCK_ROWS = 2**12  # rows to round at once; they fit into the processor's cache
_CHUNK_BYTES = 2**18  # bytes before compression; HDF5 decompresses a whole chunk for each read
_LEVEL = 1  # deflate level; level 4 takes twice as long and saves only 2.5 %


@dataclass(frozen=True)
class Storage:
    """Storage format of the features of a run."""

    dtype: str = "float32"  # ``float32`` or ``float16``
    compression: str = "none"  # ``none``, ``lzf`` or ``gzip``, the latter two after the shuffle filter

    @property
    def is_plain(self) -> bool:
        """Whether features are stored exactly as the encoder returns them."""
        return self == PLAIN

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def store(self, features: np.ndarray, out: np.ndarray) -> float:
        """Convert float32 features to their stored form in `out`; return the largest difference, which ignores NaN."""
        error = 0.0
        largest_value = np.finfo(self.dtype).max
        for rows in _slices(len(features), _BLOCK_ROWS):
            # Larger values would become Inf in float16.
            out[rows] = np.clip(features[rows], -largest_value, largest_value)
            # The difference of two nearly equal numbers is exact in float32.
            difference = np.subtract(out[rows], features[rows], dtype=np.float32)
            np.abs(difference, out=difference)
            largest = np.fmax.reduce(difference, axis=None, initial=0)  # ignores NaN
            error = max(error, float(largest))
        return error


PLAIN = Storage()


def storage_of(settings: StorageSettings) -> Storage:
    return Storage(settings.storage_dtype, settings.compression)


def write_chunked(file: h5py.File, name: str, values: np.ndarray, compression: str) -> None:
    """Create a dataset (n_rows, n_features) with chunks of rows, and with the compression ``gzip`` or ``lzf``.

    For gzip, libdeflate compresses the chunks, because the zlib filter of HDF5 takes three times as long and holds
    HDF5's lock during that time.
    """
    n_rows, n_features = values.shape
    chunk_rows = max(1, min(n_rows, _CHUNK_BYTES // (values.itemsize * n_features)))
    dataset = file.create_dataset(
        name,
        values.shape,
        values.dtype,
        chunks=(chunk_rows, n_features),
        compression=compression,
        shuffle=True,
        track_times=False,  # so that equal parts have equal bytes
    )
    if compression == "lzf":
        dataset[...] = values
        return
    chunk = np.zeros(dataset.chunks, values.dtype)
    for rows in _slices(len(values), len(chunk)):
        n_filled = rows.stop - rows.start
        chunk[:n_filled] = values[rows]
        chunk[n_filled:] = 0
        dataset.id.write_direct_chunk((rows.start, 0), _compress(chunk))


def _compress(chunk: np.ndarray) -> bytearray:
    """Return the bytes of a chunk after the HDF5 shuffle and gzip filters."""
    as_bytes = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize)
    shuffled = np.ascontiguousarray(as_bytes.T)
    return deflate.zlib_compress(shuffled, _LEVEL)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
