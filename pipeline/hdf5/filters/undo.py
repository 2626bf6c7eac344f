"""One chunk's bytes with its filters undone, the last one first.

Deflate is RFC 1950's, LZF is LibLZF's; shuffle and Fletcher's sum are HDF5's own, as in its H5Zshuffle.c and
H5checksum.c. None of it holds Python's lock for long.
"""

from collections.abc import Sequence

import deflate
import numpy as np

from pipeline.hdf5.filters import lzf
from pipeline.hdf5.filters.codecs import REGISTERED
from pipeline.hdf5.limits import FILTERS

__all__ = ["fletcher32", "undone"]

GZIP, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000

_SUM_BYTES = 4
_WORDS = 2**13
_WEIGHTS = np.arange(_WORDS, 0, -1, dtype=np.float64)


def undone(data: memoryview, filters: Sequence[tuple[int, Sequence[int]]], mask: int, n_bytes: int) -> memoryview:
    """The bytes as they were before they were filtered.

    Parameters
    ----------
    data : memoryview
        As stored.
    filters : sequence of (int, sequence of int)
        Codes and parameters, in the order in which they were applied.
    mask : int
        Bit i says that filter i was left out for this chunk.
    n_bytes : int
        What must come out.

    Raises
    ------
    ValueError
        When something else would: a damaged chunk, a wrong checksum.
    """
    for i, (code, parameters) in reversed(list(enumerate(filters))):
        if mask >> i & 1:
            continue
        try:
            data = _UNDO[code](data, parameters, n_bytes + _SUM_BYTES)  # a sum may have been added before
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # each codec has a kind of its own
            raise ValueError(f"{FILTERS[code]}: {error}") from error
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes, expected {n_bytes}")
    return data


def _inflated(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    try:
        # libdeflate, which takes a third of zlib's time, and `most` bytes whatever the stream unfolds to.
        return memoryview(deflate.zlib_decompress(data, most))
    except deflate.DeflateError as error:
        raise ValueError(
            f"compressed data that are damaged or unfold to too much, expected {most} bytes at most"
        ) from error


def _expanded(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    done = np.empty(most, dtype=np.uint8)
    return done[: lzf.undo_into(data, done.data)].data


def _unshuffled(data: memoryview, values: Sequence[int], _: int) -> memoryview:
    """Undo the sorting of bytes by their place in an element; what is no whole element stands at the end."""
    if len(values) != 1 or not values[0]:
        raise ValueError("shuffled, but not told by what size")
    (size,) = values
    n = len(data) // size if size > 1 else 0
    if n <= 1:
        return data
    source = np.frombuffer(data, dtype=np.uint8)
    done = np.empty_like(source)
    elements = done[: n * size].reshape(n, size)
    for i in range(size):  # several times faster than the transpose at once
        elements[:, i] = source[i * n : (i + 1) * n]
    done[n * size :] = source[n * size :]
    return done.data


def _verified(data: memoryview, _: Sequence[int], __: int) -> memoryview:
    """Without the sum at the end, which must be right."""
    body, stored = data[:-_SUM_BYTES], int.from_bytes(data[-_SUM_BYTES:], "little")
    summed = fletcher32(body)
    # Until 1.6.2, HDF5 wrote the two bytes of each half the other way round, and such files are still read.
    older = (summed & 0x00FF00FF) << 8 | (summed >> 8) & 0x00FF00FF
    if len(data) < _SUM_BYTES or stored not in (summed, older):
        raise ValueError(f"checksum {stored:#010x}, expected {summed:#010x} for these bytes")
    return body


def fletcher32(data: memoryview) -> int:
    """HDF5's sum over big-endian words of 16 bits, the last one filled up with zeros.

    The lower half is the sum of the words; the upper half that of its steps, in which word i of n counts n - i times.
    Both are modulo 65535, which stands for 0 unless all words are 0.
    """
    words = np.frombuffer(data if len(data) % 2 == 0 else bytes(data) + b"\0", dtype=">u2")
    low = high = 0
    for first in range(0, len(words), _WORDS):
        part = words[first : first + _WORDS].astype(np.float64)  # exact: all sums stay below 2**53
        high += low * len(part) + int(part @ _WEIGHTS[_WORDS - len(part) :])
        low += int(part.sum())
    return _folded(high) << 16 | _folded(low)


def _folded(total: int) -> int:
    return total % 65535 or (65535 if total else 0)


_UNDO = {GZIP: _inflated, SHUFFLE: _unshuffled, FLETCHER32: _verified, LZF: _expanded} | REGISTERED
