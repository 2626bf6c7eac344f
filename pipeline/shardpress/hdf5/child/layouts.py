"""Functions of the child that return the location of a dataset's bytes. The parent process checks their answers."""

import ctypes
from math import prod
from typing import Any

import h5py
import numpy as np

from shardpress.hdf5.child.find import Refused, is_plain, most_entries
from shardpress.hdf5.filters.codecs import ASKED, FILTERS, objection, rewrite_advice
from shardpress.hdf5.forms import text
from shardpress.hdf5.layout import bytes_of, grid_of
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_CHUNKS

_UNFILTERED_EDGES = 2  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
_EVERY_FILTER = 0xFFFFFFFF

_get_chunk_options = ctypes.CDLL(h5py.h5p.__file__).H5Pget_chunk_opts  # h5py does not wrap this function
_get_chunk_options.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_uint)]


def layout_claim(dataset: h5py.Dataset, name: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Return the location of a dataset's bytes for `layout.layout_of`, and append arrays to `arrays`.

    For a chunked dataset, append the offsets, sizes and filter masks of the chunks: shape (3, n_chunks), int64. For an
    inline dataset, append the bytes.
    """
    properties = dataset.id.get_create_plist()
    filters = filters_of(properties, name)
    layout = properties.get_layout()
    # Use the size of the stored type: bfloat16 is read as float32, but takes only two bytes in the file.
    n_bytes = prod(dataset.shape) * dataset.id.get_type().get_size()
    claim = {"name": name, "shape": dataset.shape, "dtype": _dtype_claim(dataset.dtype)}
    if layout == h5py.h5d.CHUNKED:
        return {**claim, **_chunked(dataset, name, properties, filters, arrays)}
    if n_bytes and layout == h5py.h5d.CONTIGUOUS:
        return {**claim, **_contiguous(dataset, name, n_bytes)}
    if not is_plain(dataset, dataset.dtype):
        return {**claim, "kind": "asked"}
    arrays.append(bytes_of(dataset[...]))
    return {**claim, "kind": "inline"}


def _chunked(
    dataset: h5py.Dataset, name: str, properties: Any, filters: list[tuple[int, list[int]]], arrays: list[np.ndarray]
) -> dict[str, Any]:
    kind = _kind_of_chunked(dataset, name, filters)
    n_before = sum(array.shape[1] for array in arrays if array.ndim == 2)
    arrays.append(_index(dataset, name, n_before))
    return {"kind": kind, "chunks": properties.get_chunk(), "filters": filters}


def _kind_of_chunked(dataset: h5py.Dataset, name: str, filters: list[tuple[int, list[int]]]) -> str:
    """Return ``chunked`` if libhdf5 is not needed, and otherwise ``asked``. Refuse values that need a plugin."""
    is_readable = is_plain(dataset, dataset.dtype) and _has_usual_order(dataset)
    if is_readable and not any(code in ASKED for code, _ in filters):
        return "chunked"
    for code, _ in filters:
        if FILTERS[code].is_plugin:
            raise Refused(
                f"values of a type that NumPy does not support, compressed by filter {code}: libhdf5 would need a "
                f"plugin to decode them (not allowed). {rewrite_advice(name)}",
                name,
            )
    return "asked"


def _contiguous(dataset: h5py.Dataset, name: str, n_bytes: int) -> dict[str, Any]:
    offset = dataset.id.get_offset()
    if offset is None or dataset.id.get_storage_size() < n_bytes:
        raise Refused(f"shape {dataset.shape}, but its {n_bytes} bytes were never written. Write the file again.", name)
    if is_plain(dataset, dataset.dtype):
        return {"kind": "contiguous", "offset": offset}
    if dataset.dtype.hasobject:
        return {"kind": "asked", "offset": offset}
    return {"kind": "asked"}


def filters_of(properties: Any, name: str) -> list[tuple[int, list[int]]]:
    """Return the codes and parameters of a dataset's filters. Refuse filters that cannot be decoded."""
    listed = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    filters: dict[int, list[int]] = {}
    for code, _flags, values, label in listed:
        words = objection(code, values, name)
        if code in filters:
            words = f"is applied twice, expected once. {rewrite_advice(name)}"
        if words:
            raise Refused(f"filter {code} ({text(label)}) {words}", name)
        filters[code] = list(values)
    return list(filters.items())


def _index(dataset: h5py.Dataset, name: str, n_before: int) -> np.ndarray:
    """Return the offset, size and filter mask of every chunk, in C order of the chunk grid. Refuse missing chunks."""
    grid = _checked_grid(dataset, name, n_before)
    chunks = _Chunks(dataset, name, grid)
    if chunks.index.size:
        dataset.id.chunk_iter(chunks.take)
    index = chunks.index
    n_missing = int((index[0] < 0).sum())
    if n_missing:
        raise Refused(
            f"shape {dataset.shape} in {prod(grid)} chunks, but {n_missing} of them were never written. Write the file "
            "again.",
            name,
        )
    properties = dataset.id.get_create_plist()
    if properties.get_nfilters() and _has_unfiltered_edges(properties):
        index[2, _edges(dataset, grid)] = _EVERY_FILTER
    return index


class _Chunks:
    """Chunk index that is filled while HDF5 lists the chunks.

    Attributes
    ----------
    index : ndarray of shape (3, n_chunks), int64
        Offset, size and filter mask of each chunk, or -1 for a missing chunk. The order is C order of the chunk grid,
        or HDF5's order if HDF5 lists wrong positions.
    """

    def __init__(self, dataset: h5py.Dataset, name: str, grid: tuple[int, ...]) -> None:
        self.index = np.full((3, prod(grid)), -1, dtype=np.int64)
        self._shape = dataset.shape
        self._chunks = dataset.chunks
        self._name = name
        self._grid = grid
        self._is_ordered = _has_usual_order(dataset)
        self._most_listed = most_entries(dataset.id)
        self._n_listed = 0
        self._n_taken = 0

    def take(self, chunk: Any) -> None:
        """Add a chunk to the index."""
        self._n_listed += 1
        if self._n_listed > self._most_listed:  # including chunks outside the dataset
            raise Refused(
                "the chunk index lists more chunks than fit into the file. The file is damaged or forged: do not use "
                "it.",
                self._name,
            )
        cell = [first // size for first, size in zip(chunk.chunk_offset, self._chunks, strict=True)]
        if self._is_ordered and any(i >= n for i, n in zip(cell, self._grid, strict=True)):
            return  # a remainder from before the dataset was shrunk
        if self._n_taken == self.index.shape[1]:  # otherwise a forged index might never end
            raise Refused(
                f"shape {self._shape}, expected {self._n_taken} chunks, but found more. The file is damaged or forged: "
                "do not use it.",
                self._name,
            )
        position = _position_in(self._grid, cell) if self._is_ordered else self._n_taken
        self._n_taken += 1
        if chunk.byte_offset is not None:
            self.index[:, position] = chunk.byte_offset, chunk.size, chunk.filter_mask


def _edges(dataset: h5py.Dataset, grid: tuple[int, ...]) -> np.ndarray:
    """Return a boolean mask of the chunks, in C order, that extend beyond the edge of the dataset."""
    edges = np.zeros(grid, dtype=bool)
    for axis, (n, size) in enumerate(zip(dataset.shape, dataset.chunks, strict=True)):
        if n % size:
            np.moveaxis(edges, axis, 0)[-1] = True
    return edges.ravel()


def _checked_grid(dataset: h5py.Dataset, name: str, n_before: int, most: int = MOST_CHUNKS) -> tuple[int, ...]:
    """Return the number of chunks along each axis. Refuse chunks that are too large or too many."""
    shape = dataset.shape
    chunks = dataset.chunks
    _check_chunks(dataset, name)
    grid = grid_of(shape, chunks)
    n_chunks = prod(grid)
    n_missing = n_chunks - h5py.h5i.get_file_id(dataset.id).get_filesize()
    if n_missing > 0 and n_chunks <= most:  # every chunk takes at least one byte
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, but at least {n_missing} of them were never written. Write the "
            "file again.",
            name,
        )
    if n_before + n_chunks > most:
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, expected at most {most}. Rewrite the file with larger chunks "
            "(h5repack -l).",
            name,
        )
    return grid


def _check_chunks(dataset: h5py.Dataset, name: str) -> None:
    shape = dataset.shape
    chunks = dataset.chunks
    if len(chunks) != len(shape) or 0 in chunks:
        raise Refused(f"chunks of shape {chunks}, expected rank {len(shape)} for a dataset of shape {shape}", name)
    n_bytes = prod(chunks) * dataset.dtype.itemsize
    if n_bytes > MOST_CHUNK_BYTES:
        raise Refused(
            f"chunks of {n_bytes} bytes, expected at most {MOST_CHUNK_BYTES}. Rewrite the file with smaller chunks "
            "(h5repack -l).",
            name,
        )


def _position_in(grid: tuple[int, ...], cell: list[int]) -> int:
    """Return the index of a grid cell in C order."""
    position = 0
    for i, n in zip(cell, grid, strict=True):
        position = position * n + i
    return position


def _has_usual_order(dataset: h5py.Dataset) -> bool:
    """Return whether HDF5 lists correct chunk positions for a dataset.

    The positions are wrong if the only unlimited axis is not the first one. HDF5 1.10 to 2.0 then numbers the chunks
    along that axis first, but lists positions as if the numbers were in C order.
    """
    unlimited = [axis for axis, most in enumerate(dataset.maxshape) if most is None]
    return len(unlimited) != 1 or unlimited[0] == 0


def _has_unfiltered_edges(properties: Any) -> bool:
    """Return whether chunks that extend beyond the edge of the dataset are stored without filters."""
    options = ctypes.c_uint(0)
    if _get_chunk_options(properties.id, ctypes.byref(options)) < 0:
        raise RuntimeError("H5Pget_chunk_opts failed")
    return bool(options.value & _UNFILTERED_EDGES)


def _dtype_claim(dtype: np.dtype) -> dict[str, Any]:
    """Convert a dtype, with h5py's metadata, to plain values."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"of": _dtype_claim(base), "shape": shape}
    if dtype.fields is not None:
        return {"fields": _field_claims(dtype), "itemsize": dtype.itemsize}
    notes = {key: value for key, value in (dtype.metadata or {}).items() if key != "vlen"}
    return {"code": dtype.str, "notes": notes}


def _field_claims(dtype: np.dtype) -> list[tuple[str, dict[str, Any], int]]:
    assert dtype.fields is not None
    claims = []
    for name in dtype.names or ():
        field, offset = dtype.fields[name][:2]
        claims.append((name, _dtype_claim(field), offset))
    return claims
