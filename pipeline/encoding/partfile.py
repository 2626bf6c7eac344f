"""A part's file: features that stand in memory already, and HDF5's words around them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.storage import PLAIN, Chunked, Storage
from pipeline.encoding.template import SOURCE, Streamed, Template, lay_out
from pipeline.features import FEATURES, VALID, Shape
from pipeline.hdf5.forms import CATEGORIES
from pipeline.output.disk import PAGE, Pieces
from pipeline.shards.shard import Rider, is_wide

__all__ = ["PartMemory", "part_shapes", "stored_categories"]

_FLOAT32 = np.dtype("<f4")
_ROOM = 2**17  # bytes beside the features, at first
_SOURCE_BYTES = 256  # of which `source` takes a multiple: parts of files with longer names have one layout still
_MOST_TEMPLATES = 8  # of a thread: shards of a set have one or two sizes, as a rule, and come in turns
_MOST_TEXT = 2**12  # characters: every path fits, and what is made of two such into the 64 KiB of an attribute


class PartMemory:
    """Memory in which one part after the other becomes a file, without a copy of its features.

    HDF5 lays the file out around them. Fresh memory for each part, and copies into and out of HDF5's own, would take
    longer than encoding.

    Parameters
    ----------
    n_rows : int
        Of the largest part.
    riders : sequence of Rider
        What rides along: how much memory that takes, though what is longer is taken in all the same, and what codes
        stand for.
    storage : Storage
        How features are stored: unless as they are, they stand elsewhere until they are encoded.
    """

    def __init__(self, n_rows: int, n_features: int, riders: Sequence[Rider] = (), storage: Storage = PLAIN) -> None:
        self._n_features = n_features
        self._categories = stored_categories(riders)
        self._storage = storage
        self._place = _first_place()
        self._dtype = np.dtype(storage.dtype).newbyteorder("<")
        rider_bytes = sum(rider.dtype.itemsize for rider in riders if not is_wide(rider, n_rows))
        self._memory = _pages(self._place + n_rows * (storage.itemsize * n_features + 1 + rider_bytes) + _ROOM)
        self._encoded = np.empty((0 if storage.is_plain else n_rows, n_features), _FLOAT32)
        self._templates: dict[str, Template] = {}  # of the last parts, by all but their values

    def features(self, n_rows: int) -> np.ndarray:
        """Where the features of the next part go: shape (n_rows, n_features), float32."""
        return self._stored(n_rows) if self._storage.is_plain else self._encoded[:n_rows]

    def store(self, n_rows: int) -> float | None:
        """Bring them into the form in which they are stored; raises like `Storage.store`.

        Returns
        -------
        float or None
            How far one is off at most; None where they are stored as they are.
        """
        if self._storage.is_plain:
            return None
        return self._storage.store(self._encoded[:n_rows], self._stored(n_rows))

    def _stored(self, n_rows: int) -> np.ndarray:
        """Their place in the file where they are not compressed; else until then."""
        end = self._place + n_rows * self._n_features * self._dtype.itemsize
        return self._memory[self._place : end].view(self._dtype).reshape(n_rows, self._n_features)

    def file(
        self,
        valid: np.ndarray,
        riders: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any],
        source: Mapping[str, Any],
    ) -> memoryview:
        """The bytes of a feature shard with the features that stand there; they last until the next part.

        Parameters
        ----------
        valid : ndarray of shape (n_rows,), bool
        riders : mapping
            Riding datasets of n_rows values each, numbers or text. One that is called like a dataset of ours becomes
            ``source_...``.
        attributes : mapping
            The same for many parts; nested values as JSON.
        source : mapping
            Where the part comes from, which becomes JSON in the attribute ``source``.
        """
        names = _names(riders)
        arrays = {VALID: valid, **{names[name]: values for name, values in riders.items()}}
        data = _source(source)
        template = self._template_of(arrays, attributes, len(data))
        if template.n_bytes > len(self._memory):
            self._memory = _pages(template.n_bytes + _ROOM, self._memory)
        template.fill(self._memory, {**arrays, SOURCE: data})
        return self._memory[: template.n_bytes].data

    def stream(
        self,
        valid: np.ndarray,
        riders: Mapping[str, np.ndarray | Streamed],
        attributes: Mapping[str, Any],
        source: Mapping[str, Any],
    ) -> Pieces:
        """As `file`, in pieces and with less memory: extras that are `Streamed` are never in memory as a whole.

        Texts among them are in memory once, as HDF5 lays them out, and are read now; all others are read while the
        pieces are written. The features must stay until then.
        """
        names = _names(riders)
        arrays = {VALID: valid, **{names[name]: values for name, values in riders.items()}}
        data = _source(source)
        template = self._template_of(arrays, attributes, len(data))
        values = {FEATURES: self._stored(len(valid)), **arrays, SOURCE: data}
        return Pieces(template.n_bytes, template.stream(values))

    def _template_of(
        self, arrays: Mapping[str, np.ndarray | Streamed], attributes: Mapping[str, Any], n_source: int
    ) -> Template:
        """One of the last ones, if all but the values is as it was."""
        shapes = {name: (values.shape, values.dtype) for name, values in arrays.items()}
        texts = {name: values for name, values in arrays.items() if values.dtype.hasobject}
        # NumPy takes dtypes for equal whatever their metadata say, as it does texts in ASCII and in UTF-8.
        layout = repr((n_source, attributes, [(name, *shape, shape[1].metadata) for name, shape in shapes.items()]))
        if layout in self._templates:
            return self._templates[layout]
        n_rows = arrays[VALID].shape[0]
        compression = self._storage.compression
        shapes = {name: shape for name, shape in shapes.items() if name not in texts}
        written: dict[str, np.ndarray | Chunked | Streamed] = {**texts, **self._categories}
        if is_compressed := n_rows and compression != "none":
            written[FEATURES] = Chunked(self._stored(n_rows), compression)
        else:
            # The features first: they stand in their place before anything is known of what stands behind them.
            shapes = {FEATURES: ((n_rows, self._n_features), self._dtype), **shapes}
        template = lay_out(shapes, written, attributes, n_source)
        place = template.place_of(FEATURES)
        if place not in (None, self._place):
            raise RuntimeError(f"HDF5 puts features at byte {place}, expected {self._place} as in an empty file")
        if (
            not texts and not is_compressed
        ):  # only HDF5 knows how those of any length are stored, and what it wrote may be large
            if len(self._templates) == _MOST_TEMPLATES:
                self._templates.clear()
            self._templates[layout] = template
        return template


def _pages(n_bytes: int, content: np.ndarray | None = None) -> np.ndarray:
    """Zeros that begin with a page, as they must to be written past the page cache; or that content, and then zeros."""
    memory = np.zeros(n_bytes + PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE
    if content is not None:
        memory[start : start + len(content)] = content
    return memory[start : start + n_bytes]


@cache
def _first_place() -> int:
    """Where HDF5 puts the first dataset of a file."""
    return lay_out({FEATURES: ((1, 1), _FLOAT32)}, {}, {}).place_of(FEATURES) or 0


def _source(source: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8, and NULs behind it; of a file's name what is not UTF-8 as JSON itself would escape it."""
    plain = {key: value[-_MOST_TEXT:] if isinstance(value, str) else value for key, value in source.items()}
    data = json.dumps(plain, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return data.ljust((len(data) // _SOURCE_BYTES + 1) * _SOURCE_BYTES, b"\0")


# -- what stands in it -------------------------------------------------------------------------------------------


def part_shapes(n_rows: int, n_features: int, riders: Sequence[Rider], dtype: np.dtype = _FLOAT32) -> dict[str, Shape]:
    """Shape and dtype of each dataset in the file of a part, whose features are of `dtype`, without a look into it."""
    names = _names(rider.name for rider in riders)
    shapes = {FEATURES: ((n_rows, n_features), dtype), VALID: ((n_rows,), np.dtype(bool))}
    for rider in riders:
        dtype, inner = rider.dtype.subdtype or (rider.dtype, ())
        shapes[names[rider.name]] = (n_rows, *inner), h5py.string_dtype() if dtype.hasobject else dtype
    return shapes


def stored_categories(riders: Sequence[Rider]) -> dict[str, np.ndarray]:
    """What the codes in riding datasets stand for, by the path in the file."""
    names = _names(rider.name for rider in riders)
    found = {names[rider.name]: rider.categories for rider in riders if rider.categories is not None}
    return {f"{CATEGORIES}/{name}": _stored(categories) for name, categories in found.items()}


def _stored(categories: Sequence[Any]) -> np.ndarray:
    """Texts as UTF-8 of one length, which HDF5 lays out alike in every file."""
    if not all(isinstance(each, str) for each in categories):
        return np.array(categories)
    texts = [each.encode("utf-8", "surrogateescape") for each in categories]
    return np.array(texts, h5py.string_dtype("utf-8", max([1, *map(len, texts)])))


def _names(riders: Iterable[str]) -> dict[str, str]:
    """The name under which each riding dataset stands beside the features: its own, if that is not one of ours."""
    names = {name: name for name in riders}
    ours = {FEATURES, VALID, CATEGORIES}
    taken = ours | names.keys()
    for name in ours & names.keys():
        while names[name] in taken:
            names[name] = f"source_{names[name]}"
    return names
