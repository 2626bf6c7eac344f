"""All parts copied into one file, ``single.h5``, for whoever wants to carry one away.

HDF5 lays it out in memory, where only its own words take room; the values are copied from the parts, a piece at a time.
So it takes the same memory whatever its size, and goes to the disk like any other file of ours. Texts of any length
become texts of one length, that of the longest, and what is compressed in the parts is not any more: only HDF5 could
write the others, and not in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline import signals
from pipeline.encoding.template import Template, lay_out
from pipeline.errors import ReadFailed, shown
from pipeline.features import FAILURES, Shape, categories_of, common, reading
from pipeline.hdf5.files import read_into
from pipeline.hdf5.forms import CATEGORIES
from pipeline.output.disk import Pieces

__all__ = ["single_file"]

_PIECE = 2**22  # bytes copied at once: a signal waits for no more than that
_PIECE_TEXTS = 2**14  # texts, each an object of some 50 bytes beside its own
_FIRST_TEXTS = 16  # that are read before anything is known of their lengths


@dataclass(frozen=True)
class _Values:
    """What a part holds of a dataset, and from which byte on."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    place: int | None


def single_file(directory: Path, files: Sequence[str], attributes: Mapping[str, Any]) -> Pieces:
    """The bytes of a feature shard with the rows of all parts.

    Parameters
    ----------
    files : sequence of str
        The parts, relative to the directory, in the order of the rows.
    attributes : mapping
        Nested values as JSON.

    Returns
    -------
    Pieces
        Read from the parts as they are asked for.

    Raises
    ------
    ReadFailed
        Also while they are asked for.
    """
    parts = [_values(directory / name) for name in files]
    names = common([{name: (values.shape, values.dtype) for name, values in part.items()} for part in parts])
    columns = {name: [part[name] for part in parts] for name in names}
    shapes = {name: _shape(name, column) for name, column in columns.items()}
    categories = {f"{CATEGORIES}/{name}": found for name, found in categories_of(directory / files[0]).items()}
    template = lay_out(shapes, categories, attributes)
    return Pieces(template.n_bytes, _pieces(template, columns, shapes))


def _values(path: Path) -> dict[str, _Values]:
    try:
        with reading(path) as part:
            return {
                key: _Values(path, item.shape, item.dtype, item.id.get_offset())
                for key, item in part.items()
                if key != CATEGORIES
            }
    except FAILURES as error:
        raise _unreadable(path, error) from error


def _shape(name: str, column: Sequence[_Values]) -> Shape:
    """Of the values of all parts, and the dtype in which they are stored."""
    shape = (sum(values.shape[0] for values in column), *column[0].shape[1:])
    if not column[0].dtype.hasobject:
        return shape, column[0].dtype
    # Every text is read twice, now and when it is copied: the length decides where all that follows lies.
    longest = max((len(text) for values in column for texts in _read_texts(name, values) for text in texts), default=1)
    return shape, h5py.string_dtype("utf-8", max(1, longest))


def _pieces(
    template: Template, columns: Mapping[str, Sequence[_Values]], shapes: Mapping[str, Shape]
) -> Iterator[bytes | memoryview]:
    """The file from its first byte to its last."""
    for _, piece in template.pieces:
        if not isinstance(piece, str):
            yield piece
            continue
        for values in columns[piece]:
            for copied in _bytes_of(piece, values, shapes[piece][1]):
                signals.check()
                yield copied


def _bytes_of(name: str, values: _Values, dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """A part's values as they stand in the single file."""
    if values.dtype.hasobject:
        return (
            np.array(texts, dtype=f"S{dtype.itemsize}").tobytes() for texts in _read_texts(name, values, dtype.itemsize)
        )
    if values.place is None:
        row_bytes = prod(values.shape[1:]) * dtype.itemsize
        return (rows.tobytes() for rows in _read(name, values, max(1, _PIECE // max(1, row_bytes))))
    return _copied(values)


def _copied(values: _Values) -> Iterator[memoryview]:
    """The bytes of numbers, as they stand in the part."""
    n_bytes = prod(values.shape) * values.dtype.itemsize
    memory = memoryview(bytearray(min(_PIECE, n_bytes)))  # whoever is given a piece is done before the next
    try:
        # Past HDF5, which would take its own lock and Python's for each piece.
        with open(values.path, "rb", buffering=0) as file:
            for start in range(0, n_bytes, _PIECE):
                piece = memory[: n_bytes - start]
                read_into(file.fileno(), piece, (values.place or 0) + start)
                yield piece
    except OSError as error:
        raise _unreadable(values.path, error) from error


def _read(name: str, values: _Values, n_rows: int) -> Iterator[np.ndarray]:
    """Read what only HDF5 can read of a part, `n_rows` rows at a time."""
    for start in range(0, values.shape[0], n_rows):
        yield _rows(name, values, start, n_rows)


def _read_texts(name: str, values: _Values, longest: int = 0) -> Iterator[np.ndarray]:
    """Read texts of any length of a part, some megabytes at a time, also if each takes `longest` bytes."""
    most = max(1, min(_PIECE_TEXTS, _PIECE // max(1, longest)))
    n_texts = min(_FIRST_TEXTS, most)
    start = 0
    while start < values.shape[0]:
        texts = _rows(name, values, start, n_texts)
        yield texts
        start += len(texts)
        mean_bytes = max(1, sum(map(len, texts)) // len(texts))
        n_texts = max(1, min(most, 4 * n_texts, _PIECE // mean_bytes))


def _rows(name: str, values: _Values, start: int, n_rows: int) -> np.ndarray:
    try:
        with reading(values.path) as part:
            found: np.ndarray = part[name][start : start + n_rows]
            return found
    except FAILURES as error:
        raise _unreadable(values.path, error) from error


def _unreadable(path: Path, error: Exception) -> ReadFailed:
    return ReadFailed(
        f"file={shown(path)}: cannot be read again: {error}. Type the same command again without --verify sizes: what "
        "is damaged is made anew."
    )
