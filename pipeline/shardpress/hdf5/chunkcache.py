"""Cache of decompressed chunks, shared by all reads in a process.

The chunks that hold one row may hold far more rows than one read needs. Without a cache, each of these reads would
decompress them again. If they are small together, they are not cached, because decompressing them again costs less.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from math import prod

from shardpress.hdf5.layout import Layout, grid_of

_LEAST_BYTES = 2**20  # of all chunks that hold one row


class _ChunkCache:
    """Thread-safe cache that keeps the most recently used chunks, up to a total size."""

    def __init__(self) -> None:
        self.max_bytes = 0  # disables the cache
        self._lock = threading.Lock()
        self._n_bytes = 0
        self._chunks: OrderedDict[Hashable, tuple[Future[memoryview], int]] = OrderedDict()

    def resize(self, max_bytes: int) -> None:
        """Set `max_bytes`, and drop the chunks that no longer fit."""
        with self._lock:
            self.max_bytes = max_bytes
            self._drop()

    def holds(self, layout: Layout, axis: int) -> bool:
        """Return whether chunks of a dataset stay in the cache while rows along an axis are read in order."""
        return _LEAST_BYTES <= band_bytes(layout, axis) <= self.max_bytes

    def get(self, key: Hashable, n_bytes: int, decompress: Callable[[], memoryview]) -> memoryview:
        """Return the chunk with this key. Call `decompress` if it is not in the cache.

        If several threads need the same chunk, the first one decompresses it and the others wait. If decompression
        fails, all of them raise the same error.
        """
        with self._lock:
            entry = self._chunks.get(key)
            if entry is None:
                future: Future[memoryview] = Future()
                self._chunks[key] = future, n_bytes
                self._n_bytes += n_bytes
                self._drop()
            else:
                self._chunks.move_to_end(key)
        if entry is not None:
            return entry[0].result()
        return self._decompressed(key, future, decompress)

    def _decompressed(
        self, key: Hashable, future: Future[memoryview], decompress: Callable[[], memoryview]
    ) -> memoryview:
        """Decompress a chunk, and pass the chunk or the error to the waiting threads."""
        try:
            chunk = decompress()
        except BaseException as error:
            # Do this before the waiting threads resume, so that the next read decompresses the chunk again.
            self._forget(key, future)
            future.set_exception(error)
            raise
        future.set_result(chunk)
        return chunk

    def _forget(self, key: Hashable, future: Future[memoryview]) -> None:
        with self._lock:
            entry = self._chunks.get(key)
            if entry is not None and entry[0] is future:
                del self._chunks[key]
                self._n_bytes -= entry[1]

    def _drop(self) -> None:
        """Drop the least recently used chunks until the others fit."""
        while self._chunks and self._n_bytes > self.max_bytes:
            _, (_, n_bytes) = self._chunks.popitem(last=False)
            self._n_bytes -= n_bytes


def band_bytes(layout: Layout, axis: int) -> int:
    """Return the total size of all chunks that hold one row along axis 0 or -1, in bytes."""
    grid = list(grid_of(layout.shape, layout.chunks))
    del grid[axis]
    return layout.chunk_bytes * prod(grid)


CHUNKS = _ChunkCache()
"""Cache of this process. The memory budget of a run determines the size."""
