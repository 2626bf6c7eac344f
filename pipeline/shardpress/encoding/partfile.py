"""The file of a part: HDF5's metadata, and the values of the datasets between them.

HDF5 lays the file out in memory, without the values of numeric datasets. These are written to the disk from the arrays
in which they were computed, because copies to and from HDF5 would take longer than encoding.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import h5py
import numpy as np

from shardpress.encoding.storage import write_chunked
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT, attribute_value
from shardpress.hdf5.shard import Extra
from shardpress.output.disk import PAGE, Content
from shardpress.result.features import Shape
from shardpress.result.finished import ERROR, FEATURES, VALID, stored_name

_PAGE = 2**16  # page size of an image in bytes; smaller pages are slow with megabytes of strings
_EMPTY_PAGE = bytes(_PAGE)
_FLOAT32 = np.dtype("<f4")


def part_file(
    features: np.ndarray,
    valid: np.ndarray,
    extras: Mapping[str, np.ndarray],
    categories: Mapping[str, np.ndarray | str],
    compression: str = "none",
    errors: np.ndarray | None = None,
) -> Content:
    """Return the file of a part.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features)
        Features in the dtype in which they are stored. They must not change before all pieces are written.
    valid : ndarray of bool, shape (n_rows,)
        Mask of the good rows.
    extras : mapping of str to ndarray
        Values (n_rows, ...) by their names.
    categories : mapping of str to ndarray or str
        See `stored_categories`.
    compression : {"none", "lzf", "gzip"}
        Compression of the features.
    errors : ndarray of shape (n_rows,), float32, optional
        Error of each row.
    """
    values: dict[str, np.ndarray] = {FEATURES: features, VALID: valid}
    if errors is not None:
        values[ERROR] = errors
    values.update({stored_name(name): extra for name, extra in extras.items()})
    image = _Image()
    offsets: dict[int, str] = {}
    with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
        for name, array in values.items():
            if name == FEATURES and compression != "none" and len(valid):
                write_chunked(file, name, features, compression)
            elif array.dtype.hasobject:
                file.create_dataset(name, data=array, dtype=h5py.string_dtype(), track_times=False)
            else:
                offset = _allocate(file, name, array)
                if offset is not None:
                    offsets[offset] = name
        for name, value in categories.items():
            file[name].attrs[ATTRIBUTE] = value
        file.attrs["format"] = FORMAT
    return Content(image.size, _pieces(image, offsets, values))


def _pieces(
    image: _Image, offsets: Mapping[int, str], values: Mapping[str, np.ndarray]
) -> Iterator[bytes | memoryview]:
    """Yield the file in order. Values at an offset take the place of the image's bytes."""
    position = 0
    for offset, name in sorted(offsets.items()):
        yield from image.pages(position, offset)
        data = np.ascontiguousarray(values[name]).reshape(-1).view(np.uint8).data
        yield data
        position = offset + len(data)
    yield from image.pages(position, image.size)


def _allocate(file: h5py.File, name: str, values: np.ndarray) -> int | None:
    """Create a dataset without writing values. Return the offset of the values, or None if the dataset is empty."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)  # so that equal parts have equal bytes
    # Otherwise the dataset would have no offset before its values are written.
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # otherwise HDF5 would write gigabytes of zeros into the image
    stored_type = h5py.h5t.py_create(values.dtype, logical=True)
    space = h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), stored_type, space, dcpl=creation)
    offset: int | None = dataset.get_offset()
    return offset


# -- names and shapes of datasets --------------------------------------------------------------------------------


def row_shapes(
    n_features: int, extras: Sequence[Extra], dtype: np.dtype = _FLOAT32, has_errors: bool = False
) -> dict[str, Shape]:
    """Return the shape of a row and the dtype of each dataset in a part."""
    shapes: dict[str, Shape] = {FEATURES: ((n_features,), dtype), VALID: ((), np.dtype(bool))}
    if has_errors:
        shapes[ERROR] = ((), _FLOAT32)
    for extra in extras:
        item_dtype, item_shape = extra.dtype.subdtype or (extra.dtype, ())
        stored_dtype = h5py.string_dtype() if item_dtype.hasobject else item_dtype
        shapes[stored_name(extra.name)] = (item_shape, stored_dtype)
    return shapes


def stored_categories(extras: Sequence[Extra]) -> dict[str, np.ndarray | str]:
    """Return the attributes with the categories of extras that are stored as codes, by the name of the dataset."""
    categories = {}
    for extra in extras:
        if extra.categories is not None:
            categories[stored_name(extra.name)] = attribute_value(extra.categories)
    return categories


def stored_paths(extras: Sequence[Extra]) -> dict[str, str]:
    """Return where a user has found extras (`Extra.path`), by the names of their datasets."""
    return {stored_name(extra.name): extra.path for extra in extras if extra.path}


def stored_masks(extras: Sequence[Extra]) -> dict[str, str]:
    """Return the datasets that mark the rows with a value of another dataset, by the name of that dataset."""
    return {stored_name(extra.name): stored_name(extra.mask) for extra in extras if extra.mask is not None}


# -- memory ------------------------------------------------------------------------------------------------------


class _Image(io.RawIOBase):
    """Sparse file in memory for h5py. Only pages that were written take memory."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._pages = defaultdict[int, bytearray](partial(bytearray, _PAGE))

    def pages(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` up to `stop`, without copying."""
        position = start
        while position < stop:
            number, first = divmod(position, _PAGE)
            page = memoryview(self._pages.get(number, _EMPTY_PAGE))[first : first + stop - position]
            yield page
            position += len(page)

    def seek(self, offset: int, whence: int = 0) -> int:
        origins = (0, self._position, self.size)
        self._position = offset + origins[whence]
        return self._position

    def readinto(self, target: Any) -> int:
        target[:] = b"".join(self.pages(self._position, self._position + len(target)))
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
