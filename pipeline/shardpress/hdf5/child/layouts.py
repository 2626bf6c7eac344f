"""Functions of the child that return the location of a dataset's bytes."""

import ctypes
from dataclasses import replace
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py.h5p import PropDCID

from shardpress.hdf5.child.find import Dataset, Rejection, file_bytes, most_entries
from shardpress.hdf5.child.places import check_place
from shardpress.hdf5.filters.codecs import MISSING, Filters, needs_child
from shardpress.hdf5.filters.plugins import decoders, has_plugins
from shardpress.hdf5.layout import Layout, grid_of
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_CHUNKS
from shardpress.hdf5.names import text

_UNFILTERED_EDGES = 2  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
_UNFINISHED = "If a program is still writing the file, wait for it; otherwise write the file again."
EVERY_FILTER = 0xFFFFFFFF
"""Filter mask of a chunk that is stored without filters."""

_get_chunk_options = ctypes.CDLL(h5py.h5p.__file__).H5Pget_chunk_opts  # h5py does not wrap this function
_get_chunk_options.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_uint)]


def layout_of(dataset: Dataset, name: str) -> Layout:
    """Return the location of the bytes of a dataset with a shape and a dtype. Refuse values that cannot be read."""
    shape = dataset.shape
    dtype = dataset.stored_dtype
    assert shape is not None
    assert dtype is not None
    n_bytes = file_bytes(dataset.id)
    layout = _layout(dataset, Layout(name, shape, dtype, "asked"), most_entries(n_bytes))
    check_place(layout, n_bytes)
    return layout


def _layout(dataset: Dataset, layout: Layout, most_chunks: int) -> Layout:
    """Return the layout with its kind and its location. The file has room for `most_chunks`."""
    if dataset.layout == h5py.h5d.CHUNKED:
        filters = filters_of(dataset.properties)
        kind = _kind_of_chunked(dataset, layout.name, filters)
        layout = replace(layout, kind=kind, chunks=dataset.chunks, filters=filters)
        return replace(layout, index=_index(dataset, layout, most_chunks))
    n_bytes = prod(layout.shape) * dataset.stored_size
    if n_bytes and dataset.layout == h5py.h5d.CONTIGUOUS:
        offset = _offset(dataset, layout, n_bytes)
        return replace(layout, kind="contiguous", offset=offset) if dataset.is_plain else layout
    if not dataset.is_plain:
        return layout
    return replace(layout, kind="inline", data=dataset.stored_bytes())


def _offset(dataset: Dataset, layout: Layout, n_bytes: int) -> int:
    offset = dataset.id.get_offset()
    if offset is None or dataset.id.get_storage_size() < n_bytes:
        raise Rejection(f"shape {layout.shape}, but its {n_bytes} bytes were never written. {_UNFINISHED}", layout.name)
    return int(offset)


def _kind_of_chunked(dataset: Dataset, name: str, filters: Filters) -> str:
    """Return ``chunked`` if libhdf5 is not needed, and otherwise ``asked``. Refuse filters that it does not have."""
    is_readable = dataset.is_plain and dataset.has_usual_order
    if is_readable and not any(needs_child(code, values) for code, values in filters):
        return "chunked"
    missing = [code for code, _ in filters if code not in decoders()]
    if missing:
        _, _, label = dataset.id.get_create_plist().get_filter_by_id(missing[0])
        raise Rejection(f"filter {missing[0]} ({text(label)}) {_remedy(missing[0], is_readable)}", name)
    return "asked"


def _remedy(code: int, is_readable: bool) -> str:
    """Return why a filter is not supported, and what to do."""
    package = MISSING.get(code, "hdf5plugin") if is_readable else "hdf5plugin"
    if package == "hdf5plugin" and has_plugins():
        return "is not in HDF5 or hdf5plugin. Rewrite the file where it was written: h5repack -f GZIP=4 old.h5 new.h5"
    return f"needs a package that is not installed. Run: pip install {package}"


def filters_of(properties: PropDCID) -> Filters:
    """Return the codes and parameters of a dataset's filters."""
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return tuple((code, tuple(values)) for code, _flags, values, _label in filters)


def _index(dataset: Dataset, layout: Layout, most_chunks: int) -> np.ndarray:
    """Return the array of `Layout.index` for a chunked dataset. Refuse missing, too many or too large chunks."""
    shape = layout.shape
    grid = grid_of(shape, layout.chunks)
    _check_chunks(layout, prod(grid))
    index = _listed_chunks(dataset, layout.name, grid, most_chunks)
    n_missing = np.count_nonzero(index[0] < 0)
    if n_missing:
        raise Rejection(
            f"shape {shape} in {prod(grid)} chunks, but {n_missing} of them were never written. {_UNFINISHED}",
            layout.name,
        )
    has_edges = any(n % size for n, size in zip(shape, layout.chunks, strict=True))
    if has_edges and layout.filters and has_unfiltered_edges(dataset.properties):
        index[2, _edges(shape, layout.chunks)] = EVERY_FILTER
    if layout.kind == "asked":
        _check_stored_sizes(dataset, layout, index)
    return index


def _check_stored_sizes(dataset: Dataset, layout: Layout, index: np.ndarray) -> None:
    """Refuse chunks without filters that are too short, because libhdf5 would return memory that it never wrote."""
    every_filter = (1 << len(layout.filters)) - 1
    is_unfiltered = (index[2] & every_filter) == every_filter
    n_bytes = prod(layout.chunks) * dataset.stored_size
    n_short = int((is_unfiltered & (index[1] < n_bytes)).sum())
    if n_short:
        raise Rejection(
            f"{n_short} of {index.shape[1]} chunks have less than {n_bytes} bytes. The file is damaged: copy it again.",
            layout.name,
        )


def _check_chunks(layout: Layout, n_chunks: int) -> None:
    if layout.chunk_bytes > MOST_CHUNK_BYTES:
        raise Rejection(
            f"chunks of {layout.chunk_bytes} bytes, expected at most {MOST_CHUNK_BYTES}. Rewrite the file with smaller "
            "chunks (h5repack -l).",
            layout.name,
        )
    if n_chunks > MOST_CHUNKS:
        raise Rejection(
            f"shape {layout.shape} in {n_chunks} chunks, expected at most {MOST_CHUNKS}. Rewrite the file with larger "
            "chunks (h5repack -l).",
            layout.name,
        )


def _listed_chunks(dataset: Dataset, name: str, grid: tuple[int, ...], most_listed: int) -> np.ndarray:
    """Return the index of the chunks that HDF5 lists, with -1 for missing chunks.

    The order is C order of the chunk grid, or HDF5's order if HDF5 lists wrong positions.
    """
    index = np.full((3, prod(grid)), -1, dtype=np.int64)
    chunks = dataset.chunks
    strides = [prod(grid[axis + 1 :]) for axis in range(len(grid))]
    is_ordered = dataset.has_usual_order
    n_listed = 0
    n_taken = 0

    def take(chunk: Any) -> None:
        nonlocal n_listed, n_taken
        n_listed += 1
        cell = [first // size for first, size in zip(chunk.chunk_offset, chunks, strict=True)]
        if is_ordered and any(i >= n for i, n in zip(cell, grid, strict=True)) and n_listed <= most_listed:
            return  # a remainder from before the dataset was shrunk
        if n_taken == index.shape[1] or n_listed > most_listed:  # otherwise a forged index might never end
            raise Rejection(
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


def _edges(shape: tuple[int, ...], chunks: tuple[int, ...]) -> np.ndarray:
    """Return a boolean mask of the chunks, in C order, that extend beyond the edge of the dataset."""
    edges = np.zeros(grid_of(shape, chunks), dtype=bool)
    for axis, (n, size) in enumerate(zip(shape, chunks, strict=True)):
        if n % size:
            np.moveaxis(edges, axis, 0)[-1] = True
    return edges.ravel()


def has_unfiltered_edges(properties: PropDCID) -> bool:
    """Return whether chunks that extend beyond the edge of the dataset are stored without filters."""
    options = ctypes.c_uint(0)
    if _get_chunk_options(properties.id, ctypes.byref(options)) < 0:
        raise RuntimeError("H5Pget_chunk_opts failed")
    return bool(options.value & _UNFILTERED_EDGES)
