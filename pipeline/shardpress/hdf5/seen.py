"""The bytes of a file that decide its description: those that libhdf5 has read. Most of them are not values of rows.

libhdf5 reads a file step by step, and each step follows from the bytes before it. A file of the same size, with the
same bytes at these places, therefore has the same description, and need not be given to libhdf5.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash

from shardpress.hdf5.files import read_at

_MOST_BYTES = 2**20  # of a file
_MOST_PLACES = 2**16  # of values
_AHEAD = 512  # bytes that libhdf5 reads of an object whose size it does not know yet


@dataclass(frozen=True)
class Seen:
    """Places that libhdf5 has read, and a digest of their bytes."""

    places: tuple[tuple[int, int], ...]  # first byte, and number of bytes
    digest: str

    def is_in(self, descriptor: int) -> bool:
        """Return whether an open file, whose size is the same, has the same bytes at these places."""
        return _digest_of(read_at(descriptor, start, n_bytes) for start, n_bytes in self.places) == self.digest


class Reads:
    """Record of what libhdf5 reads from a file."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []
        self._n_bytes = 0

    def add(self, start: int, piece: memoryview) -> None:
        self._n_bytes += len(piece)
        if self._n_bytes <= _MOST_BYTES:
            self._pieces.append((start, bytes(piece)))

    def seen(self, values: np.ndarray) -> Seen | None:
        """Return what was read, or None if it was too much.

        `values` are the places (n, 2) of the values of rows and extras, in order and apart from each other. They count
        only if a read has started there: other reads have reached them because libhdf5 reads ahead.
        """
        if self._n_bytes > _MOST_BYTES or len(values) > _MOST_PLACES:
            return None
        offsets, sizes = values.T.tolist()
        pieces: list[tuple[int, bytes]] = []
        for start, piece in self._pieces:
            begin = start
            if len(piece) <= _AHEAD:
                for i in range(bisect_right(offsets, start), bisect_left(offsets, start + len(piece))):
                    pieces.append((begin, piece[begin - start : offsets[i] - start]))
                    begin = offsets[i] + sizes[i]
            pieces.append((begin, piece[begin - start :]))
        image = _joined(pieces)
        places = tuple((start, len(content)) for start, content in image)
        return Seen(places, _digest_of(content for _, content in image))


def _joined(pieces: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytearray]]:
    """Return pieces of a file in order, each byte once."""
    image: list[tuple[int, bytearray]] = []
    for start, piece in sorted(pieces):
        first, content = image[-1] if image else (0, bytearray())
        if image and start <= first + len(content):
            content += piece[first + len(content) - start :]
        elif piece:
            image.append((start, bytearray(piece)))
    return image


def _digest_of(pieces: Iterable[bytes | bytearray]) -> str:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return str(digest.hexdigest())
