"""Where a dataset's bytes lie, as the child or `plain.describe` says; each number is checked before it counts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.hdf5.filters.codecs import objection
from pipeline.hdf5.limits import ASKED, MOST_CHUNK_BYTES, MOST_CHUNKS, MOST_ITEM, SMALLEST

__all__ = ["Layout", "bytes_of", "check_places", "grid_of", "layout_of", "most_unfolded"]

_KINDS = ("contiguous", "chunked", "inline", "asked")
_MOST_BYTES = 2**46  # of one dataset's values: sums over all of a file's stay below 2**63
_MOST_EXPANSION = 1100  # deflate's own limit is 1032
_EXPANSION_FLOOR = 2**28  # bytes that a file may unfold to whatever its size
_CODE = re.compile(r"[<>|=][uifbcSVMm][0-9]{1,7}(\[[0-9]{0,6}[a-z]{1,2}\])?")


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a dataset's bytes lie: plain values and arrays."""

    name: str  # its path in the file
    shape: tuple[int, ...]
    dtype: np.dtype  # as stored
    kind: str  # contiguous, chunked, inline (in the file's metadata), or asked: only HDF5 can read it
    offset: int = 0  # of contiguous bytes; also of where the texts of an asked one are said to be, 0 if unknown
    chunks: tuple[int, ...] = ()  # shape of a chunk
    filters: tuple[tuple[int, tuple[int, ...]], ...] = ()  # codes and parameters, in the order of their application
    # Shape (3, n_chunks), int64: offset, size and filter mask of every chunk, in C order of their grid (in any order
    # where HDF5 must be asked).
    index: np.ndarray | None = None
    data: bytes = b""  # what lay in the metadata
    longest: int = 0  # bytes of the longest text of any length; 0 if there are none, or this is unknown

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's values, at the edges too."""
        return prod(self.chunks) * self.dtype.itemsize


def bytes_of(array: np.ndarray) -> np.ndarray:
    """An array's bytes, uint8."""
    return array.reshape(-1).view(np.uint8)


def grid_of(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """How many chunks lie along each axis; the last ones may stick out. `ValueError` when they are of another rank."""
    return tuple(-(-n // size) for n, size in zip(shape, chunks, strict=True))


def most_unfolded(n_stored: int) -> int:
    """Return how many bytes so many stored ones may unfold to."""
    return max(_EXPANSION_FLOOR, _MOST_EXPANSION * n_stored)


def layout_of(claim: Any, arrays: Iterator[np.ndarray]) -> Layout:
    """A dataset's layout from what `child.layouts.layout_claim` says of it, and the next of its arrays if it has one.

    Raises
    ------
    ValueError, TypeError, KeyError, StopIteration
        When it is not of that form.
    """
    name, kind, dtype = claim["name"], claim["kind"], _dtype(claim["dtype"])
    layout = Layout(name, _whole(claim["shape"], 0, 2**63), dtype, kind)
    if not isinstance(name, str) or kind not in _KINDS or len(layout.shape) > 32:
        raise ValueError("name, kind or rank")
    if dtype.hasobject and (dtype != np.dtype("O") or kind != "asked"):
        raise ValueError("objects")  # places in memory, if they were taken from a file
    if kind == "contiguous":
        return replace(layout, offset=_whole([claim["offset"]], 0, 2**63)[0])
    if kind == "inline":
        return replace(layout, data=_data(layout, next(arrays)))
    if kind == "asked" and "chunks" not in claim:
        return replace(layout, offset=_whole([claim.get("offset", 0)], 0, 2**63)[0])
    filters = tuple((_whole([code], 0, 2**16)[0], _whole(values, 0, 2**32)) for code, values in claim["filters"])
    if any(objection(*each, name) for each in filters) or len(dict(filters)) < len(filters):
        raise ValueError("filters")
    if kind == "chunked" and not ASKED.isdisjoint(dict(filters)):
        raise ValueError("filters that only HDF5 undoes")
    layout = replace(layout, chunks=_whole(claim["chunks"], 1, 2**32), filters=filters)
    return replace(layout, index=_index(layout, next(arrays)))


def _whole(values: Any, low: int, high: int) -> tuple[int, ...]:
    """Python's integers, in a range; JSON's true is none of them."""
    if not isinstance(values, list) or not all(type(value) is int and low <= value < high for value in values):
        raise ValueError("numbers")
    return tuple(values)


def _data(layout: Layout, data: np.ndarray) -> bytes:
    if data.dtype != np.uint8 or data.shape != (layout.n_bytes,):
        raise ValueError("inline data")
    return data.tobytes()


def _index(layout: Layout, index: np.ndarray) -> np.ndarray:
    n_chunks = prod(grid_of(layout.shape, layout.chunks))
    if not layout.chunks or layout.chunk_bytes > MOST_CHUNK_BYTES or n_chunks > MOST_CHUNKS:
        raise ValueError("chunks")
    if index.dtype != np.int64 or index.shape != (3, n_chunks):
        raise ValueError("index")
    if (index < 0).any() or (index[2] >= 2**32).any():  # a mask has 32 bits
        raise ValueError("index")
    return index


def _dtype(claim: Any) -> np.dtype:
    dtype: np.dtype
    if "of" in claim:
        dtype = np.dtype((_dtype(claim["of"]), _whole(claim["shape"], 1, MOST_ITEM)))
    elif "fields" in claim:
        names, formats, offsets = map(list, zip(*claim["fields"], strict=True))
        places = [*_whole(offsets, 0, MOST_ITEM)]
        record: dict[str, Any] = {"names": names, "formats": [*map(_dtype, formats)], "offsets": places}
        (record["itemsize"],) = _whole([claim["itemsize"]], 1, MOST_ITEM)
        dtype = np.dtype(record)  # type: ignore[call-overload]
    elif claim["code"] == "|O":
        dtype = np.dtype("O")
    elif _CODE.fullmatch(claim["code"]):
        dtype = _annotated(np.dtype(claim["code"]), claim["notes"])
    else:
        raise ValueError("dtype")
    if not 1 <= dtype.itemsize <= MOST_ITEM:
        raise ValueError("dtype")
    return dtype


def _annotated(dtype: np.dtype, notes: Any) -> np.dtype:
    """With what h5py notes on a dtype, so that a copy is written as the original was."""
    known: dict[str, Any] = {}
    if "enum" in notes:
        if not all(isinstance(name, str) for name in notes["enum"]):
            raise ValueError("enum")
        known["enum"] = dict(zip(notes["enum"], _whole([*notes["enum"].values()], -(2**63), 2**64), strict=True))
    if notes.get("h5py_encoding") in ("ascii", "utf-8"):
        known["h5py_encoding"] = notes["h5py_encoding"]
    if notes.get("h5py_opaque") is True:
        known["h5py_opaque"] = True
    return np.dtype(dtype, metadata=known) if known else dtype


# -- places ------------------------------------------------------------------------------------------------------


def check_places(layouts: Sequence[Layout], size: int, where: str, base: int = 0) -> None:
    """Refuse (`DataError`) values that lie outside the file, one on top of the other, or unfold to too much.

    The file has `size` bytes, and its superblock lies at `base`; an error's sentence begins with `where`.
    """
    low = base + SMALLEST
    taken: dict[object, np.ndarray] = {}
    for layout in layouts:
        place = f"{where} dataset={shown(layout.name)}"
        if layout.n_bytes > _MOST_BYTES:
            raise DataError(
                f"{place}: shape {layout.shape} takes {layout.n_bytes} bytes, expected {_MOST_BYTES} at most"
            )
        offsets, sizes = places = _places(layout)
        outside = np.flatnonzero((offsets < low) | (offsets > size - sizes))
        if len(outside):
            first, n = int(offsets[outside[0]]), int(sizes[outside[0]])
            raise DataError(
                f"{place}: values lie at bytes {first}:{first + n}, expected {low}:{size} at most. The file "
                "is damaged or forged: do not use it."
            )
        if layout.index is not None:
            _check_sizes(layout, place)
        # Two names of one dataset have all places in common; otherwise not even one may be.
        taken[layout.shape, str(layout.dtype), offsets.tobytes()] = places
    every = np.concatenate([np.empty((2, 0), dtype=np.int64), *taken.values()], axis=1)
    offsets, sizes = every[:, np.argsort(every[0], kind="stable")]
    if (offsets[1:] < offsets[:-1] + sizes[:-1]).any():
        at = int(offsets[1:][offsets[1:] < offsets[:-1] + sizes[:-1]][0])
        raise DataError(f"{where}: values overlap at byte {at}. The file is damaged or forged: do not use it.")


def _places(layout: Layout) -> np.ndarray:
    """Offsets and sizes of what a layout has in the file, outside its metadata."""
    if layout.index is not None:
        return layout.index[:2]
    is_there = layout.kind == "contiguous" and layout.n_bytes
    return np.array([[layout.offset], [layout.n_bytes]] if is_there else [[], []], dtype=np.int64)


def _check_sizes(layout: Layout, place: str) -> None:
    assert layout.index is not None
    _, sizes, masks = layout.index
    every = 2 ** len(layout.filters) - 1
    wrong = (sizes > 2 * layout.chunk_bytes + 2**10) | (((masks & every) == every) & (sizes != layout.chunk_bytes))
    if layout.kind == "chunked" and wrong.any():
        raise DataError(
            f"{place}: a chunk of {int(sizes[wrong][0])} bytes in the file, expected about {layout.chunk_bytes}. The "
            "file is damaged or forged: do not use it."
        )
    declared, stored = len(sizes) * layout.chunk_bytes, int(sizes.sum())
    if declared > most_unfolded(stored):
        raise DataError(
            f"{place}: {stored} bytes unfold to {declared}, expected {_MOST_EXPANSION} times as many at most. Is it "
            "forged? If not: rewrite it with h5repack -f GZIP=1."
        )
