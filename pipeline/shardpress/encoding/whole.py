"""``single.h5``, a copy of all parts in one file, which is easy to move.

HDF5 lays out the file in memory without the values. The values are then copied from the parts piece by piece, so that
the memory does not depend on the size of the file. Strings of variable length are converted to fixed-length strings as
long as the longest one, and compressed values are decompressed. Only HDF5 could write the original forms, and it would
need unbounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress import signals
from shardpress.encoding.template import Template, lay_out
from shardpress.errors import ReadFailed, printable
from shardpress.features import FAILURES, Shape, categories_of, common_dtypes, reading
from shardpress.hdf5.categories import attribute_value
from shardpress.hdf5.files import read_into
from shardpress.output.disk import Pieces

__all__ = ["single_file", "unreadable"]

_PIECE = 2**22  # bytes to copy at once; signals are handled between two pieces
_PIECE_TEXTS = 2**14  # strings to read at once; each takes about 50 bytes in addition to its characters
_FIRST_TEXTS = 16  # strings to read first, when their lengths are unknown


@dataclass(frozen=True)
class _Values:
    """Location of a dataset in the file of a part.

    Attributes
    ----------
    offset : int or None
        Offset of the values in the file. None if they are not contiguous.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int | None


def single_file(directory: Path, files: Sequence[str], attributes: Mapping[str, Any]) -> Pieces:
    """Return the bytes of a feature shard with the rows of all parts.

    Parameters
    ----------
    directory : Path
        Output directory.
    files : sequence of str
        Files of the parts in row order, relative to the directory.
    attributes : mapping
        Attributes of the file. Nested values are written as JSON.

    Returns
    -------
    Pieces
        Content of the file, which is read from the parts on demand.

    Raises
    ------
    ReadFailed
        If a part cannot be read, now or while the pieces are read.
    """
    parts = [_datasets(directory / name) for name in files]
    names = common_dtypes([{name: (values.shape, values.dtype) for name, values in part.items()} for part in parts])
    columns = {name: [part[name] for part in parts] for name in names}
    shapes = {name: _joined_shape(name, column) for name, column in columns.items()}
    found = categories_of(directory / files[0])
    categories = {name: attribute_value(found[name].tolist()) for name in found.keys() & shapes.keys()}
    template = lay_out(shapes, {}, attributes, categories=categories)
    return Pieces(template.n_bytes, _pieces(template, columns, shapes))


def _datasets(path: Path) -> dict[str, _Values]:
    """Return the datasets of a part. Keys are their names."""
    try:
        with reading(path) as part:
            return {
                key: _Values(path, item.shape, item.dtype, item.id.get_offset())
                for key, item in part.items()
                if isinstance(item, h5py.Dataset)
            }
    except FAILURES as error:
        raise unreadable(path, error) from error


def _joined_shape(name: str, column: Sequence[_Values]) -> Shape:
    """Return the shape of the concatenated values of all parts, and their dtype in the single file."""
    n_rows = sum(values.shape[0] for values in column)
    shape = (n_rows, *column[0].shape[1:])
    dtype = column[0].dtype
    if dtype.hasobject:
        # The layout depends on the longest string, so strings are read twice: here and when they are copied.
        n_bytes = max(1, *(_longest_text(name, values) for values in column))
        dtype = h5py.string_dtype("utf-8", n_bytes)
    return shape, dtype


def _longest_text(name: str, values: _Values) -> int:
    longest = 0
    for texts in _read_texts(name, values):
        longest = max(longest, *map(len, texts))
    return longest


def _pieces(
    template: Template, columns: Mapping[str, Sequence[_Values]], shapes: Mapping[str, Shape]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file in order."""
    for _, piece in template.pieces:
        if not isinstance(piece, str):
            yield piece
            continue
        _, dtype = shapes[piece]
        for values in columns[piece]:
            for piece_bytes in _stored_bytes(piece, values, dtype):
                signals.check()
                yield piece_bytes


def _stored_bytes(name: str, values: _Values, dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """Yield the values of a part in the form that the single file stores."""
    if values.dtype.hasobject:
        for texts in _read_texts(name, values, dtype.itemsize):
            yield np.array(texts, dtype=f"S{dtype.itemsize}").tobytes()
    elif values.offset is None:
        row_bytes = prod(values.shape[1:]) * dtype.itemsize
        piece_rows = max(1, _PIECE // max(1, row_bytes))
        for start in range(0, values.shape[0], piece_rows):
            yield _read_rows(name, values, start, piece_rows).tobytes()
    else:
        yield from _contiguous_bytes(values, values.offset)


def _contiguous_bytes(values: _Values, offset: int) -> Iterator[memoryview]:
    """Yield the bytes of contiguous values."""
    n_bytes = prod(values.shape) * values.dtype.itemsize
    # All pieces share one buffer, because each piece is written before the next one is read.
    buffer = memoryview(bytearray(min(_PIECE, n_bytes)))
    try:
        # Read the file without HDF5, which would take its own lock and the GIL for each piece.
        with open(values.path, "rb", buffering=0) as file:
            for start in range(0, n_bytes, _PIECE):
                piece = buffer[: n_bytes - start]
                read_into(file.fileno(), piece, offset + start)
                yield piece
    except OSError as error:
        raise unreadable(values.path, error) from error


def _read_texts(name: str, values: _Values, itemsize: int = 0) -> Iterator[np.ndarray]:
    """Yield arrays of strings with at most a few megabytes each.

    Parameters
    ----------
    name : str
        Name of the dataset.
    values : _Values
    itemsize : int
        Number of bytes per string in the caller's array.
    """
    max_texts = max(1, min(_PIECE_TEXTS, _PIECE // max(1, itemsize)))
    n_texts = min(_FIRST_TEXTS, max_texts)
    start = 0
    while start < values.shape[0]:
        texts = _read_rows(name, values, start, n_texts)
        yield texts
        start += len(texts)
        mean_bytes = max(1, sum(map(len, texts)) // len(texts))
        n_texts = max(1, min(max_texts, 4 * n_texts, _PIECE // mean_bytes))


def _read_rows(name: str, values: _Values, start: int, n_rows: int) -> np.ndarray:
    try:
        with reading(values.path) as part:
            rows: np.ndarray = part[name][start : start + n_rows]
            return rows
    except FAILURES as error:
        raise unreadable(values.path, error) from error


def unreadable(path: Path, error: Exception) -> ReadFailed:
    """Return the error for a committed part that cannot be read."""
    return ReadFailed(
        f"file={printable(path)}: cannot be read again: {error}. Run the same command again without --verify sizes to "
        "recompute damaged files."
    )
