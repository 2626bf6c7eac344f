"""Rows straight from the file, without HDF5 and its global lock: bytes from where they were found to lie, decoded here.

Each read opens the file anew, and makes sure that it is the vetted one before and after. Of a chunked dataset, one
chunk at a time is in memory, and large ones stay in a cache; what must be converted is so a piece at a time.
What is no plain value, such as text of any length, is left to HDF5 in the child.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.formats import digest
from pipeline.hdf5.child.ask import ask, believed
from pipeline.hdf5.chunkcache import CHUNKS
from pipeline.hdf5.files import Identity, opened, persistently, read_into
from pipeline.hdf5.filters.codecs import undone
from pipeline.hdf5.layout import Layout, bytes_of, grid_of
from pipeline.hdf5.limits import SMALLEST

__all__ = ["file_digest", "read_values", "text_lengths"]

_PIECE = 2**20  # bytes
_LINE = 2**17  # bytes that are read of a line at once
_TILE = 64  # rows
_MOST_TEXTS, _TEXT_BYTES = 1024, 2**25  # that the child reads at once: no more of them, and no more bytes
# How HDF5 stores a text of any length in a dataset: its length, and where it lies (format specification, IV.B).
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


class _Wanted(NamedTuple):
    """Values from `start` on along one axis of a dataset, the first or the last one."""

    layout: Layout
    start: int
    axis: int
    where: str
    file: tuple[str, Identity] | None = None  # by which its chunks are known in the cache; None to keep none


def read_values(
    path: str, identity: Identity, layout: Layout, start: int, out: np.ndarray, axis: int = 0
) -> np.ndarray:
    """A dataset's values along its first or last axis, from `start` on.

    Parameters
    ----------
    path : str
    identity : Identity
        What the file was when it was vetted.
    layout : Layout
        Of one of its datasets.
    start : int
    out : ndarray of shape (n, ...), C order
        Where as many go as there is room for, converted to its dtype; the shape of each is that of the other axes, or
        any of the same size. Memory that is used again takes less time than fresh.
    axis : int
        0 for the first axis, -1 for the last one.

    Returns
    -------
    ndarray
        `out`.

    Raises
    ------
    DataError
        When they are damaged, or the file is not the one that was vetted.
    ReadFailed, NotPermitted, SystemLimit
        When the system fails.
    """
    where = f"file={shown(path)} dataset={shown(layout.name)} rows={start}:{start + len(out)}"
    wanted = _Wanted(layout, start, axis, where, (path, identity))
    others = layout.shape[:-1] if axis else layout.shape[1:]
    values = out.reshape(len(out), *others, *layout.dtype.shape)  # a view, since it is in C order

    def read() -> np.ndarray:
        with opened(path, identity) as (descriptor, _):
            _READERS[layout.kind](descriptor, wanted, values)
            return out

    return persistently(read, where)


def file_digest(path: str, identity: Identity) -> str:
    """BLAKE3 of a file, in hexadecimal digits; raises like `read_values`."""

    def pieces() -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_PIECE))
        with opened(path, identity) as (descriptor, _):
            for offset in range(0, identity.size, _PIECE):
                piece = buffer[: min(_PIECE, identity.size - offset)]
                read_into(descriptor, piece, offset)
                yield piece

    return persistently(lambda: digest(pieces()), f"file={shown(path)}")


def text_lengths(descriptor: int, size: int, layout: Layout, n_rows: int) -> Iterator[np.ndarray] | None:
    """Measure texts of any length without reading them.

    Parameters
    ----------
    descriptor, size : int
        The open file, and its bytes.
    layout : Layout
        Of a dataset that holds one text for each of `n_rows` rows, at checked places.

    Returns
    -------
    iterator of ndarray of shape (n,), int64, or None
        Lengths in bytes, in the order of the rows; None where they cannot be known without HDF5.

    Raises
    ------
    DataError, OSError
        While it is iterated over: if a chunk is damaged, or reading fails.
    """
    n_bytes = n_rows * _REFERENCE.itemsize
    if layout.index is not None and layout.kind == "asked":
        kind = "chunked"
    elif SMALLEST <= layout.offset <= size - n_bytes:
        kind = "contiguous"
    else:
        return None
    references = replace(layout, kind=kind, dtype=_REFERENCE)
    axis = 0 if layout.shape[0] == n_rows else -1
    chunk_rows = layout.chunks[axis] if layout.chunks else 1
    at_once = -(-_PIECE // (_REFERENCE.itemsize * chunk_rows)) * chunk_rows  # whole chunks

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, n_rows, at_once):
            values = np.empty(min(at_once, n_rows - start), dtype=_REFERENCE)
            others = layout.shape[:-1] if axis else layout.shape[1:]
            wanted = _Wanted(references, start, axis, "")
            _READERS[kind](descriptor, wanted, values.reshape(len(values), *others))
            yield values["length"].astype(np.int64)

    return pieces()


# -- contiguous --------------------------------------------------------------------------------------------------


def _read_contiguous(descriptor: int, wanted: _Wanted, out: np.ndarray) -> None:
    if not out.size:
        return
    layout = wanted.layout
    if wanted.axis:
        _read_lines(descriptor, layout, wanted.start, out.reshape(len(out), -1))
        return
    row_bytes = prod(layout.shape[1:]) * layout.dtype.itemsize
    if out.dtype == layout.dtype:
        read_into(descriptor, bytes_of(out).data, layout.offset + wanted.start * row_bytes)
        return
    n_rows = max(1, _PIECE // row_bytes)
    piece = np.empty((n_rows, *layout.shape[1:]), dtype=layout.dtype)
    for first in range(0, len(out), n_rows):
        part = piece[: len(out) - first]
        read_into(descriptor, bytes_of(part).data, layout.offset + (wanted.start + first) * row_bytes)
        out[first : first + len(part)] = part


def _read_lines(descriptor: int, layout: Layout, start: int, out: np.ndarray) -> None:
    """Rows that lie across the file's lines: a piece of each line is read, some lines at a time."""
    n, itemsize = layout.shape[-1], layout.dtype.itemsize
    n_rows, n_lines = min(len(out), max(1, _LINE // itemsize)), out.shape[1]
    at_once = min(n_lines, max(1, _PIECE // (n_rows * itemsize)))
    piece = np.empty((at_once, n_rows), dtype=layout.dtype)
    for row in range(0, len(out), n_rows):
        for line in range(0, n_lines, at_once):
            part = piece[: n_lines - line, : len(out) - row]
            for i, into in enumerate(part, line):
                read_into(descriptor, bytes_of(into).data, layout.offset + (i * n + start + row) * itemsize)
            _transpose(part, out[row : row + n_rows, line : line + at_once])


def _transpose(lines: np.ndarray, out: np.ndarray) -> None:
    """In tiles that stay in the processor's cache, which takes a fraction of the time."""
    for row in range(0, len(out), _TILE):
        out[row : row + _TILE] = lines[:, row : row + _TILE].T


# -- in the metadata ---------------------------------------------------------------------------------------------


def _read_inline(descriptor: int, wanted: _Wanted, out: np.ndarray) -> None:
    values = np.frombuffer(wanted.layout.data, dtype=wanted.layout.dtype).reshape(wanted.layout.shape)
    out[...] = np.moveaxis(values, wanted.axis, 0)[wanted.start : wanted.start + len(out)]


# -- chunked -----------------------------------------------------------------------------------------------------


def _read_chunked(descriptor: int, wanted: _Wanted, out: np.ndarray) -> None:
    layout, axis = wanted.layout, wanted.axis
    assert layout.index is not None
    grid = grid_of(layout.shape, layout.chunks)
    values = np.moveaxis(out, 0, axis)  # a view whose axes are the dataset's
    is_kept = wanted.file is not None and bool(layout.filters) and CHUNKS.holds(layout, axis)
    for cell, source, target in _cells(layout, wanted.start, wanted.start + len(out), axis):
        place = layout.index[:, np.ravel_multi_index(cell, grid)].tolist()
        decompress = partial(_decompressed, descriptor, layout, *place)
        n_rows = source[axis].stop - source[axis].start
        n_in_chunk = min(layout.chunks[axis], layout.shape[axis] - cell[axis] * layout.chunks[axis])
        try:
            if is_kept and n_rows < n_in_chunk:  # other reads need the rest
                decoded = CHUNKS.get((wanted.file, place[0]), layout.chunk_bytes, decompress)
            else:
                decoded = decompress()
        except ValueError as error:
            at = [i * n for i, n in zip(cell, layout.chunks, strict=True)]
            raise DataError(
                f"{wanted.where}: the chunk at {at} cannot be read: {error}. The file is damaged: copy it again."
            ) from error
        values[target] = np.frombuffer(decoded, dtype=layout.dtype).reshape(layout.chunks)[source]


def _decompressed(descriptor: int, layout: Layout, offset: int, size: int, mask: int) -> memoryview:
    """Read one chunk and undo its filters; `ValueError` if it is damaged."""
    data = np.empty(size, dtype=np.uint8).data
    read_into(descriptor, data, offset)
    return undone(data, layout.filters, mask, layout.chunk_bytes)


def _cells(
    layout: Layout, start: int, stop: int, along: int = 0
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """The chunks that `start` to `stop` along an axis lie in: cell of the grid, what of the chunk goes where."""
    axes: list[list[tuple[int, slice, slice]]] = []
    for axis, (n, size) in enumerate(zip(layout.shape, layout.chunks, strict=True)):
        low, high = (start, stop) if axis == along % len(layout.shape) else (0, n)
        steps = []
        for i in range(low // size, -(-high // size) if high > low else 0):
            first, last = max(low, i * size), min(high, (i + 1) * size)
            steps.append((i, slice(first - i * size, last - i * size), slice(first - low, last - low)))
        axes.append(steps)
    for chosen in product(*axes):
        cell, source, target = zip(*chosen, strict=True)
        yield cell, source, target


# -- asked -------------------------------------------------------------------------------------------------------


def _read_asked(descriptor: int, wanted: _Wanted, out: np.ndarray) -> None:
    """Values that only HDF5 can read, an answer of the child at a time."""
    first = 0
    n_texts = max(1, min(_MOST_TEXTS, _TEXT_BYTES // max(1, wanted.layout.longest)))
    while first < len(out):
        place = [wanted.layout.name, wanted.start + first, wanted.start + len(out), wanted.axis, n_texts]
        answer, arrays = ask("values", descriptor, place, wanted.where)
        with believed(wanted.where):
            values = _answered(answer, arrays, wanted.layout.dtype, out.shape[1:])
            out[first : first + len(values)] = values
        first += len(values)


def _answered(answer: Any, arrays: list[np.ndarray], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a shape each."""
    *lengths, data = arrays
    n = answer["n"]
    if type(n) is not int or n < 1 or data.dtype != np.uint8:
        raise ValueError("values")
    if not dtype.hasobject:
        return data.view(dtype).reshape(n, *shape)
    ends = np.cumsum(lengths[0])
    if len(ends) != n or (lengths[0] < 0).any() or ends[-1] != len(data):
        raise ValueError("texts")
    values = np.empty(n, dtype=object)
    values[:] = [data[end - size : end].tobytes() for end, size in zip(ends.tolist(), lengths[0].tolist(), strict=True)]
    return values.reshape(n, *shape)


_READERS: dict[str, Callable[[int, _Wanted, np.ndarray], None]] = {
    "contiguous": _read_contiguous,
    "inline": _read_inline,
    "chunked": _read_chunked,
    "asked": _read_asked,
}
