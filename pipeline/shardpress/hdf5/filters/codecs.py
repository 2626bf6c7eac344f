"""Decode filtered chunks with libraries that release the GIL. The filters are applied in reverse order.

Shuffle and the Fletcher checksum follow H5Zshuffle.c and H5checksum.c of HDF5, and the blocks of lz4 follow the plugin
H5Zlz4.c. LibLZF takes 2 to 10 times as long as our decoder of LZF. The child decodes all other filters (`plugins`).

No function returns more bytes than allowed, or holds the GIL for long.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from shardpress.hdf5.filters import lzf

GZIP = 1
SHUFFLE = 2
FLETCHER32 = 3
LZF = 32000
_BLOSC = 32001

_SNAPPY = 3  # number of this codec in Blosc
_SUM_BYTES = 4
_MOST_ADDED = 2**10  # bytes
_WORDS = 2**13  # words of a checksum that are added at a time
_WEIGHTS = np.arange(_WORDS, 0, -1, dtype=np.float64)
_MOST_BLOCKS = 2**16  # blocks in a chunk; no writer creates more

Filters = tuple[tuple[int, tuple[int, ...]], ...]
"""Codes and parameters of the filters of a dataset, in the order of their application."""
Decoder = Callable[[memoryview, Sequence[int], int], memoryview]
"""Function that decodes stored bytes, given the filter parameters and the maximum number of decoded bytes."""


@dataclass(frozen=True)
class _Filter:
    """A filter that this process decodes."""

    name: str
    decode: Decoder
    package: str | None = None  # Python package that `decode` needs


def needs_child(code: int, values: Sequence[int]) -> bool:
    """Return whether only the child can decode a filter with these parameters."""
    return code not in FILTERS or code in MISSING or (code == _BLOSC and list(values[6:7]) == [_SNAPPY])


# -- standard HDF5 filters, and LZF ------------------------------------------------------------------------------


def _from_gzip(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    import deflate  # programs that only read features or apply a model do not need this package

    try:
        # libdeflate takes a third of zlib's time, and never allocates more than `most` bytes.
        return memoryview(deflate.zlib_decompress(data, most))
    except deflate.DeflateError as error:
        raise ValueError(f"damaged, or decompresses to more than the expected {most} bytes") from error


def _from_lzf(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    done = np.empty(most, dtype=np.uint8)
    n_bytes = lzf.undo_into(data, done.data)
    return done[:n_bytes].data


def _from_shuffle(data: memoryview, values: Sequence[int], _: int) -> memoryview:
    """Undo shuffle, which sorts bytes by their position in an element. Bytes of an incomplete element are unchanged."""
    if len(values) != 1 or not values[0]:
        raise ValueError("the shuffle filter has no element size")
    itemsize = values[0]
    n_elements = len(data) // itemsize
    if itemsize == 1 or n_elements <= 1:
        return data
    source = np.frombuffer(data, dtype=np.uint8)
    done = np.empty_like(source)
    end = n_elements * itemsize
    elements = done[:end].reshape(n_elements, itemsize)
    for i in range(itemsize):  # several times faster than one transpose
        elements[:, i] = source[i * n_elements : (i + 1) * n_elements]
    done[end:] = source[end:]
    return done.data


def _from_fletcher32(data: memoryview, _: Sequence[int], __: int) -> memoryview:
    body = data[:-_SUM_BYTES]
    stored = int.from_bytes(data[-_SUM_BYTES:], "little")
    summed = _fletcher32(body)
    # HDF5 up to 1.6.2 swapped the two bytes of each half. HDF5 still accepts such files.
    older = (summed & 0x00FF00FF) << 8 | (summed >> 8) & 0x00FF00FF
    if len(data) < _SUM_BYTES or stored not in (summed, older):
        raise ValueError(f"checksum {stored:#010x}, expected {summed:#010x} for these bytes")
    return body


def _fletcher32(data: memoryview) -> int:
    """Return HDF5's Fletcher checksum of big-endian 16-bit words. The last word is padded with zeros.

    The lower half is the sum of the words. In the upper half, word i of n has the weight n - i. Both sums are modulo
    65535, but a result of 0 is stored as 65535 unless all words are 0.
    """
    if len(data) % 2:
        data = memoryview(bytes(data) + b"\0")
    words = np.frombuffer(data, dtype=">u2")
    low = 0
    high = 0
    for first in range(0, len(words), _WORDS):
        part = words[first : first + _WORDS].astype(np.float64)  # exact: all sums stay below 2**53
        weights = _WEIGHTS[_WORDS - len(part) :]
        high += low * len(part) + int(part @ weights)
        low += int(part.sum())
    return _fold(high) << 16 | _fold(low)


def _fold(total: int) -> int:
    if total == 0:
        return 0
    return total % 65535 or 65535


# -- registered filters ------------------------------------------------------------------------------------------


def _from_zstd(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    import zstandard

    n_bytes = zstandard.get_frame_parameters(data).content_size  # if the frame has a size, the library ignores `most`
    if most < n_bytes != zstandard.CONTENTSIZE_UNKNOWN:
        raise ValueError(f"decompresses to {n_bytes} bytes, expected at most {most}")
    return memoryview(zstandard.ZstdDecompressor().decompress(data, max_output_size=most))


@cache
def _blosc() -> Any:
    import blosc

    blosc.set_nthreads(1)  # the driver uses its own threads
    blosc.set_releasegil(True)
    return blosc


def _from_blosc(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    """Decode a Blosc 1 buffer. The header has the sizes before and after compression."""
    n_bytes, n_block, n_stored = struct.unpack_from("<3I", data, 4)
    _check_blocks(n_bytes, n_block, most)
    stored = bytes(data[:n_stored])
    if n_stored != len(stored) or not _blosc().cbuffer_validate(stored):
        raise ValueError("damaged")
    return memoryview(_blosc().decompress(stored))


def _from_lz4(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    """Decode a header (total size and block size) and LZ4 blocks. Blocks that did not shrink are uncompressed."""
    import lz4.block

    n_bytes, n_block = struct.unpack_from(">QI", data)
    _check_blocks(n_bytes, n_block, most)
    data = data[12:]
    done = bytearray(n_bytes)
    for place in range(0, n_bytes, n_block):
        size = min(n_block, n_bytes - place)
        n_stored = int.from_bytes(data[:4], "big")
        block = data[4 : 4 + n_stored]
        data = data[4 + n_stored :]
        if n_stored != size:
            block = lz4.block.decompress(block, uncompressed_size=size)
        if len(block) != size:
            raise ValueError(f"a block of {len(block)} bytes, expected {size}")
        done[place : place + size] = block
    return memoryview(done)


def _check_blocks(n_bytes: int, n_block: int, most: int) -> None:
    """Refuse more bytes than allowed, and more blocks than any writer creates. A forged file could repeat a block."""
    if n_bytes > min(most, n_block * _MOST_BLOCKS):
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block}, expected at most {most} bytes")


# -- all filters -------------------------------------------------------------------------------------------------

FILTERS = {
    GZIP: _Filter("gzip", _from_gzip),
    SHUFFLE: _Filter("shuffle", _from_shuffle),
    FLETCHER32: _Filter("fletcher32", _from_fletcher32),
    LZF: _Filter("lzf", _from_lzf),
    _BLOSC: _Filter("blosc", _from_blosc, "blosc"),
    32004: _Filter("lz4", _from_lz4, "lz4"),
    32015: _Filter("zstd", _from_zstd, "zstandard"),
}
"""Filters that need no child, by filter code."""

DECODERS: dict[int, Decoder] = {code: own_filter.decode for code, own_filter in FILTERS.items()}

# Determined at import, because the child cannot see any packages after it has restricted itself.
MISSING = {
    code: own_filter.package
    for code, own_filter in FILTERS.items()
    if own_filter.package and find_spec(own_filter.package) is None
}
"""Packages that are not installed, by the code of the filter that needs them."""


def decode_chunk(
    data: memoryview,
    filters: Sequence[tuple[int, Sequence[int]]],
    mask: int,
    n_bytes: int,
    decoders: Mapping[int, Decoder] = DECODERS,
) -> memoryview:
    """Return the `n_bytes` bytes of a chunk before filtering. Raise `ValueError` if the chunk is damaged.

    Bit i of the `mask` is set if filter i was skipped for this chunk.
    """
    for i, (code, parameters) in reversed(list(enumerate(filters))):
        if mask >> i & 1:
            continue
        most = n_bytes
        if i:  # an earlier filter may have added a header or a checksum
            most += n_bytes // 128 + _MOST_ADDED
        try:
            data = decoders[code](data, parameters, most)
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # each codec has its own exception types
            name = FILTERS[code].name if code in FILTERS else f"filter {code}"
            raise ValueError(f"{name}: {error}") from error
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes, expected {n_bytes}")
    return data
