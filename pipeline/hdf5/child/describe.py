"""What the child finds: libhdf5 looks into a file that nobody trusts, and says in plain values what lies where.

Only `sandbox` runs this, in a process that has limits and ends after one answer. What it answers is a claim that `gate`
checks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import isfinite, prod
from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.candidates import choose, find
from pipeline.hdf5.child.find import Refused, elsewhere, is_plain, walk
from pipeline.hdf5.child.riders import find_carried, find_riders
from pipeline.hdf5.filters.codecs import REGISTERED, objection, written_anew
from pipeline.hdf5.limits import (
    ANSWER_BYTES,
    ASKED,
    MOST_ANSWER_BYTES,
    MOST_CHUNK_BYTES,
    MOST_CHUNKS,
    MOST_LEFT_OUT,
    MOST_NAMES,
)
from pipeline.hdf5.paths import beside, normal, text

__all__ = ["describe", "values"]

_COLUMNS, _FILL_VALUE = b"columns", b"_FillValue"
_TEXTS = 1024  # read at once: how long texts are is known afterwards only
_UNFILTERED_EDGES = 2  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
_EVERY_FILTER = 0xFFFFFFFF

_get_chunk_options = ctypes.CDLL(h5py.h5p.__file__).H5Pget_chunk_opts  # h5py leaves it out
_get_chunk_options.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_uint)]


# -- describing --------------------------------------------------------------------------------------------------


def describe(
    file: h5py.File, dataset: str | None, orientation: str | None = None, carry: Sequence[str] = ()
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Where the rows and what rides along with them lie.

    Parameters
    ----------
    file : h5py.File
    dataset : str, optional
        The dataset that holds the rows. With none: ``X``, else the only candidate.
    orientation : str, optional
        ``rows`` or ``columns``: along which axis the rows lie.
    carry : sequence of str
        Paths of what rides along wherever it lies, from the root.

    Returns
    -------
    dict
        ``dataset``, ``columns`` and ``fill_value``; ``form``, ``shape`` and ``rows``, how the rows lie and where: the
        layouts of what makes them up, as in `pipeline.hdf5.forms`; ``riders``, each with ``name``, ``layout``,
        ``categories`` and ``is_carried``; ``left_out``, as of `riders.LeftOut`.
    list of ndarray
        Of each chunked layout in turn, the rows' first: offsets, sizes and filter masks of its chunks, shape
        (3, n_chunks), int64; of each one inside the metadata: its bytes.
    """
    rows = find(file, dataset if dataset is not None else choose(file, orientation), orientation)
    arrays: list[np.ndarray] = []
    layouts = [_layout(found, path, arrays) for path, found in rows.parts]
    riding, left_out = find_riders(rows.parent, rows.name, rows.shape, _layout, arrays)
    there = {beside(normal(rows.name), rider["name"]) for rider in riding}
    carried, missing = find_carried(file, [path for path in carry if path not in there], rows.shape, _layout, arrays)
    facts = {
        "dataset": rows.name,
        "columns": _columns(rows.parts[0][1], rows.name),
        "fill_value": _fill_value(rows.parts[0][1]),
        "form": rows.form,
        "shape": rows.shape,
        "rows": layouts,
        "riders": riding + carried,
        "left_out": [*missing, *left_out.told][:MOST_LEFT_OUT],
    }
    return facts, arrays


def _columns(rows: h5py.Dataset, name: str) -> list[str] | None:
    """The names in the attribute `columns`. Other attributes are not looked at: there may be any number of them."""
    if not h5py.h5a.exists(rows.id, _COLUMNS):
        return None
    found = h5py.h5a.open(rows.id, _COLUMNS)
    if len(found.shape or ()) != 1 or h5py.check_string_dtype(found.dtype) is None:
        return None
    if found.shape[0] > MOST_NAMES or found.shape[0] * found.dtype.itemsize > ANSWER_BYTES:
        raise Refused(f"attribute columns: {found.shape[0]} names, expected {MOST_NAMES} at most", name)
    names = np.empty(found.shape, found.dtype)
    found.read(names)
    if sum(map(len, names)) > ANSWER_BYTES:
        raise Refused(f"attribute columns: names of more than {ANSWER_BYTES} bytes", name)
    return [text(each) if isinstance(each, bytes) else str(each) for each in names.tolist()]


def _fill_value(rows: h5py.Dataset) -> float | None:
    """The number in netCDF's attribute `_FillValue`, which stands for no value."""
    if not h5py.h5a.exists(rows.id, _FILL_VALUE):
        return None
    found = h5py.h5a.open(rows.id, _FILL_VALUE)
    try:
        stored = found.dtype
    except TypeError:  # one that NumPy does not have
        return None
    if found.shape not in ((), (1,)) or stored.kind not in "iuf" or stored.itemsize > 8:
        return None
    value = np.empty(found.shape, stored)
    found.read(value)
    number = value.item()
    return number if isfinite(number) else None


# -- layouts -----------------------------------------------------------------------------------------------------


def _layout(found: h5py.Dataset, name: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Where a dataset's bytes lie, in plain values, but for what goes into `arrays`."""
    properties = found.id.get_create_plist()
    filters = _filters(properties, name)
    stored, plain = found.dtype, is_plain(found, found.dtype)
    n_bytes, layout = prod(found.shape) * stored.itemsize, properties.get_layout()
    chunks: tuple[int, ...] = ()
    kind, offset = "asked", 0
    if layout == h5py.h5d.CHUNKED:
        is_raw = plain and _tells_places(found) and not any(code in ASKED for code, _ in filters)
        kind = "chunked" if is_raw else "asked"
        if not is_raw:
            _check_without_plugins(filters, name)
        chunks = properties.get_chunk()
        n_before = sum(array.shape[1] for array in arrays if array.ndim == 2)
        arrays.append(_index(found, name, chunks, properties, n_before))
    elif n_bytes and layout == h5py.h5d.CONTIGUOUS:
        offset = found.id.get_offset()
        if offset is None or found.id.get_storage_size() < n_bytes:
            raise Refused(
                f"shape {found.shape}, but its {n_bytes} bytes were never written. Write the file anew.", name
            )
        kind = "contiguous" if plain else "asked"
    elif plain:
        kind = "inline"
        arrays.append(_bytes(found[...]))
    return {
        "name": name,
        "shape": found.shape,
        "dtype": _spelled(stored),
        "kind": kind,
        "offset": offset,
        "chunks": chunks,
        "filters": filters,
    }


def _filters(properties: Any, name: str) -> list[tuple[int, list[int]]]:
    found = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    for i, (code, _flags, values, label) in enumerate(found):
        words = objection(code, values, name)
        if code in [other[0] for other in found[:i]]:
            words = f"twice, expected once. {written_anew(name)}"
        if words:
            raise Refused(f"filter {code} ({text(label)}) {words}", name)
    return [(code, list(values)) for code, _flags, values, _label in found]


def _check_without_plugins(filters: list[tuple[int, list[int]]], name: str) -> None:
    """Refuse, of values that only HDF5 can read, what it would need a plugin for."""
    for code, _ in filters:
        if code in REGISTERED:
            raise Refused(
                f"values of another form than NumPy's through filter {code}, for which the HDF5 library would need a "
                f"plugin (not allowed). {written_anew(name)}",
                name,
            )


def _index(found: h5py.Dataset, name: str, chunks: tuple[int, ...], properties: Any, n_before: int) -> np.ndarray:
    """Offset, size and filter mask of every chunk, in C order of their grid; there must be all of them."""
    shape, itemsize = found.shape, found.dtype.itemsize
    if len(chunks) != len(shape) or 0 in chunks:
        raise Refused(f"chunks of shape {chunks}, expected rank {len(shape)} as of its shape {shape}", name)
    if prod(chunks) * itemsize > MOST_CHUNK_BYTES:
        raise Refused(
            f"chunks of {prod(chunks) * itemsize} bytes, expected {MOST_CHUNK_BYTES} at most. Rewrite the file with "
            "smaller ones (h5repack -l).",
            name,
        )
    grid = [-(-n // size) for n, size in zip(shape, chunks, strict=True)]
    n_chunks = prod(grid)
    if n_before + n_chunks > MOST_CHUNKS:
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, expected {MOST_CHUNKS} at most. Rewrite the file with larger ones "
            "(h5repack -l).",
            name,
        )
    index = np.full((3, n_chunks), -1, dtype=np.int64)
    strides = [prod(grid[i + 1 :]) for i in range(len(grid))]
    in_order, n_told = _tells_places(found), 0

    def take(chunk: Any) -> None:
        nonlocal n_told
        cell = [first // size for first, size in zip(chunk.chunk_offset, chunks, strict=True)]
        if in_order and any(i >= n for i, n in zip(cell, grid, strict=True)):
            return
        if n_told == n_chunks:  # or a forged index would go on for ever
            raise Refused(f"shape {shape} has {n_chunks} chunks, found more. The file is damaged or forged.", name)
        place = sum(i * n for i, n in zip(cell, strides, strict=True)) if in_order else n_told
        n_told += 1
        if chunk.byte_offset is not None:
            index[:, place] = chunk.byte_offset, chunk.size, chunk.filter_mask

    if n_chunks:
        found.id.chunk_iter(take)
    n_missing = int((index[0] < 0).sum())
    if n_missing:
        raise Refused(
            f"shape {shape} in {n_chunks} chunks, but {n_missing} of them were never written. Write the file anew.",
            name,
        )
    if properties.get_nfilters() and _has_unfiltered_edges(properties):
        edges = np.zeros(grid, dtype=bool)
        for axis, (n, size) in enumerate(zip(shape, chunks, strict=True)):
            if n % size:
                edges[(slice(None),) * axis + (-1,)] = True
        index[2, edges.ravel()] = _EVERY_FILTER
    return index


def _tells_places(found: h5py.Dataset) -> bool:
    """Whether HDF5 tells rightly where in the dataset a chunk belongs.

    Where one axis that is not the first may grow without limit, HDF5 (1.10 to 2.0) numbers chunks along that axis
    first, and tells their places as if it had not.
    """
    unlimited = [axis for axis, most in enumerate(found.maxshape) if most is None]
    return len(unlimited) != 1 or unlimited[0] == 0


def _has_unfiltered_edges(properties: Any) -> bool:
    """Whether chunks that stick out over the dataset's edge are stored without filters."""
    options = ctypes.c_uint(0)
    if _get_chunk_options(properties.id, ctypes.byref(options)) < 0:
        raise RuntimeError("H5Pget_chunk_opts failed")
    return bool(options.value & _UNFILTERED_EDGES)


def _spelled(dtype: np.dtype) -> dict[str, Any]:
    """A dtype in plain values, with what h5py notes on it."""
    if dtype.subdtype is not None:
        return {"of": _spelled(dtype.subdtype[0]), "shape": dtype.subdtype[1]}
    if dtype.fields is not None:
        fields = [(name, _spelled(dtype.fields[name][0]), dtype.fields[name][1]) for name in dtype.names or ()]
        return {"fields": fields, "itemsize": dtype.itemsize}
    notes = {key: value for key, value in (dtype.metadata or {}).items() if key != "vlen"}
    return {"code": dtype.str, "notes": notes}


# -- values that only HDF5 can read ------------------------------------------------------------------------------


def values(file: h5py.File, name: str, start: int, stop: int, axis: int = 0) -> tuple[dict[str, Any], list[np.ndarray]]:
    """As many of a dataset's values from `start` on along its first or last axis as fit into an answer, one at least.

    Returns
    -------
    dict
        ``n``, their number.
    list of ndarray
        The values as bytes, uint8; of texts their lengths, int64, before them.
    """
    _, found = walk(file, name)
    if elsewhere(found):
        raise Refused("its values lie elsewhere", name)
    _filters(found.id.get_create_plist(), name)
    if not found.dtype.hasobject:
        row_bytes = max(1, prod(found.shape) // found.shape[axis] * found.dtype.itemsize)
        some = slice(start, min(stop, start + max(1, ANSWER_BYTES // row_bytes)))
        rows = np.moveaxis(found[..., some] if axis else found[some], axis, 0)
        return {"n": len(rows)}, [_bytes(np.ascontiguousarray(rows))]
    texts: list[bytes] = []
    n_bytes = 0
    while start + len(texts) < stop and n_bytes < ANSWER_BYTES:
        first = start + len(texts)
        some = slice(first, min(stop, first + _TEXTS))
        more = (found[..., some] if axis else found[some]).reshape(-1)
        texts.extend(more)
        n_bytes += sum(map(len, more))
    if n_bytes > MOST_ANSWER_BYTES:
        raise Refused(f"texts of {n_bytes} bytes, expected {MOST_ANSWER_BYTES} at most", name)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    return {"n": len(texts)}, [lengths, np.frombuffer(b"".join(texts), dtype=np.uint8)]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
