"""Files of one layout: HDF5 is asked once where everything stands, and values of other files are put there.

It takes HDF5 two milliseconds to write a file with a few attributes, in which it holds its own lock and Python's. The
bytes around the values depend on names, shapes and dtypes alone; what else differs from file to file stands in one
attribute of fixed length.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from secrets import token_bytes
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.storage import Chunked, write_chunked
from pipeline.features import Shape
from pipeline.output.disk import PAGE

__all__ = ["SOURCE", "Streamed", "Template", "describe", "lay_out", "write_attributes"]

FORMAT = "shardpress-features/1"
_PAGE = 2**16  # bytes of an image that are kept together: fewer would be slow where texts ride along by the megabyte
_HOLE = bytes(_PAGE)
_LONG = 2**22  # bytes between values, from which on they are not copied into one piece
SOURCE = "/source"  # among the names of values: a dataset's own holds no slash


@dataclass(frozen=True)
class Streamed:
    """Values of a dataset that are read block by block, since all of them would take too much memory.

    Attributes
    ----------
    shape : tuple of int
        Of all values; their number first.
    dtype : dtype
        Of each block; object for texts of any length.
    blocks : callable
        Returns an iterator over all values in their order, arrays of shape (n, ...).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Template:
    """A file of ``n_bytes`` whose values are left out.

    Attributes
    ----------
    pieces : tuple of (int, bytes, memoryview or str)
        From the first byte to the last: where each begins, and its bytes, or the name of the values there.
    """

    n_bytes: int
    pieces: tuple[tuple[int, bytes | memoryview | str], ...]

    def place_of(self, name: str) -> int | None:
        """The byte at which these values begin, if they have any."""
        return next((start for start, piece in self.pieces if piece == name), None)

    def fill(self, memory: np.ndarray, values: Mapping[str, np.ndarray | bytes]) -> None:
        """Make a file.

        Parameters
        ----------
        memory : ndarray of uint8
            At least ``n_bytes`` of them; the file is made at their begin.
        values : mapping
            In the shapes and dtypes of the layout. Of those that are not given, what is there stays.
        """
        for start, piece in self.pieces:
            value = values.get(piece) if isinstance(piece, str) else piece
            if value is not None:
                is_array = isinstance(value, np.ndarray)
                flat = np.ascontiguousarray(value) if is_array else np.frombuffer(value, np.uint8)
                memory[start : start + flat.nbytes] = flat.reshape(-1).view(np.uint8)

    def stream(self, values: Mapping[str, np.ndarray | Streamed | bytes]) -> Iterator[bytes | memoryview]:
        """Make a file piece by piece, in the order of its bytes.

        Parameters
        ----------
        values : mapping
            As for `fill`, but for all values. Those that are `Streamed` are read when their turn comes.
        """
        for _, piece in self.pieces:
            value = values[piece] if isinstance(piece, str) else piece
            if isinstance(value, (bytes, memoryview)):
                yield value
                continue
            for block in value.blocks() if isinstance(value, Streamed) else [value]:
                yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data


def lay_out(
    shapes: Mapping[str, Shape],
    written: Mapping[str, np.ndarray | Chunked | Streamed],
    attributes: Mapping[str, Any],
    n_source: int = 0,
) -> Template:
    """Have HDF5 write a file without its values.

    Parameters
    ----------
    shapes : mapping
        Of the datasets whose values are left out, in the order in which they stand in the file, each from a page on.
    written : mapping of str to ndarray, Chunked or Streamed
        Datasets that HDF5 writes, by their paths: what is the same in every file, texts of any length, and what is to
        be compressed.
    attributes : mapping
        The same in every file; nested values as JSON.
    n_source : int
        Bytes of the attribute ``source``, whose place is called `SOURCE`; 0 for none.
    """
    # HDF5 does not tell where an attribute lies. That these bytes lie elsewhere as well is out of the question.
    image = _Image()
    mark = token_bytes(n_source)
    with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
        places = {name: _allocate(file, name, shape) for name, shape in shapes.items()}
        for name, values in written.items():
            if isinstance(values, Chunked):
                write_chunked(file, name, values)
            elif isinstance(values, Streamed):
                _write_streamed(file, name, values)
            else:
                file.create_dataset(name, data=values, dtype=h5py.string_dtype() if values.dtype.hasobject else None)
        describe(file, attributes)
        if n_source:
            _write_source(file, mark)
    # What has no bytes has no place.
    begins = sorted((place, name) for name, place in places.items() if place is not None)
    extents = [(place, prod(shapes[name][0]) * shapes[name][1].itemsize, name) for place, name in begins]
    if n_source:
        extents = sorted([*extents, (image.find(mark), n_source, SOURCE)])
    return Template(image.size, tuple(_pieces(image, extents)))


def _pieces(image: _Image, extents: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, bytes | memoryview | str]]:
    """Values, given as (place, bytes, name) in the file's order, and what stands around them."""
    at = 0
    for place, n_bytes, name in [*extents, (image.size, 0, "")]:
        if place - at < _LONG:
            yield at, image.between(at, place)
        else:  # texts of any length, as HDF5 has written them
            yield from image.pages(at, place)
        if name:
            yield place, name
        at = place + n_bytes


def _write_streamed(file: h5py.File, name: str, values: Streamed) -> None:
    kind = h5py.string_dtype() if values.dtype.hasobject else values.dtype
    item = file.create_dataset(name, values.shape, kind)
    start = 0
    for block in values.blocks():
        item[start : start + len(block)] = block
        start += len(block)


def _allocate(file: h5py.File, name: str, shape: Shape) -> int | None:
    """Have HDF5 make a dataset, and leave its values alone; the first one's byte, if there are any."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_obj_track_times(False)  # equal parts are equal bytes
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # else there is no place before there are values
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # else gigabytes of zeros would go into the image
    kind = h5py.h5t.py_create(shape[1], logical=True)
    space = h5py.h5s.create_simple(shape[0])
    place: int | None = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=how).get_offset()
    return place


# -- attributes --------------------------------------------------------------------------------------------------


def describe(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Give a file its format and attributes: numbers and texts as they are, all else as JSON."""
    write_attributes(file, {"format": FORMAT, **attributes})


def write_attributes(item: h5py.File | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """As `h5py.File.attrs` would, in half the time."""
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    for key, value in attributes.items():
        stored = np.asarray(value) if isinstance(value, (int, float)) else _text(value)
        kind = h5py.h5t.py_create(stored.dtype, logical=True)
        h5py.h5a.create(item.id, key.encode(), kind, scalar).write(stored)


def _text(value: object) -> np.ndarray:
    text = value if isinstance(value, str) else json.dumps(value)
    # HDF5 takes UTF-8 only, and a file's name may be anything.
    return np.array(text.encode("utf-8", "backslashreplace"), dtype=h5py.string_dtype())


def _write_source(file: h5py.File, data: bytes) -> None:
    kind = h5py.h5t.C_S1.copy()  # ends with the first NUL, so that h5dump shows none
    kind.set_size(len(data))
    kind.set_cset(h5py.h5t.CSET_UTF8)
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5a.create(file.id, b"source", kind, scalar).write(np.array(data, f"S{len(data)}"), mtype=kind)


class _Image(io.RawIOBase):
    """A file object, as h5py takes it in a file's place, in which only pages that were written to take memory."""

    def __init__(self) -> None:
        self.size = 0
        self._at = 0
        self._pages = defaultdict[int, bytearray](partial(bytearray, _PAGE))

    def between(self, start: int, stop: int) -> bytes:
        """The bytes from `start` on."""
        numbers = range(start // _PAGE, -(-stop // _PAGE))
        pages = ((number * _PAGE, self._pages.get(number, _HOLE)) for number in numbers)
        return b"".join(memoryview(page)[max(start - first, 0) : stop - first] for first, page in pages)

    def pages(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """The same bytes without a copy, a page at a time, each with its place."""
        at = start
        while at < stop:
            number, first = divmod(at, _PAGE)
            page = memoryview(self._pages.get(number, _HOLE))[first : first + stop - at]
            yield at, page
            at += len(page)

    def find(self, mark: bytes) -> int:
        """Where these bytes are, which are there once."""
        for number in sorted(self._pages):
            start = number * _PAGE
            at = self.between(start, start + _PAGE + len(mark) - 1).find(mark)
            if at >= 0:
                return start + at
        raise ValueError("the mark is not in the file")

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def readinto(self, target: Any) -> int:
        target[:] = self.between(self._at, self._at + len(target))
        self._at += len(target)
        return len(target)

    def write(self, data: Any) -> int:
        rest = memoryview(data)  # of which no page copies what is left
        while rest:
            number, start = divmod(self._at, _PAGE)
            piece = rest[: _PAGE - start]
            rest = rest[_PAGE - start :]
            self._pages[number][start : start + len(piece)] = piece
            self._at += len(piece)
        self.size = max(self.size, self._at)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size
