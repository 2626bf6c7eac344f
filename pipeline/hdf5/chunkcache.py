"""Cache of decompressed chunks, which several reads of one process share.

A chunk may be far larger than the rows that are read at once. Without a cache, it would be decompressed again for each
of these reads. Small chunks are not kept: decompressing them again costs less than keeping them.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from math import prod

from pipeline.hdf5.layout import Layout, grid_of

__all__ = ["CHUNKS", "ChunkCache", "band_bytes"]

_LEAST_BYTES = 2**20  # bytes of a chunk that is worth keeping


class ChunkCache:
    """Cache of the chunks that were used last, up to a number of bytes; safe for threads.

    Attributes
    ----------
    max_bytes : int
        Bytes of all chunks in the cache. 0 keeps none.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._n_bytes = 0
        self._chunks: OrderedDict[Hashable, tuple[Future[memoryview], int]] = OrderedDict()

    def resize(self, max_bytes: int) -> None:
        """Set the number of bytes, and drop chunks that do not fit."""
        with self._lock:
            self.max_bytes = max_bytes
            self._drop()

    def holds(self, layout: Layout, axis: int) -> bool:
        """Return whether chunks of a dataset stay in the cache while its rows along an axis are read in order."""
        return layout.chunk_bytes >= _LEAST_BYTES and band_bytes(layout, axis) <= self.max_bytes

    def get(self, key: Hashable, n_bytes: int, decompress: Callable[[], memoryview]) -> memoryview:
        """Return the chunk with this key, and decompress it if it is not in the cache.

        Threads that need the same chunk at the same time wait for the first of them, and raise the same error.
        """
        with self._lock:
            found = self._chunks.get(key)
            if found is None:
                future: Future[memoryview] = Future()
                self._chunks[key] = future, n_bytes
                self._n_bytes += n_bytes
                self._drop()
            else:
                self._chunks.move_to_end(key)
        if found is not None:
            return found[0].result()
        return self._decompressed(key, future, decompress)

    def _decompressed(
        self, key: Hashable, future: Future[memoryview], decompress: Callable[[], memoryview]
    ) -> memoryview:
        """Return a chunk, and pass the chunk or the error to the threads that wait for it."""
        try:
            chunk = decompress()
        except BaseException as error:
            self._forget(key, future)  # first, so that the next read decompresses it again
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
        """Drop the chunks that were used the longest time ago, until the others fit."""
        while self._chunks and self._n_bytes > self.max_bytes:
            _, (_, n_bytes) = self._chunks.popitem(last=False)
            self._n_bytes -= n_bytes


def band_bytes(layout: Layout, axis: int) -> int:
    """Return the bytes of all chunks that hold one row along an axis, 0 or -1."""
    grid = list(grid_of(layout.shape, layout.chunks))
    del grid[axis]
    return layout.chunk_bytes * prod(grid)


CHUNKS = ChunkCache()
"""The cache of this process; the memory budget of a run sets its size."""
