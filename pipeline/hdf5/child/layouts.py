"""Where HDF5 stores the bytes of a dataset: plain values that the child returns and the parent checks."""

import ctypes
from math import prod
from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.find import Refused, is_plain, most_entries
from pipeline.hdf5.filters.codecs import ASKED, FILTERS, objection, written_anew
from pipeline.hdf5.forms import text
from pipeline.hdf5.layout import bytes_of, grid_of
from pipeline.hdf5.limits import MOST_CHUNK_BYTES, MOST_CHUNKS

__all__ = ["filters_of", "layout_claim"]

_UNFILTERED_EDGES = 2  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
_EVERY_FILTER = 0xFFFFFFFF

_get_chunk_options = ctypes.CDLL(h5py.h5p.__file__).H5Pget_chunk_opts  # h5py leaves it out
_get_chunk_options.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_uint)]


def layout_claim(dataset: h5py.Dataset, name: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Return where the bytes of a dataset lie, as `layout.layout_of` takes it, and append arrays to `arrays`.

    For a chunked one these are offsets, sizes and filter masks of its chunks: shape (3, n_chunks), int64; for one
    inside the metadata its bytes.
    """
    properties = dataset.id.get_create_plist()
    filters = filters_of(properties, name)
    layout = properties.get_layout()
    # As stored: bfloat16, which is read as float32, takes half of the bytes of NumPy's type.
    n_bytes = prod(dataset.shape) * dataset.id.get_type().get_size()
    claim = {"name": name, "shape": dataset.shape, "dtype": _spelled(dataset.dtype)}
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
    """Return ``chunked`` if chunks can be read without HDF5, else ``asked``; refuse what needs plugins of HDF5."""
    has_places = is_plain(dataset, dataset.dtype) and _has_right_places(dataset)
    if has_places and not any(code in ASKED for code, _ in filters):
        return "chunked"
    for code, _ in filters:
        if FILTERS[code].is_plugin:
            raise Refused(
                f"values of another form than NumPy's through filter {code}, for which the HDF5 library would need a "
                f"plugin (not allowed). {written_anew(name)}",
                name,
            )
    return "asked"


def _contiguous(dataset: h5py.Dataset, name: str, n_bytes: int) -> dict[str, Any]:
    offset = dataset.id.get_offset()
    if offset is None or dataset.id.get_storage_size() < n_bytes:
        raise Refused(f"shape {dataset.shape}, but its {n_bytes} bytes were never written. Write the file anew.", name)
    if is_plain(dataset, dataset.dtype):
        return {"kind": "contiguous", "offset": offset}
    if dataset.dtype.hasobject:
        return {"kind": "asked", "offset": offset}
    return {"kind": "asked"}


def filters_of(properties: Any, name: str) -> list[tuple[int, list[int]]]:
    """Return codes and parameters of a dataset's filters; refuse those that cannot be undone."""
    listed = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    for i, (code, _flags, values, label) in enumerate(listed):
        words = objection(code, values, name)
        if code in [other[0] for other in listed[:i]]:
            words = f"twice, expected once. {written_anew(name)}"
        if words:
            raise Refused(f"filter {code} ({text(label)}) {words}", name)
    return [(code, list(values)) for code, _flags, values, _label in listed]


def _index(dataset: h5py.Dataset, name: str, n_before: int) -> np.ndarray:
    """Return offset, size and filter mask of every chunk, in C order of their grid; refuse missing chunks."""
    grid = _checked_grid(dataset, name, n_before)
    index = np.full((3, prod(grid)), -1, dtype=np.int64)
    if index.size:
        _take_places(dataset, name, grid, index)
    n_missing = int((index[0] < 0).sum())
    if n_missing:
        raise Refused(
            f"shape {dataset.shape} in {prod(grid)} chunks, but {n_missing} of them were never written. Write the file "
            "anew.",
            name,
        )
    properties = dataset.id.get_create_plist()
    if properties.get_nfilters() and _has_unfiltered_edges(properties):
        edges = np.zeros(grid, dtype=bool)
        for axis, (n, size) in enumerate(zip(dataset.shape, dataset.chunks, strict=True)):
            if n % size:
                edges[(slice(None),) * axis + (-1,)] = True
        index[2, edges.ravel()] = _EVERY_FILTER
    return index


def _checked_grid(dataset: h5py.Dataset, name: str, n_before: int) -> tuple[int, ...]:
    """Return the number of chunks along each axis; refuse chunks that are too large or, with others, too many."""
    shape = dataset.shape
    chunks = dataset.chunks
    if len(chunks) != len(shape) or 0 in chunks:
        raise Refused(f"chunks of shape {chunks}, expected rank {len(shape)} as of its shape {shape}", name)
    n_bytes = prod(chunks) * dataset.dtype.itemsize
    if n_bytes > MOST_CHUNK_BYTES:
        raise Refused(
            f"chunks of {n_bytes} bytes, expected {MOST_CHUNK_BYTES} at most. Rewrite the file with smaller ones "
            "(h5repack -l).",
            name,
        )
    grid = grid_of(shape, chunks)
    n_chunks = prod(grid)
    n_missing = n_chunks - h5py.h5i.get_file_id(dataset.id).get_filesize()
    if n_missing > 0 and n_chunks <= MOST_CHUNKS:  # a chunk takes a byte at least
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, but at least {n_missing} of them were never written. Write the "
            "file anew.",
            name,
        )
    if n_before + n_chunks > MOST_CHUNKS:
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, expected {MOST_CHUNKS} at most. Rewrite the file with larger ones "
            "(h5repack -l).",
            name,
        )
    return grid


def _take_places(dataset: h5py.Dataset, name: str, grid: tuple[int, ...], index: np.ndarray) -> None:
    """Fill an index with the chunks that HDF5 lists: in the grid's order, or as listed if their places are wrong."""
    chunks = dataset.chunks
    is_ordered = _has_right_places(dataset)
    most_listed = most_entries(dataset.id)
    n_listed = 0
    n_taken = 0

    def take(chunk: Any) -> None:
        nonlocal n_taken, n_listed
        n_listed += 1
        if n_listed > most_listed:  # counts those outside the dataset, too
            raise Refused("an index of more chunks than the file has room for. The file is damaged or forged.", name)
        cell = [first // size for first, size in zip(chunk.chunk_offset, chunks, strict=True)]
        if is_ordered and any(i >= n for i, n in zip(cell, grid, strict=True)):
            return  # left over from a time when the dataset was larger
        if n_taken == index.shape[1]:  # or a forged index would never end
            raise Refused(
                f"shape {dataset.shape} has {n_taken} chunks, found more. The file is damaged or forged.", name
            )
        place = n_taken
        if is_ordered:
            place = _place_in(grid, cell)
        n_taken += 1
        if chunk.byte_offset is not None:
            index[:, place] = chunk.byte_offset, chunk.size, chunk.filter_mask

    dataset.id.chunk_iter(take)


def _place_in(grid: tuple[int, ...], cell: list[int]) -> int:
    """Return the position of a cell in C order."""
    place = 0
    for i, n in zip(cell, grid, strict=True):
        place = place * n + i
    return place


def _has_right_places(dataset: h5py.Dataset) -> bool:
    """Return whether HDF5 lists the right places of chunks in the dataset.

    If one axis that is not the first may grow without limit, HDF5 (1.10 to 2.0) numbers chunks along that axis first,
    and lists their places as if it had not.
    """
    unlimited = [axis for axis, most in enumerate(dataset.maxshape) if most is None]
    return len(unlimited) != 1 or unlimited[0] == 0


def _has_unfiltered_edges(properties: Any) -> bool:
    """Return whether chunks that extend over the edge of the dataset are stored without filters."""
    options = ctypes.c_uint(0)
    if _get_chunk_options(properties.id, ctypes.byref(options)) < 0:
        raise RuntimeError("H5Pget_chunk_opts failed")
    return bool(options.value & _UNFILTERED_EDGES)


def _spelled(dtype: np.dtype) -> dict[str, Any]:
    """Return a dtype in plain values, with h5py's metadata."""
    if dtype.subdtype is not None:
        return {"of": _spelled(dtype.subdtype[0]), "shape": dtype.subdtype[1]}
    if dtype.fields is not None:
        fields = [(name, _spelled(dtype.fields[name][0]), dtype.fields[name][1]) for name in dtype.names or ()]
        return {"fields": fields, "itemsize": dtype.itemsize}
    notes = {key: value for key, value in (dtype.metadata or {}).items() if key != "vlen"}
    return {"code": dtype.str, "notes": notes}
