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

    For a chunked dataset, this is the array of `Layout.index`. For an inline dataset, it has the bytes.
    """
    properties = dataset.id.get_create_plist()
    filters = filters_of(properties, name)
    layout = properties.get_layout()
    # Use the size of the stored type: bfloat16 is read as float32, but takes only two bytes in the file.
    n_bytes = prod(dataset.shape) * dataset.id.get_type().get_size()
    claim = {"name": name, "shape": dataset.shape, "dtype": _dtype_claim(dataset.dtype)}
    if layout == h5py.h5d.CHUNKED:
        kind = _kind_of_chunked(dataset, name, filters)
        n_before = sum(array.shape[1] for array in arrays if array.ndim == 2)
        arrays.append(_index(dataset, name, n_before))
        return {**claim, "kind": kind, "chunks": properties.get_chunk(), "filters": filters}
    if n_bytes and layout == h5py.h5d.CONTIGUOUS:
        return {**claim, **_contiguous(dataset, name, n_bytes)}
    if not is_plain(dataset, dataset.dtype):
        return {**claim, "kind": "asked"}
    arrays.append(bytes_of(dataset[...]))
    return {**claim, "kind": "inline"}


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
    return {"kind": "asked", "offset": offset if dataset.dtype.hasobject else 0}


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
    """Return the array of `Layout.index` for a chunked dataset. Refuse missing, too many or too large chunks."""
    _check_chunks(dataset, name, n_before)
    grid = grid_of(dataset.shape, dataset.chunks)
    index = _listed_chunks(dataset, name, grid)
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


def _check_chunks(dataset: h5py.Dataset, name: str, n_before: int) -> None:
    n_bytes = prod(dataset.chunks) * dataset.dtype.itemsize
    if n_bytes > MOST_CHUNK_BYTES:
        raise Refused(
            f"chunks of {n_bytes} bytes, expected at most {MOST_CHUNK_BYTES}. Rewrite the file with smaller chunks "
            "(h5repack -l).",
            name,
        )
    n_chunks = prod(grid_of(dataset.shape, dataset.chunks))
    if n_before + n_chunks > MOST_CHUNKS:
        raise Refused(
            f"shape {dataset.shape} in {n_chunks} chunks, expected at most {MOST_CHUNKS}. Rewrite the file with larger "
            "chunks (h5repack -l).",
            name,
        )


def _listed_chunks(dataset: h5py.Dataset, name: str, grid: tuple[int, ...]) -> np.ndarray:
    """Return the index of the chunks that HDF5 lists, with -1 for missing chunks.

    The order is C order of the chunk grid, or HDF5's order if HDF5 lists wrong positions.
    """
    index = np.full((3, prod(grid)), -1, dtype=np.int64)
    chunks = dataset.chunks
    strides = [prod(grid[axis + 1 :]) for axis in range(len(grid))]
    is_ordered = _has_usual_order(dataset)
    most_listed = most_entries(dataset.id)
    n_listed = 0
    n_taken = 0

    def take(chunk: Any) -> None:
        nonlocal n_listed, n_taken
        n_listed += 1
        cell = [first // size for first, size in zip(chunk.chunk_offset, chunks, strict=True)]
        if is_ordered and any(i >= n for i, n in zip(cell, grid, strict=True)) and n_listed <= most_listed:
            return  # a remainder from before the dataset was shrunk
        if n_taken == index.shape[1] or n_listed > most_listed:  # otherwise a forged index might never end
            raise Refused(
                f"shape {dataset.shape} in {n_taken} chunks, but the file lists more. The file is damaged or forged: "
                "do not use it.",
                name,
            )
        position = sum(i * n for i, n in zip(cell, strides, strict=True)) if is_ordered else n_taken
        n_taken += 1
        if chunk.byte_offset is not None:
            index[:, position] = chunk.byte_offset, chunk.size, chunk.filter_mask

    if index.size:
        dataset.id.chunk_iter(take)
    return index


def _edges(dataset: h5py.Dataset, grid: tuple[int, ...]) -> np.ndarray:
    """Return a boolean mask of the chunks, in C order, that extend beyond the edge of the dataset."""
    edges = np.zeros(grid, dtype=bool)
    for axis, (n, size) in enumerate(zip(dataset.shape, dataset.chunks, strict=True)):
        if n % size:
            np.moveaxis(edges, axis, 0)[-1] = True
    return edges.ravel()


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
        fields = [(name, _dtype_claim(field), offset) for name, (field, offset, *_) in dtype.fields.items()]
        return {"fields": fields, "itemsize": dtype.itemsize}
    notes = {key: value for key, value in (dtype.metadata or {}).items() if key != "vlen"}
    return {"code": dtype.str, "notes": notes}
