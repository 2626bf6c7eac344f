"""Templates for HDF5 files. HDF5 lays out one file, and the values of similar files are inserted into this layout.

HDF5 takes two milliseconds to write a file with a few attributes, and holds its own lock and the GIL during that time.
The bytes around the values depend only on names, shapes and dtypes. Everything else that differs between files is
stored in one attribute of fixed length.
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
from typing import Any, NamedTuple

import h5py
import numpy as np

from shardpress.encoding.storage import Chunked, write_chunked
from shardpress.features import Shape
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT
from shardpress.output.disk import PAGE

SOURCE = "/source"
"""Key of the attribute ``source`` in mappings of values. It differs from dataset names, which contain no slash."""
_PAGE = 2**16  # page size of an image in bytes; smaller pages are slow with megabytes of strings
_EMPTY_PAGE = bytes(_PAGE)
_MAX_COPY = 2**22  # shorter byte ranges between two values are copied into one piece


@dataclass(frozen=True)
class Streamed:
    """Values of a dataset that are read block by block, because all values would take too much memory."""

    shape: tuple[int, ...]  # shape of all values
    dtype: np.dtype  # dtype of each block; object for strings of variable length
    blocks: Callable[[], Iterator[np.ndarray]]  # function that returns all values in order, as arrays of shape (n, ...)


@dataclass(frozen=True)
class Template:
    """Layout of a file, with the bytes that do not depend on the values.

    A piece has an offset, and either bytes or the name of values to insert. The pieces are in file order.
    """

    n_bytes: int
    pieces: tuple[tuple[int, bytes | memoryview | str], ...]

    def place_of(self, name: str) -> int | None:
        """Return the offset of the values `name`, or None if they take no bytes."""
        for start, piece in self.pieces:
            if piece == name:
                return start
        return None

    def fill(self, memory: np.ndarray, values: Mapping[str, np.ndarray | bytes]) -> None:
        """Build a file at the start of `memory`, uint8. The memory of omitted values does not change."""
        for start, piece in self.pieces:
            value = values.get(piece) if isinstance(piece, str) else piece
            if value is not None:
                data = _bytes_of(value)
                memory[start : start + len(data)] = data

    def stream(self, values: Mapping[str, np.ndarray | Streamed | bytes]) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a file in order, piece by piece. `Streamed` values are read when they are yielded."""
        for _, piece in self.pieces:
            value = values[piece] if isinstance(piece, str) else piece
            if isinstance(value, (bytes, memoryview)):
                yield value
            elif isinstance(value, Streamed):
                for block in value.blocks():
                    yield _bytes_of(block).data
            else:
                yield _bytes_of(value).data


def _bytes_of(value: np.ndarray | bytes | memoryview) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        return np.frombuffer(value, np.uint8)
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


class _Extent(NamedTuple):
    start: int
    n_bytes: int
    name: str


def lay_out(
    shapes: Mapping[str, Shape],
    written: Mapping[str, np.ndarray | Chunked | Streamed],
    attributes: Mapping[str, Any],
    n_source: int = 0,
    categories: Mapping[str, np.ndarray | str] | None = None,
) -> Template:
    """Let HDF5 lay out a file, and return the layout without the values.

    The values of `shapes` are inserted later: these datasets are in file order, and each starts at a multiple of
    `PAGE`. HDF5 writes the datasets `written`, by their paths: they are the same in every file, are compressed, or
    contain strings of variable length. The attributes are the same in every file, and so are the attributes
    ``categories`` of datasets. The attribute ``source`` has `n_source` bytes, and is called `SOURCE` in the layout;
    without bytes, it is omitted.
    """
    image = _Image()
    # HDF5 does not report where it stores an attribute, so write random bytes, which occur nowhere else in the file.
    mark = token_bytes(n_source)
    with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
        offsets = {name: _allocate(file, name, shape) for name, shape in shapes.items()}
        for name, values in written.items():
            _write_dataset(file, name, values)
        for name, value in (categories or {}).items():
            write_attributes(file[name], {ATTRIBUTE: value})
        describe(file, attributes)
        if n_source:
            _write_source(file, mark)
    extents = []
    for name, start in offsets.items():
        if start is not None:  # the values take bytes
            dims, dtype = shapes[name]
            extents.append(_Extent(start, prod(dims) * dtype.itemsize, name))
    if n_source:
        extents.append(_Extent(image.find(mark), n_source, SOURCE))
    return Template(image.size, tuple(_pieces(image, sorted(extents))))


def _pieces(image: _Image, extents: Sequence[_Extent]) -> Iterator[tuple[int, bytes | memoryview | str]]:
    """Yield the names of values and the bytes around them. `extents` must be in file order."""
    position = 0
    for extent in extents:
        yield from _image_bytes(image, position, extent.start)
        yield extent.start, extent.name
        position = extent.start + extent.n_bytes
    yield from _image_bytes(image, position, image.size)


def _image_bytes(image: _Image, start: int, stop: int) -> Iterator[tuple[int, bytes | memoryview]]:
    if stop - start < _MAX_COPY:
        yield start, image.between(start, stop)
    else:  # strings of any length, which HDF5 has written
        yield from image.pages(start, stop)


def _write_dataset(file: h5py.File, name: str, values: np.ndarray | Chunked | Streamed) -> None:
    if isinstance(values, Chunked):
        write_chunked(file, name, values)
    elif isinstance(values, Streamed):
        _write_streamed(file, name, values)
    else:
        dtype = h5py.string_dtype() if values.dtype.hasobject else None
        file.create_dataset(name, data=values, dtype=dtype)


def _write_streamed(file: h5py.File, name: str, values: Streamed) -> None:
    dtype = h5py.string_dtype() if values.dtype.hasobject else values.dtype
    dataset = file.create_dataset(name, values.shape, dtype)
    start = 0
    for block in values.blocks():
        dataset[start : start + len(block)] = block
        start += len(block)


def _allocate(file: h5py.File, name: str, shape: Shape) -> int | None:
    """Create a dataset without writing values. Return the offset of the values, or None if the dataset is empty."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)  # so that equal parts have equal bytes
    # Otherwise the dataset would have no offset before its values are written.
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # otherwise HDF5 would write gigabytes of zeros into the image
    dims, dtype = shape
    stored_type = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(dims)
    dataset = h5py.h5d.create(file.id, name.encode(), stored_type, space, dcpl=creation)
    offset: int | None = dataset.get_offset()
    return offset


# -- attributes --------------------------------------------------------------------------------------------------


def describe(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Write the format and attributes of a file, as in `write_attributes`."""
    write_attributes(file, {"format": FORMAT, **attributes})


def write_attributes(item: h5py.File | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Write attributes. Numbers, strings and arrays are written unchanged, other values as JSON.

    This takes half as long as with `h5py.File.attrs`.
    """
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    for key, value in attributes.items():
        stored = np.asarray(value) if isinstance(value, (int, float, np.ndarray)) else _text(value)
        stored_type = h5py.h5t.py_create(stored.dtype, logical=True)
        space = h5py.h5s.create_simple(stored.shape) if stored.ndim else scalar
        h5py.h5a.create(item.id, key.encode(), stored_type, space).write(stored)


def _text(value: object) -> np.ndarray:
    text = value if isinstance(value, str) else json.dumps(value)
    # HDF5 accepts only UTF-8, but a file name can contain any bytes.
    return np.array(text.encode("utf-8", "backslashreplace"), dtype=h5py.string_dtype())


def _write_source(file: h5py.File, data: bytes) -> None:
    stored_type = h5py.h5t.C_S1.copy()  # this string type ends at the first NUL, so h5dump does not show the padding
    stored_type.set_size(len(data))
    stored_type.set_cset(h5py.h5t.CSET_UTF8)
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(file.id, b"source", stored_type, scalar)
    attribute.write(np.array(data, f"S{len(data)}"), mtype=stored_type)


class _Image(io.RawIOBase):
    """Sparse file in memory for h5py. Only pages that were written take memory."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._pages = defaultdict[int, bytearray](partial(bytearray, _PAGE))

    def between(self, start: int, stop: int) -> bytes:
        return b"".join(page for _, page in self.pages(start, stop))

    def pages(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the offset and the bytes of each page from `start` up to `stop`, without copying."""
        position = start
        while position < stop:
            number, first = divmod(position, _PAGE)
            page = memoryview(self._pages.get(number, _EMPTY_PAGE))[first : first + stop - position]
            yield position, page
            position += len(page)

    def find(self, mark: bytes) -> int:
        """Return the offset of the bytes `mark`."""
        for number in sorted(self._pages):
            start = number * _PAGE
            offset = self.between(start, start + _PAGE + len(mark) - 1).find(mark)
            if offset >= 0:
                return start + offset
        raise ValueError("the mark is not in the file")

    def seek(self, offset: int, whence: int = 0) -> int:
        origins = (0, self._position, self.size)
        self._position = offset + origins[whence]
        return self._position

    def readinto(self, target: Any) -> int:
        target[:] = self.between(self._position, self._position + len(target))
        self._position += len(target)
        return len(target)

    def write(self, data: Any) -> int:
        rest = memoryview(data)  # slicing a memoryview makes no copy
        while rest:
            number, start = divmod(self._position, _PAGE)
            piece = rest[: _PAGE - start]
            rest = rest[_PAGE - start :]
            self._pages[number][start : start + len(piece)] = piece
            self._position += len(piece)
        self.size = max(self.size, self._position)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size
