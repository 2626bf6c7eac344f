"""File of a part, which consists of features in memory and HDF5 metadata around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import h5py
import numpy as np

from shardpress.encoding.storage import PLAIN, Chunked, Storage
from shardpress.encoding.template import SOURCE, Streamed, Template, lay_out
from shardpress.features import Shape
from shardpress.hdf5.categories import attribute_value
from shardpress.output.disk import PAGE, Pieces
from shardpress.result import FEATURES, VALID, stored_name
from shardpress.shards.shard import Extra, is_wide

_Values = TypeVar("_Values")

_FLOAT32 = np.dtype("<f4")
_SPARE_BYTES = 2**17  # initial space for metadata and strings
_SOURCE_BYTES = 256  # `source` is padded to a multiple of this size, so that parts with other paths share a layout
_MOST_TEMPLATES = 8  # templates per thread; the shards of a data set usually have only one or two sizes
_MAX_SOURCE_TEXT = 2**12  # characters; any path fits, and two escaped paths fit into an attribute of 64 KiB


class PartMemory:
    """Reusable memory that holds the file of one part at a time, built without copying the features.

    HDF5 metadata are placed around the features. New memory for each part, and copies to and from HDF5, would take
    longer than encoding. `n_rows` is the number of rows of the largest part. The extras determine the size of the
    memory, which grows if strings are longer. Unless the storage is plain, features are encoded into separate memory
    and then converted.
    """

    def __init__(
        self,
        n_rows: int,
        n_features: int,
        extras: Sequence[Extra] = (),
        storage: Storage = PLAIN,
    ) -> None:
        self._n_features = n_features
        self._categories = stored_categories(extras)
        self._storage = storage
        self._offset = _first_offset()
        self._dtype = np.dtype(storage.dtype).newbyteorder("<")
        extra_bytes = sum(extra.dtype.itemsize for extra in extras if not is_wide(extra, n_rows))
        row_bytes = storage.itemsize * n_features + 1 + extra_bytes  # 1 for `valid`
        self._memory = _aligned_zeros(self._offset + n_rows * row_bytes + _SPARE_BYTES)
        n_encoded = 0 if storage.is_plain else n_rows
        self._encoded = np.empty((n_encoded, n_features), _FLOAT32)
        self._templates: dict[str, Template] = {}  # layouts of recent parts, by their keys

    def features(self, n_rows: int) -> np.ndarray:
        """Return the float32 array (n_rows, n_features) for the features of the next part."""
        return self._stored_features(n_rows) if self._storage.is_plain else self._encoded[:n_rows]

    def store(self, n_rows: int) -> float | None:
        """Convert the features to their stored form, and return their largest error; None if the storage is plain."""
        if self._storage.is_plain:
            return None
        return self._storage.store(self._encoded[:n_rows], self._stored_features(n_rows))

    def _stored_features(self, n_rows: int) -> np.ndarray:
        """Return the features in their stored form, before compression."""
        end = self._offset + n_rows * self._n_features * self._dtype.itemsize
        return self._memory[self._offset : end].view(self._dtype).reshape(n_rows, self._n_features)

    def file(
        self,
        valid: np.ndarray,
        extras: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any],
        source: Mapping[str, Any],
    ) -> memoryview:
        """Return the bytes of a part's file with the features in this memory. The next part overwrites them.

        `valid` (n_rows,) is the mask of the good rows. An extra whose name the format reserves is stored as
        ``source_...``. Nested values of `attributes`, which many parts share, are written as JSON, and so is the
        attribute ``source``.
        """
        arrays = {VALID: valid, **_with_stored_names(extras)}
        data = _source_json(source)
        template = self._template(arrays, attributes, len(data))
        if template.n_bytes > len(self._memory):
            self._memory = _aligned_zeros(template.n_bytes + _SPARE_BYTES, self._memory)
        template.fill(self._memory, {**arrays, SOURCE: data})
        return self._memory[: template.n_bytes].data

    def stream(
        self,
        valid: np.ndarray,
        extras: Mapping[str, np.ndarray | Streamed],
        attributes: Mapping[str, Any],
        source: Mapping[str, Any],
    ) -> Pieces:
        """Return the same file as `file`, but in pieces. This takes less memory for `Streamed` extras.

        Streamed strings are read immediately, and memory holds one copy of them in HDF5's form. Other streamed extras
        are read while the pieces are written. The features must not change before all pieces are written.
        """
        arrays = {VALID: valid, **_with_stored_names(extras)}
        data = _source_json(source)
        template = self._template(arrays, attributes, len(data))
        values = {FEATURES: self._stored_features(len(valid)), **arrays, SOURCE: data}
        return Pieces(template.n_bytes, template.stream(values))

    def _template(
        self, arrays: Mapping[str, np.ndarray | Streamed], attributes: Mapping[str, Any], n_source: int
    ) -> Template:
        """Return the layout of a file. It is cached for parts that differ only in numeric values."""
        key = _layout_key(arrays, attributes, n_source)
        if key in self._templates:
            return self._templates[key]
        is_compressed = self._storage.compression != "none" and arrays[VALID].shape[0] > 0
        shapes, written = self._datasets(arrays, is_compressed)
        template = lay_out(shapes, written, attributes, n_source, self._categories)
        offset = template.place_of(FEATURES)
        if offset not in (None, self._offset):
            raise RuntimeError(f"HDF5 puts features at byte {offset}, expected {self._offset} as in an empty file")
        has_strings = any(values.dtype.hasobject for values in arrays.values())
        # A template contains the strings and the compressed features of its part. With them it can be large, and other
        # parts cannot use it.
        if not has_strings and not is_compressed:
            if len(self._templates) == _MOST_TEMPLATES:
                self._templates.clear()
            self._templates[key] = template
        return template

    def _datasets(
        self, arrays: Mapping[str, np.ndarray | Streamed], is_compressed: bool
    ) -> tuple[dict[str, Shape], dict[str, np.ndarray | Chunked | Streamed]]:
        """Return the datasets whose values are inserted later, and the datasets that HDF5 writes."""
        n_rows = arrays[VALID].shape[0]
        shapes: dict[str, Shape] = {}
        written: dict[str, np.ndarray | Chunked | Streamed] = {}
        if not is_compressed:
            # The features come first, because their offset must not depend on the other datasets.
            shapes[FEATURES] = ((n_rows, self._n_features), self._dtype)
        for name, values in arrays.items():
            if values.dtype.hasobject:
                written[name] = values
            else:
                shapes[name] = (values.shape, values.dtype)
        if is_compressed:
            written[FEATURES] = Chunked(self._stored_features(n_rows), self._storage.compression)
        return shapes, written


def _layout_key(arrays: Mapping[str, np.ndarray | Streamed], attributes: Mapping[str, Any], n_source: int) -> str:
    """Return a text that is equal for files that differ only in values."""
    # The metadata are included because HDF5 distinguishes ASCII and UTF-8 strings, but NumPy's comparison does not.
    datasets = [(name, values.shape, values.dtype, values.dtype.metadata) for name, values in arrays.items()]
    return repr((n_source, attributes, datasets))


def _aligned_zeros(n_bytes: int, content: np.ndarray | None = None) -> np.ndarray:
    """Return a copy of `content` in zeros that start at a multiple of `PAGE`, as direct I/O requires."""
    memory = np.zeros(n_bytes + PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE
    if content is not None:
        memory[start : start + len(content)] = content
    return memory[start : start + n_bytes]


@cache
def _first_offset() -> int:
    """Return the offset at which HDF5 stores the first dataset of a file."""
    return lay_out({FEATURES: ((1, 1), _FLOAT32)}, {}, {}).place_of(FEATURES) or 0


def _source_json(source: Mapping[str, Any]) -> bytes:
    """Return JSON in UTF-8, padded with NULs. Bytes of file names that are not UTF-8 are escaped."""
    shortened = {key: value[-_MAX_SOURCE_TEXT:] if isinstance(value, str) else value for key, value in source.items()}
    data = json.dumps(shortened, ensure_ascii=False).encode("utf-8", "backslashreplace")
    n_blocks = len(data) // _SOURCE_BYTES + 1
    return data.ljust(n_blocks * _SOURCE_BYTES, b"\0")


# -- names and shapes of datasets --------------------------------------------------------------------------------


def part_shapes(n_rows: int, n_features: int, extras: Sequence[Extra], dtype: np.dtype = _FLOAT32) -> dict[str, Shape]:
    """Return the shape and dtype of each dataset in the file of a part, without opening the file."""
    shapes = {FEATURES: ((n_rows, n_features), dtype), VALID: ((n_rows,), np.dtype(bool))}
    for extra in extras:
        item_dtype, item_shape = extra.dtype.subdtype or (extra.dtype, ())
        stored_dtype = h5py.string_dtype() if item_dtype.hasobject else item_dtype
        shapes[stored_name(extra.name)] = ((n_rows, *item_shape), stored_dtype)
    return shapes


def stored_categories(extras: Sequence[Extra]) -> dict[str, np.ndarray | str]:
    """Return the attributes with the categories of extras that are stored as codes, by the name of the dataset."""
    found = {}
    for extra in extras:
        if extra.categories is not None:
            found[stored_name(extra.name)] = attribute_value(extra.categories)
    return found


def stored_masks(extras: Sequence[Extra]) -> dict[str, str]:
    """Return the datasets that mark the rows with a value of another dataset, by the name of that dataset."""
    return {stored_name(extra.name): stored_name(extra.mask) for extra in extras if extra.mask is not None}


def _with_stored_names(extras: Mapping[str, _Values]) -> dict[str, _Values]:
    """Return the extras with the names of their datasets in a part as keys."""
    return {stored_name(name): values for name, values in extras.items()}
