"""Filters that others than HDF5's makers have registered: which can be undone, and how.

HDF5 itself would load a plugin for each, a library that anybody may have put anywhere: it is never let. Here packages
of Python decode what the plugins wrap in ways that their sources tell: H5Zzstd.c, H5Zlz4.c, blosc_filter.c,
bshuf_h5filter.c. None makes more than it is told, or holds Python's lock for long.
"""

import bz2
import struct
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from pipeline.hdf5.limits import FILTERS

__all__ = ["REGISTERED", "objection", "written_anew"]

_BLOSC, _SNAPPY = 32001, 3
_PACKAGES = {_BLOSC: ("blosc",), 32004: ("lz4",), 32008: ("lz4", "zstandard"), 32015: ("zstandard",)}
_MOST_BLOCKS = 2**16  # in a chunk: of bitshuffle's usual ones, 8192 make the largest
_BLOCK_BYTES = 2**13  # bitshuffle's usual ones
_PIECE = 2**20


# Before the child confines itself, which then sees no packages any more.
_MISSING = {code: [name for name in names if find_spec(name) is None] for code, names in _PACKAGES.items()}


def objection(code: int, values: Sequence[int], dataset: str) -> str | None:
    """Why a filter with these parameters cannot be undone, and what to do about the dataset; None if it can be."""
    if code not in FILTERS:
        return f"not allowed, expected {', '.join(FILTERS.values())}. {written_anew(dataset)}"
    if _MISSING.get(code):
        return f"needs a package that is not installed. Run: pip install {' '.join(_MISSING[code])}"
    if code == _BLOSC and list(values[6:7]) == [_SNAPPY]:
        return f"with Snappy inside, not allowed, expected another of Blosc's codecs. {written_anew(dataset)}"
    return None


def written_anew(dataset: str) -> str:
    """How to get rid of a filter, with and without the tools of HDF5."""
    return (
        "Rewrite the file with h5repack -f GZIP=4, or in Python after pip install hdf5plugin: import h5py, hdf5plugin; "
        f"h5py.File('new.h5', 'w')[{dataset!r}] = h5py.File('old.h5')[{dataset!r}][:]"
    )


# -- compressed --------------------------------------------------------------------------------------------------


def _from_bzip2(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    codec = bz2.BZ2Decompressor()
    done = codec.decompress(data, most)
    if not codec.eof:
        raise ValueError(f"cut short, or more than {most} bytes unfolded")
    return memoryview(done)


def _from_zstd(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    import zstandard

    n_bytes = zstandard.get_frame_parameters(data).content_size  # which decides where it is told, not `most`
    if most < n_bytes != zstandard.CONTENTSIZE_UNKNOWN:
        raise ValueError(f"{n_bytes} bytes unfolded, expected {most} at most")
    return memoryview(zstandard.ZstdDecompressor().decompress(data, max_output_size=most))


@cache
def _blosc() -> Any:
    import blosc

    blosc.set_nthreads(1)  # the driver has threads of its own
    blosc.set_releasegil(True)
    return blosc


def _from_blosc(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    """A buffer of Blosc 1, whose sizes before and after stand in its head."""
    n_bytes, n_block, n_stored = struct.unpack_from("<3I", data, 4)
    if n_bytes > min(most, n_block * _MOST_BLOCKS):  # all may be the same few bytes
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block}, expected {most} at most")
    stored = bytes(data[:n_stored])
    if n_stored != len(stored) or not _blosc().cbuffer_validate(stored):
        raise ValueError("damaged")
    return memoryview(_blosc().decompress(stored))


def _from_lz4(data: memoryview, _: Sequence[int], most: int) -> memoryview:
    """The sizes of all and of a block, then blocks; one that could not be made smaller is stored as it is."""
    n_bytes, n_block = struct.unpack_from(">QI", data)
    if not n_block or n_bytes > min(most, n_block * _MOST_BLOCKS):
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block}, expected {most} at most")
    sizes = [n_block] * (n_bytes // n_block) + [n_bytes % n_block] * bool(n_bytes % n_block)
    return _joined(data[12:], sizes, n_bytes, lambda piece, size: piece if len(piece) == size else _lz4(piece, size))


def _lz4(piece: memoryview, size: int) -> bytes:
    import lz4.block

    return lz4.block.decompress(piece, uncompressed_size=size)


def _joined(
    data: memoryview, sizes: Sequence[int], n_bytes: int, decode: Callable[[memoryview, int], bytes | memoryview]
) -> memoryview:
    """Blocks decoded, each behind its stored size, and whatever bytes there are after them."""
    done, place = bytearray(n_bytes), 0
    for size in sizes:
        n_stored = int.from_bytes(data[:4], "big")
        piece, data = data[4 : 4 + n_stored], data[4 + n_stored :]
        block = decode(piece, size)
        if len(piece) != n_stored or len(block) != size:
            raise ValueError(f"a block of {len(block)} bytes, expected {size}")
        done[place : place + size] = block
        place += size
    done[place:] = data[: n_bytes - place]
    return memoryview(done)


# -- bitshuffle --------------------------------------------------------------------------------------------------

_DECODERS: dict[int, Callable[[memoryview, int], bytes | memoryview]]
_DECODERS = {2: _lz4, 3: lambda piece, size: _from_zstd(piece, (), size)}  # as bitshuffle numbers them


def _from_bitshuffle(data: memoryview, values: Sequence[int], most: int) -> memoryview:
    """Blocks of elements whose bits are sorted by their place in an element; each may be compressed by itself.

    The last one may be shorter, by a multiple of 8 elements; up to 7 more stand behind it as they were.
    """
    itemsize, n_block, kind = (*values, 0, 0)[2:5]
    n_bytes = len(data)
    if kind:
        n_bytes, block_bytes = struct.unpack_from(">QI", data)
        n_block = block_bytes // itemsize
    n_block = n_block or max(128, _BLOCK_BYTES // itemsize // 8 * 8)
    if n_bytes > min(most, n_block * itemsize * _MOST_BLOCKS) or n_bytes % itemsize or n_block % 8:
        raise ValueError(f"{n_bytes} bytes in blocks of {n_block} x {itemsize}, expected {most} at most")
    n_full, n_last = n_bytes // itemsize // n_block, n_bytes // itemsize % n_block // 8 * 8
    sizes = [n_block * itemsize] * n_full + [n_last * itemsize] * bool(n_last)
    done = _joined(data[12:], sizes, n_bytes, _DECODERS[kind]) if kind else memoryview(bytearray(data))
    elements = np.frombuffer(done, dtype=np.uint8)
    at_once = max(1, _PIECE // (n_block * itemsize)) * n_block * itemsize
    end = n_full * n_block * itemsize
    for start in range(0, end, at_once):
        _sort_bits(elements[start : min(start + at_once, end)], n_block, itemsize)
    _sort_bits(elements[end : sum(sizes)], n_last, itemsize)
    return done


def _sort_bits(data: np.ndarray, n_block: int, itemsize: int) -> None:
    """Put the bits of each block's elements together again, in place; `n_block` is a multiple of 8."""
    if not data.size:
        return
    # Of every 8 elements, the 8 bits that stand at one byte's places lie in 8 bytes, a line of the block apart.
    lines = data.reshape(-1, itemsize, 8, n_block // 8)
    words = np.ascontiguousarray(lines.transpose(0, 3, 1, 2)).view("<u8")[..., 0]
    for shift, bits in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        # A matrix of 8 x 8 bits is transposed by swapping ever larger quarters (Warren, Hacker's Delight, 7-3).
        swapped = (words ^ (words >> np.uint64(shift))) & np.uint64(bits)
        words = words ^ swapped ^ (swapped << np.uint64(shift))
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(-1, n_block // 8, itemsize, 8)
    data[:] = octets.transpose(0, 1, 3, 2).reshape(-1)


REGISTERED: dict[int, Callable[[memoryview, Sequence[int], int], memoryview]] = {
    307: _from_bzip2,
    _BLOSC: _from_blosc,
    32004: _from_lz4,
    32008: _from_bitshuffle,
    32015: _from_zstd,
}
