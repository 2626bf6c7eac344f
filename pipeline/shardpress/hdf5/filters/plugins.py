"""Filters of libhdf5 and of hdf5plugin, for the child process.

The functions of the filters are called without the reader of libhdf5. It does not compare the size of a decoded chunk
with the expected size, and returns other bytes of its memory as values if a damaged chunk is too short.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache

import h5py
import numpy as np

from shardpress.hdf5.filters.codecs import DECODERS, LZF, Decoder

_REVERSE = 0x0100  # H5Z_FLAG_REVERSE: decode
_BUILT_IN = ("H5Z_DEFLATE", "H5Z_SHUFFLE", "H5Z_FLETCHER32", "H5Z_SZIP", "H5Z_NBIT", "H5Z_SCALEOFFSET")

_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = [ctypes.c_size_t]
_LIBC.free.argtypes = [ctypes.c_void_p]


class _Class(ctypes.Structure):
    """H5Z_class2_t of H5Zdevelop.h."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        (
            "filter",
            ctypes.CFUNCTYPE(
                ctypes.c_size_t,
                ctypes.c_uint,
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_uint),
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_size_t),
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
    )


@cache
def decoders() -> dict[int, Decoder]:
    """Return the decoder of each filter by its code. Call this before the process confines itself."""
    by_code = {LZF: DECODERS[LZF]}
    for filter_class in (*_built_in(), *_plugins()):
        if filter_class.decoder_present:
            by_code[filter_class.id] = _decoder(filter_class)
    return by_code


def has_plugins() -> bool:
    return bool(sys.modules.get("hdf5plugin"))


def _built_in() -> Iterator[_Class]:
    libhdf5 = ctypes.CDLL(h5py.h5z.__file__)
    for name in _BUILT_IN:
        with suppress(ValueError):  # szip is optional
            yield _Class.in_dll(libhdf5, name)


def _plugins() -> Iterator[_Class]:
    """Load and register the filters of hdf5plugin, if it is installed."""
    try:
        import hdf5plugin
    except ImportError:
        return
    for path in hdf5plugin.get_config().registered_filters.values():
        find = ctypes.CDLL(path).H5PLget_plugin_info
        find.restype = ctypes.POINTER(_Class)
        yield find().contents


def _decoder(filter_class: _Class) -> Decoder:
    def decode(data: memoryview, values: Sequence[int], most: int) -> memoryview:
        size = ctypes.c_size_t(len(data))
        buffer = ctypes.c_void_p(_LIBC.malloc(size))  # the filter replaces it
        ctypes.memmove(buffer, np.frombuffer(data, dtype=np.uint8).ctypes.data, len(data))
        parameters = (ctypes.c_uint * len(values))(*values)
        n_bytes = filter_class.filter(_REVERSE, len(values), parameters, size, ctypes.byref(size), ctypes.byref(buffer))
        try:
            if not 0 < n_bytes <= most:
                raise ValueError(f"damaged, or decompresses to more than the expected {most} bytes")
            return memoryview(ctypes.string_at(buffer, n_bytes))
        finally:
            _LIBC.free(buffer)

    return decode
