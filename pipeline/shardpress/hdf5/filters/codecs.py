"""Decode filtered chunks. The filters are applied in reverse order.

Deflate follows RFC 1950, and LZF follows LibLZF. Shuffle and the Fletcher checksum follow H5Zshuffle.c and H5checksum.c
of HDF5. For registered filters, libhdf5 would load a plugin, which is a library of unknown origin. This is never
allowed. Instead, Python packages decode these formats, which the sources of the plugins define: H5Zzstd.c, H5Zlz4.c,
blosc_filter.c and bshuf_h5filter.c.

numcodecs is not used. It wraps the same C libraries, but does not support bitshuffle or the block formats of the
plugins, and accepts truncated Blosc buffers.

No function returns more bytes than allowed, or holds the GIL for long.
"""

import bz2
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from shardpress.hdf5.filters import lzf

_GZIP = 1
SHUFFLE = 2
FLETCHER32 = 3
_LZF = 32000
_BLOSC = 32001

_SNAPPY = 3  # number of this codec in Blosc
_SUM_BYTES = 4
_WORDS = 2**13  # words of a checksum that are added at a time
_WEIGHTS = np.arange(_WORDS, 0, -1, dtype=np.float64)
_MOST_BLOCKS = 2**16  # blocks in a chunk; with bitshuffle's usual block size, the largest chunk has 8192
_BLOCK_BYTES = 2**13  # bitshuffle's usual block size
_LEAST_ELEMENTS = 128  # minimum number of elements in a bitshuffle block, if the file does not specify the block size
_PIECE = 2**20  # bytes whose bits are sorted at a time

_Decoder = Callable[[memoryview, Sequence[int], int], memoryview]
"""Function that decodes stored bytes, given the filter parameters and the maximum number of decoded bytes."""


@dataclass(frozen=True)
class _Filter:
    """A filter that files may use."""

    name: str
    decode: _Decoder | None  # None if only libhdf5 decodes the filter, in the child
    packages: tuple[str, ...] = ()  # Python packages that `decode` needs
    is_plugin: bool = False  # libhdf5 would need a plugin for the filter
    is_slow: bool = False  # decoding takes longer than reading; `shardpress inspect` advises against such filters


def decode_chunk(data: memoryview, filters: Sequence[tuple[int, Sequence[int]]], mask: int, n_bytes: int) -> memoryview:
    """Return the `n_bytes` bytes of a chunk before filtering. Raise `ValueError` if the chunk is damaged.

    Bit i of the `mask` is set if filter i was skipped for this chunk.
    """
    for i, (code, parameters) in reversed(list(enumerate(filters))):
        if mask >> i & 1:
            continue
        decode = FILTERS[code].decode
        if decode is None:
            raise ValueError(f"{FILTERS[code].name}: only libhdf5 can decode it")
        try:
            data = decode(data, parameters, n_bytes + _SUM_BYTES)  # an earlier filter may have added a checksum
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # each codec has its own exception types
            raise ValueError(f"{FILTERS[code].name}: {error}") from error
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes, expected {n_bytes}")
    return data


def objection(code: int, values: Sequence[int], dataset: str) -> str | None:
    """Explain why a filter with these parameters is unsupported, and what to do. Return None if it is supported."""
    if code not in FILTERS:
        names = ", ".join(each.name for each in FILTERS.values())
        return f"is not supported, expected {names}. {rewrite_advice(dataset)}"
    if _MISSING.get(code):
        return f"needs a package that is not installed. Run: pip install {' '.join(_MISSING[code])}"
    if code == _BLOSC and list(values[6:7]) == [_SNAPPY]:
        return f"with the codec Snappy is not supported, expected another Blosc codec. {rewrite_advice(dataset)}"
    return None


def rewrite_advice(dataset: str) -> str:
    return (
        "Rewrite the file with h5repack -f GZIP=4, or in Python after pip install hdf5plugin: import h5py, hdf5plugin; "
        f"h5py.File('new.h5', 'w')[{dataset!r}] = h5py.File('old.h5')[{dataset!r}][:]"
    )


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
    summed = fletcher32(body)
    # HDF5 up to 1.6.2 swapped the two bytes of each half. HDF5 still accepts such files.
    older = (summed & 0x00FF00FF) << 8 | (summed >> 8) & 0x00FF00FF
    if len(data) < _SUM_BYTES or stored not in (summed, older):
        raise ValueError(f"checksum {stored:#010x}, expected {summed:#010x} for these bytes")
    return body


def fletcher32(data: memoryview) -> int:
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


def _from_bzip2(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    codec = bz2.BZ2Decompressor()
    done = codec.decompress(data, most)
    if not codec.eof:
        raise ValueError(f"truncated, or decompresses to more than {most} bytes")
    return memoryview(done)


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
    n_bytes, n_block = struct.unpack_from(">QI", data)
    _check_blocks(n_bytes, n_block, most)
    return _decode_blocks(data[12:], n_block, n_bytes, n_bytes, _block_from_lz4_or_raw)


def _check_blocks(n_bytes: int, n_block: int, most: int) -> None:
    """Refuse more bytes than allowed, and more blocks than any writer creates. A forged file could repeat a block."""
    if n_bytes > min(most, n_block * _MOST_BLOCKS):
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block}, expected at most {most} bytes")


def _block_from_lz4_or_raw(piece: memoryview, size: int) -> bytes | memoryview:
    if len(piece) == size:
        return piece
    return _block_from_lz4(piece, size)


def _block_from_lz4(piece: memoryview, size: int) -> bytes:
    import lz4.block

    return lz4.block.decompress(piece, uncompressed_size=size)


def _block_from_zstd(piece: memoryview, size: int) -> memoryview:
    return _from_zstd(piece, (), size)


_BlockDecoder = Callable[[memoryview, int], bytes | memoryview]


def _decode_blocks(data: memoryview, n_block: int, n_coded: int, n_bytes: int, decode: _BlockDecoder) -> memoryview:
    """Decode blocks of `n_block` bytes, `n_coded` bytes in total, and append the remaining bytes.

    A stored size precedes each block. The last block may be shorter.
    """
    done = bytearray(n_bytes)
    for place in range(0, n_coded, n_block):
        size = min(n_block, n_coded - place)
        n_stored = int.from_bytes(data[:4], "big")
        piece = data[4 : 4 + n_stored]
        data = data[4 + n_stored :]
        block = decode(piece, size)
        if len(piece) != n_stored or len(block) != size:
            raise ValueError(f"a block of {len(block)} bytes, expected {size}")
        done[place : place + size] = block
    done[n_coded:] = data[: n_bytes - n_coded]
    return memoryview(done)


# -- bitshuffle --------------------------------------------------------------------------------------------------

_UNCOMPRESSED = 0
_BLOCK_DECODERS: dict[int, _BlockDecoder] = {2: _block_from_lz4, 3: _block_from_zstd}  # by codec number


def _from_bitshuffle(data: memoryview, values: Sequence[int], most: int) -> memoryview:
    """Undo bitshuffle, which sorts the bits of each block by their position in an element, and may compress blocks.

    The last block may be shorter, but has a multiple of 8 elements. Up to 7 remaining elements are unchanged.
    """
    itemsize, n_block, kind = (*values, 0, 0)[2:5]
    n_bytes = len(data)
    if kind != _UNCOMPRESSED:
        n_bytes, block_bytes = struct.unpack_from(">QI", data)
        n_block = block_bytes // itemsize
    if n_block == 0:
        n_block = max(_LEAST_ELEMENTS, _BLOCK_BYTES // itemsize // 8 * 8)
    if n_bytes > min(most, n_block * itemsize * _MOST_BLOCKS) or n_bytes % itemsize or n_block % 8:
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block} x {itemsize}, expected at most {most} bytes")
    n_full, n_left = divmod(n_bytes // itemsize, n_block)
    n_last = n_left // 8 * 8
    if kind == _UNCOMPRESSED:
        done = memoryview(bytearray(data))
    else:
        n_coded = (n_full * n_block + n_last) * itemsize
        done = _decode_blocks(data[12:], n_block * itemsize, n_coded, n_bytes, _BLOCK_DECODERS[kind])
    _sort_all_bits(np.frombuffer(done, dtype=np.uint8), n_full, n_last, n_block, itemsize)
    return done


def _sort_all_bits(data: np.ndarray, n_full: int, n_last: int, n_block: int, itemsize: int) -> None:
    """Sort the bits of `n_full` blocks, about `_PIECE` bytes at a time, and of a last block with `n_last` elements."""
    block_bytes = n_block * itemsize
    end = n_full * block_bytes
    at_once = max(1, _PIECE // block_bytes) * block_bytes
    for start in range(0, end, at_once):
        _sort_bits(data[start : min(start + at_once, end)], n_block, itemsize)
    _sort_bits(data[end : end + n_last * itemsize], n_last, itemsize)


def _sort_bits(data: np.ndarray, n_block: int, itemsize: int) -> None:
    """Reassemble the bits of the elements in each block, in place. `n_block` must be a multiple of 8."""
    if not data.size:
        return
    # For every 8 elements, the bits of one byte position are stored in 8 bytes, one in each of 8 lines.
    lines = data.reshape(-1, itemsize, 8, n_block // 8)
    words = np.ascontiguousarray(lines.transpose(0, 3, 1, 2)).view("<u8")[..., 0]
    octets = _transposed_bits(words).view(np.uint8).reshape(-1, n_block // 8, itemsize, 8)
    data[:] = octets.transpose(0, 1, 3, 2).reshape(-1)


def _transposed_bits(words: np.ndarray) -> np.ndarray:
    """Transpose matrices of 8 x 8 bits by swapping ever larger quarters (Warren, Hacker's Delight, 7-3)."""
    for shift, bits in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swapped = (words ^ (words >> np.uint64(shift))) & np.uint64(bits)
        words = words ^ swapped ^ (swapped << np.uint64(shift))
    return np.ascontiguousarray(words)


# -- all filters -------------------------------------------------------------------------------------------------

FILTERS = {
    _GZIP: _Filter("gzip", _from_gzip, is_slow=True),
    SHUFFLE: _Filter("shuffle", _from_shuffle),
    FLETCHER32: _Filter("fletcher32", _from_fletcher32),
    5: _Filter("n-bit", None),
    6: _Filter("scale-offset", None),
    307: _Filter("bzip2", _from_bzip2, is_plugin=True, is_slow=True),
    _LZF: _Filter("lzf", _from_lzf),
    _BLOSC: _Filter("blosc", _from_blosc, ("blosc",), is_plugin=True),
    32004: _Filter("lz4", _from_lz4, ("lz4",), is_plugin=True),
    32008: _Filter("bitshuffle", _from_bitshuffle, ("lz4", "zstandard"), is_plugin=True),
    32015: _Filter("zstd", _from_zstd, ("zstandard",), is_plugin=True),
}
"""Supported filters by filter code: standard HDF5 filters and registered filters."""

ASKED = frozenset(code for code, each in FILTERS.items() if each.decode is None)
"""Codes of the filters that libhdf5 decodes in the child."""

# Determined at import, because the child cannot see any packages after it has restricted itself.
_MISSING = {code: [name for name in each.packages if find_spec(name) is None] for code, each in FILTERS.items()}
