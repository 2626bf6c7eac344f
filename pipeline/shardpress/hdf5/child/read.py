"""Functions of the child that read values which the driver cannot read from the file by itself."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py.h5f import FileID

from shardpress.hdf5.child.find import Dataset, Rejection, locate, resolve
from shardpress.hdf5.child.layouts import EVERY_FILTER, filters_of, has_unfiltered_edges
from shardpress.hdf5.filters.codecs import decode_chunk
from shardpress.hdf5.filters.plugins import decoders
from shardpress.hdf5.layout import bytes_of, grid_of
from shardpress.hdf5.limits import ANSWER_BYTES, LONGEST_TEXT
from shardpress.hdf5.names import split


def values(root: FileID, name: str, start: int, stop: int, axis: int, n_texts: int) -> tuple[int, list[np.ndarray]]:
    """Read values along the first or last axis of a dataset: the values that fit into one answer, but at least one.

    Strings are read `n_texts` at a time, because their lengths are unknown before reading. The answer is the number of
    values, and their bytes (uint8). For strings, an array of lengths (int64) precedes the bytes. A string is cut off
    one byte after `LONGEST_TEXT`.
    """
    dataset, field = _located(root, name)
    if dataset.dtype.hasobject:
        if dataset.chunks:
            _check_chunks_with_texts(dataset, start, stop, axis)
        texts = _texts(dataset, field, name, start, stop, axis, n_texts)
        lengths = np.array([len(one_text) for one_text in texts], dtype=np.int64)
        return len(texts), [lengths, np.frombuffer(b"".join(texts), dtype=np.uint8)]
    row_bytes = max(1, prod(dataset.shape) // dataset.shape[axis] * dataset.dtype.itemsize)
    n_rows = max(1, ANSWER_BYTES // row_bytes)
    rows = _read(dataset, start, min(stop, start + n_rows), axis)
    return len(rows), [bytes_of(np.ascontiguousarray(rows))]


def _texts(dataset: h5py.Dataset, field: str, name: str, start: int, stop: int, axis: int, n_texts: int) -> list[bytes]:
    values = dataset.fields(field) if field else dataset
    texts: list[bytes] = []
    n_bytes = 0
    n_in_file = dataset.file.id.get_filesize()
    while start + len(texts) < stop and n_bytes < ANSWER_BYTES:
        first = start + len(texts)
        more = _read(values, first, min(stop, first + n_texts), axis).reshape(-1)
        n_bytes += sum(map(len, more))
        if n_bytes > n_in_file:  # many rows can refer to one string of a forged file
            raise Rejection(f"strings of {n_bytes} bytes in a file of {n_in_file} bytes. The file is damaged.", name)
        texts += [text[: LONGEST_TEXT + 1] for text in more]
    return texts


def _read(values: Any, start: int, stop: int, axis: int) -> np.ndarray:
    if axis == 0:
        return values[start:stop]
    return np.moveaxis(values[..., start:stop], axis, 0)


def _check_chunks_with_texts(dataset: h5py.Dataset, start: int, stop: int, axis: int) -> None:
    """Refuse damaged chunks. If one is too short, libhdf5 would take references to strings from other memory."""
    ranges = [range(n) for n in grid_of(dataset.shape, dataset.chunks)]
    size = dataset.chunks[axis]
    ranges[axis] = range(start // size, -(-stop // size))
    for _ in _decoded(dataset, product(*ranges)):
        pass


def chunks(root: FileID, name: str, cells: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Decode chunks of a dataset, given their positions in the chunk grid.

    Each array has the bytes (uint8) of a chunk, in the dtype of h5py. Chunks of strings have references to the strings.
    """
    dataset, _ = _located(root, name)
    decoded = _decoded(dataset, cells)
    if not dataset.dtype.hasobject and not Dataset(dataset.id).is_plain:
        decoded = (_converted(chunk, dataset) for chunk in decoded)
    return [np.frombuffer(chunk, dtype=np.uint8) for chunk in decoded]


def _located(root: FileID, name: str) -> tuple[h5py.Dataset, str]:
    """Return a dataset, and the name of the field if the path leads to one in its records."""
    path, field = split(name)
    _, item = resolve(root, path)
    if not isinstance(item, Dataset):
        field = ""
        _, item = locate(root, name)
    if item.place:
        raise Rejection("the values are in other files, expected values in the file itself", name)
    return h5py.Dataset(item.id), field


def _decoded(dataset: h5py.Dataset, cells: Iterable[Sequence[int]]) -> Iterator[memoryview]:
    properties = dataset.id.get_create_plist()
    filters = filters_of(properties)
    is_unfiltered_at_edges = has_unfiltered_edges(properties)
    sizes = dataset.chunks
    n_bytes = prod(sizes) * Dataset(dataset.id).stored_size
    for cell in cells:
        first = tuple(i * size for i, size in zip(cell, sizes, strict=True))
        is_at_edge = any(i + size > n for i, size, n in zip(first, sizes, dataset.shape, strict=True))
        try:
            mask, data = dataset.id.read_direct_chunk(first)
            if is_at_edge and is_unfiltered_at_edges:
                mask = EVERY_FILTER
            yield decode_chunk(memoryview(data), filters, mask, n_bytes, decoders())
        except (ValueError, OSError, RuntimeError) as error:
            raise Rejection(f"cannot be read: {error}. The file is damaged: copy it again.") from error


def _converted(chunk: memoryview, dataset: h5py.Dataset) -> memoryview:
    """Convert the values of a chunk from a type that NumPy lacks."""
    n_values = prod(dataset.chunks)
    n_bytes = n_values * dataset.dtype.itemsize
    values = np.zeros(max(n_bytes, len(chunk)), dtype=np.uint8)
    values[: len(chunk)] = chunk
    target = h5py.h5t.py_create(dataset.dtype)
    h5py.h5t.convert(dataset.id.get_type(), target, n_values, values, np.zeros(n_bytes, dtype=np.uint8))
    return values[:n_bytes].data
