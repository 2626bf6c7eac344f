"""Rows straight from the file, without HDF5 and its global lock: bytes from where the gate found them, decoded here.

Each read opens the file anew, and makes sure that it is the vetted one before and after. Of a chunked dataset, one
chunk at a time is in memory; what must be converted is so a piece at a time.
What is no plain value, such as text of any length, is left to HDF5 in the child.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.files import opened, persistently, read_into
from pipeline.filters import undone
from pipeline.formats import digest
from pipeline.gate import Shard
from pipeline.gatekeeper import ask
from pipeline.layout import Layout

__all__ = ["file_digest", "read_values"]

_PIECE = 2**20  # bytes


def read_values(
    shard: Shard, layout: Layout, start: int, stop: int, dtype: np.dtype, out: np.ndarray | None = None
) -> np.ndarray:
    """A dataset's values along its first axis, from `start` to `stop`.

    Parameters
    ----------
    shard : Shard
    layout : Layout
        One of the shard's.
    start, stop : int
    dtype : dtype
        Of the result.
    out : ndarray, optional
        Of the result's dtype and size, in C order: where it goes. Fresh memory takes longer than reading into it.

    Returns
    -------
    ndarray of shape (stop - start, *layout.shape[1:]), C order

    Raises
    ------
    DataError
        When they are damaged, or the file is not the one that was vetted.
    ReadFailed, NotPermitted, SystemLimit
        When the system fails.
    """
    where = f"file={shown(shard.path)} dataset={shown(layout.name)} rows={start}:{stop}"
    shape = (stop - start, *layout.shape[1:])

    def read() -> np.ndarray:
        with opened(shard.path, shard.identity) as (descriptor, _):
            values = np.empty(shape, dtype=dtype) if out is None else out.reshape(shape)
            if layout.kind == "asked":
                _read_asked(descriptor, layout, start, values, where)
            elif layout.kind == "chunked":
                _read_chunked(descriptor, layout, start, values, where)
            elif layout.kind == "inline":
                values[...] = np.frombuffer(layout.data, dtype=layout.dtype).reshape(layout.shape)[start:stop]
            else:
                _read_contiguous(descriptor, layout, start, values)
            return values

    return persistently(read, where)


def file_digest(shard: Shard) -> str:
    """BLAKE3 of the shard's file, in hexadecimal digits; raises like `read_values`."""

    def pieces() -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_PIECE))
        with opened(shard.path, shard.identity) as (descriptor, _):
            for offset in range(0, shard.size, _PIECE):
                piece = buffer[: min(_PIECE, shard.size - offset)]
                read_into(descriptor, piece, offset)
                yield piece

    return persistently(lambda: digest(pieces()), f"file={shown(shard.path)}")


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


# -- contiguous --------------------------------------------------------------------------------------------------


def _read_contiguous(descriptor: int, layout: Layout, start: int, out: np.ndarray) -> None:
    if not out.size:
        return
    row_bytes = prod(layout.shape[1:]) * layout.dtype.itemsize
    if out.dtype == layout.dtype:
        read_into(descriptor, _bytes_of(out), layout.offset + start * row_bytes)
        return
    n_rows = max(1, _PIECE // row_bytes)
    piece = np.empty((n_rows, *layout.shape[1:]), dtype=layout.dtype)
    for first in range(0, len(out), n_rows):
        part = piece[: len(out) - first]
        read_into(descriptor, _bytes_of(part), layout.offset + (start + first) * row_bytes)
        out[first : first + len(part)] = part


# -- chunked -----------------------------------------------------------------------------------------------------


def _read_chunked(descriptor: int, layout: Layout, start: int, out: np.ndarray, where: str) -> None:
    assert layout.index is not None
    grid = [-(-n // size) for n, size in zip(layout.shape, layout.chunks, strict=True)]
    for cell, source, target in _cells(layout, start, start + len(out)):
        offset, size, mask = layout.index[:, np.ravel_multi_index(cell, grid)].tolist()
        data = np.empty(size, dtype=np.uint8).data
        read_into(descriptor, data, offset)
        try:
            decoded = undone(data, layout.filters, mask, layout.chunk_bytes)
        except ValueError as error:
            at = [i * n for i, n in zip(cell, layout.chunks, strict=True)]
            raise DataError(
                f"{where}: the chunk at {at} cannot be read: {error}. The file is damaged: copy it again."
            ) from error
        out[target] = np.frombuffer(decoded, dtype=layout.dtype).reshape(layout.chunks)[source]


def _cells(
    layout: Layout, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """The chunks that rows `start` to `stop` lie in: cell of the grid, what of the chunk goes where in the result."""
    axes: list[list[tuple[int, slice, slice]]] = []
    for axis, (n, size) in enumerate(zip(layout.shape, layout.chunks, strict=True)):
        low, high = (start, stop) if axis == 0 else (0, n)
        steps = []
        for i in range(low // size, -(-high // size) if high > low else 0):
            first, last = max(low, i * size), min(high, (i + 1) * size)
            steps.append((i, slice(first - i * size, last - i * size), slice(first - low, last - low)))
        axes.append(steps)
    for chosen in product(*axes):
        cell, source, target = zip(*chosen, strict=True)
        yield cell, source, target


# -- asked -------------------------------------------------------------------------------------------------------


def _read_asked(descriptor: int, layout: Layout, start: int, out: np.ndarray, where: str) -> None:
    """Values that only HDF5 can read, an answer of the child at a time."""
    first = 0
    while first < len(out):
        facts, arrays = ask("values", descriptor, [layout.name, start + first, start + len(out)], where)
        try:
            values = _told(facts, arrays, layout)
            out[first : first + len(values)] = values
        except (TypeError, ValueError, LookupError) as error:
            raise DataError(
                f"{where}: what the HDF5 library says makes no sense ({shown(error)}). The file is damaged or "
                "forged: do not use it."
            ) from error
        first += len(values)


def _told(facts: dict, arrays: list[np.ndarray], layout: Layout) -> np.ndarray:
    *lengths, data = arrays
    n = facts["n"]
    if type(n) is not int or n < 1 or data.dtype != np.uint8:
        raise ValueError("values")
    if not layout.dtype.hasobject:
        return data.view(layout.dtype).reshape(n, *layout.shape[1:])
    ends = np.cumsum(lengths[0])
    if len(ends) != n or (lengths[0] < 0).any() or ends[-1] != len(data):
        raise ValueError("texts")
    values = np.empty(n, dtype=object)
    values[:] = [data[end - size : end].tobytes() for end, size in zip(ends.tolist(), lengths[0].tolist(), strict=True)]
    return values
