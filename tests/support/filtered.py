"""Datasets with filters of HDF5 and of hdf5plugin."""

from __future__ import annotations

from typing import Any, NamedTuple

import h5py
import hdf5plugin
import numpy as np

_INTEGERS = "u1 i1 <u2 >i2 <i4 >u4"
_FLOATS = "<f4 <f8"
_NUMBERS = f"{_INTEGERS} {_FLOATS} >f4 <u8"


class Way(NamedTuple):
    """A way to store rows."""

    is_by_child: bool  # True if only the child decodes the filter
    options: dict[str, Any]  # of `create_dataset`
    dtypes: str = _NUMBERS  # that the filter supports
    least: int = 1  # smallest number of rows and columns of a chunk


WAYS = {
    "gzip": Way(False, {"compression": "gzip", "shuffle": True}),
    "lzf": Way(False, {"compression": "lzf"}),
    "blosc": Way(False, hdf5plugin.Blosc()),
    "blosc-blosclz": Way(False, hdf5plugin.Blosc("blosclz")),
    "blosc-zlib": Way(False, hdf5plugin.Blosc("zlib")),
    "blosc-zstd": Way(False, hdf5plugin.Blosc("zstd", 5, hdf5plugin.Blosc.BITSHUFFLE)),
    "lz4": Way(False, hdf5plugin.LZ4()),
    "lz4-blocks": Way(False, hdf5plugin.LZ4(nbytes=96)),
    "zstd": Way(False, hdf5plugin.Zstd()),
    "zstd-shuffle": Way(False, {"shuffle": True, "fletcher32": True, **hdf5plugin.Zstd()}),
    "blosc-snappy": Way(True, hdf5plugin.Blosc("snappy")),
    "blosc2": Way(True, hdf5plugin.Blosc2()),
    "blosc2-zstd": Way(True, hdf5plugin.Blosc2("zstd", 5, hdf5plugin.Blosc2.BITSHUFFLE)),
    "bitshuffle": Way(True, hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle-lz4": Way(True, hdf5plugin.Bitshuffle(nelems=16)),
    "bitshuffle-zstd": Way(True, {"fletcher32": True, **hdf5plugin.Bitshuffle(cname="zstd")}),
    "bzip2": Way(True, {"shuffle": True, **hdf5plugin.BZip2()}),
    "fcidecomp": Way(True, hdf5plugin.FciDecomp(), "u1 i1 <u2 <i2", 16),
    "htj2k": Way(True, hdf5plugin.Htj2k(), "u1 <u2", 16),
    "sperr": Way(True, hdf5plugin.Sperr(rate=16), _FLOATS, 16),
    "sz": Way(True, hdf5plugin.SZ(absolute=0.01), _FLOATS),
    "sz3": Way(True, hdf5plugin.SZ3(absolute=0.01), _FLOATS),
    "zfp": Way(True, hdf5plugin.Zfp(reversible=True), f"{_FLOATS} <i4 <i8"),
    "scaleoffset": Way(True, {"scaleoffset": 0}, _INTEGERS),
    "scaleoffset-gzip": Way(True, {"scaleoffset": 2, "compression": "gzip"}, _FLOATS),
    "szip": Way(True, {"compression": "szip"}, f"u1 <u2 <i4 {_FLOATS}", 16),
}
"""A way to store rows with each filter that h5py and hdf5plugin can write."""


def write_random(file: h5py.File, name: str, way: Way, rng: np.random.Generator) -> None:
    """Write random rows in random chunks. Half of the rows are constant, so that filters shrink some chunks only."""
    shape = rng.integers(max(way.least, 8), 60, 2)
    chunks = tuple(int(rng.integers(way.least, n + 1)) for n in shape)
    values = np.where(rng.random((shape[0], 1)) < 0.5, rng.integers(0, 128, shape), 3)
    dtype = str(rng.choice(way.dtypes.split()))
    file.create_dataset(name, data=values.astype(dtype), chunks=chunks, **way.options)
