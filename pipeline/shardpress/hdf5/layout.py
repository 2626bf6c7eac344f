"""Dataset layouts, built from the claims of the child or of `plain.describe` after checking each number."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from shardpress.errors import DataError, printable
from shardpress.hdf5.filters.codecs import FILTERS
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_CHUNKS, MOST_ITEM, SMALLEST

_KINDS = ("contiguous", "chunked", "inline", "asked")
_MOST_BYTES = 2**46  # bytes of one dataset; the total of all datasets in a file then stays below 2**63
_MOST_EXPANSION = 1100  # the deflate format itself allows at most 1032
_EXPANSION_FLOOR = 2**28  # decompressed bytes that are allowed regardless of the file size
_CODE = re.compile(r"[<>|=][uifbcSVMm][0-9]{1,7}(\[[0-9]{0,6}[a-z]{1,2}\])?")


@dataclass(frozen=True, eq=False)
class Layout:
    """Location of the bytes of a dataset."""

    name: str  # path in the file
    shape: tuple[int, ...]
    dtype: np.dtype  # as stored
    kind: str  # ``contiguous``, ``chunked``, ``inline`` (in the metadata), or ``asked`` (readable only by libhdf5)
    offset: int = 0  # of a contiguous dataset, or of the references of an ``asked`` dataset of strings; 0 if unknown
    chunks: tuple[int, ...] = ()  # shape of a chunk
    filters: tuple[tuple[int, tuple[int, ...]], ...] = ()  # codes and parameters, in the order of their application
    # Offset, size and filter mask of every chunk: shape (3, n_chunks), int64, in C order of the chunk grid. The order
    # is arbitrary if `kind` is ``asked``.
    index: np.ndarray | None = None
    data: bytes = b""  # values of an ``inline`` dataset
    longest: int = 0  # bytes of the longest variable-length string; 0 if there are none, or it is unknown

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Decompressed size of one chunk in bytes. Chunks at the edges have the same size."""
        return prod(self.chunks) * self.dtype.itemsize


def bytes_of(array: np.ndarray) -> np.ndarray:
    """Return a flat uint8 view of an array."""
    return array.reshape(-1).view(np.uint8)


def grid_of(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Return the number of chunks along each axis. Raise `ValueError` if the ranks differ."""
    return tuple(-(-n // size) for n, size in zip(shape, chunks, strict=True))


def max_decompressed(n_stored: int) -> int:
    """Return the maximum size to which `n_stored` bytes may decompress."""
    return max(_EXPANSION_FLOOR, _MOST_EXPANSION * n_stored)


def layout_of(claim: Any, arrays: Iterator[np.ndarray]) -> Layout:
    """Convert a claim from `child.layouts.layout_claim` to a layout. Take the arrays that it needs from `arrays`.

    A malformed claim raises `ValueError`, `TypeError`, `KeyError` or `StopIteration`.
    """
    kind = claim["kind"]
    layout = Layout(claim["name"], _integers(claim["shape"], 0, 2**63), _dtype(claim["dtype"]), kind)
    _check_form(layout)
    if kind == "contiguous":
        return replace(layout, offset=_integer(claim["offset"], 0, 2**63))
    if kind == "inline":
        data = next(arrays).tobytes()
        if len(data) != layout.n_bytes:
            raise ValueError("invalid size of inline data")
        return replace(layout, data=data)
    if kind == "asked" and "chunks" not in claim:
        return replace(layout, offset=_integer(claim.get("offset", 0), 0, 2**63))
    chunks = _integers(claim["chunks"], 1, 2**32)
    layout = replace(layout, chunks=chunks, filters=_filters(claim["filters"]))
    return replace(layout, index=_index(layout, next(arrays)))


def _check_form(layout: Layout) -> None:
    if not isinstance(layout.name, str) or layout.kind not in _KINDS or len(layout.shape) > 32:
        raise ValueError("invalid name, kind or rank")
    if layout.dtype.hasobject and (layout.dtype != np.dtype("O") or layout.kind != "asked"):
        raise ValueError("invalid object dtype")  # NumPy would interpret bytes of the file as pointers


def _filters(claims: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    filters = tuple((_integer(code, 0, 2**16), _integers(values, 0, 2**32)) for code, values in claims)
    if not FILTERS.keys() >= {code for code, _ in filters}:
        raise ValueError("unsupported filters")
    return filters


def _integer(claim: Any, low: int, high: int) -> int:
    (value,) = _integers([claim], low, high)
    return value


def _integers(values: Any, low: int, high: int) -> tuple[int, ...]:
    """Check that a list has only integers from `low` to `high` - 1, and return a tuple. Refuse JSON's ``true``."""
    if not isinstance(values, list) or not all(type(value) is int and low <= value < high for value in values):
        raise ValueError(f"expected integers from {low} to {high - 1}")
    return tuple(values)


def _index(layout: Layout, index: np.ndarray) -> np.ndarray:
    n_chunks = prod(grid_of(layout.shape, layout.chunks))
    if not layout.chunks or layout.chunk_bytes > MOST_CHUNK_BYTES or n_chunks > MOST_CHUNKS:
        raise ValueError("invalid chunks")
    if index.dtype != np.int64 or index.shape != (3, n_chunks) or (index < 0).any() or (index[2] >= 2**32).any():
        raise ValueError("invalid chunk index")  # filter masks have 32 bits
    return index


def _dtype(claim: Any) -> np.dtype:
    dtype: np.dtype
    if "of" in claim:
        dtype = np.dtype((_dtype(claim["of"]), _integers(claim["shape"], 1, MOST_ITEM)))
    elif "fields" in claim:
        dtype = _record(claim)
    elif claim["code"] == "|O":
        dtype = np.dtype("O")
    elif _CODE.fullmatch(claim["code"]):
        dtype = _with_metadata(np.dtype(claim["code"]), claim["notes"])
    else:
        raise ValueError("invalid dtype")
    if not 1 <= dtype.itemsize <= MOST_ITEM:
        raise ValueError("invalid size of a dtype")
    return dtype


def _record(claim: Any) -> np.dtype:
    names, formats, claimed_offsets = map(list, zip(*claim["fields"], strict=True))
    offsets = list(_integers(claimed_offsets, 0, MOST_ITEM))
    dtypes = [_dtype(each) for each in formats]
    itemsize = _integer(claim["itemsize"], 1, MOST_ITEM)
    return np.dtype({"names": names, "formats": dtypes, "offsets": offsets, "itemsize": itemsize})


def _with_metadata(dtype: np.dtype, notes: Any) -> np.dtype:
    """Return a dtype with h5py's metadata, so that copies of a dataset keep the original HDF5 type."""
    metadata = {key: notes[key] for key in ("enum", "h5py_encoding", "h5py_opaque") if key in notes}
    return np.dtype(dtype, metadata=metadata) if metadata else dtype


# -- places ------------------------------------------------------------------------------------------------------


def check_places(layouts: Sequence[Layout], size: int, where: str, base: int = 0) -> None:
    """Raise `DataError` if values are outside the file, overlap, or are too large when decompressed.

    The file has `size` bytes, and the superblock is at `base`. Messages begin with `where`.
    """
    by_dataset: dict[object, np.ndarray] = {}
    for layout in layouts:
        places = _checked_places(layout, size, f"{where} dataset={printable(layout.name)}", base)
        # Two names for one dataset share all places. Different datasets must not share any place.
        by_dataset[layout.shape, str(layout.dtype), places[0].tobytes()] = places
    _check_apart(np.concatenate([_NO_PLACES, *by_dataset.values()], axis=1), where)


def _checked_places(layout: Layout, size: int, where: str, base: int) -> np.ndarray:
    """Check that the values of one dataset are inside the file and have plausible sizes, and return their places."""
    if layout.n_bytes > _MOST_BYTES:
        raise DataError(
            f"{where}: shape {layout.shape} takes {layout.n_bytes} bytes, expected at most {_MOST_BYTES}. Split the "
            "dataset into several files."
        )
    places = _places(layout)
    _check_inside(places, base + SMALLEST, size, where)
    if layout.index is not None:
        _check_sizes(layout, layout.index, where)
    return places


_NO_PLACES = np.empty((2, 0), dtype=np.int64)


def _places(layout: Layout) -> np.ndarray:
    """Return the offsets and sizes of values stored outside the metadata, as an array of shape (2, n)."""
    if layout.index is not None:
        return layout.index[:2]
    if layout.kind == "contiguous" and layout.n_bytes:
        return np.array([[layout.offset], [layout.n_bytes]], dtype=np.int64)
    return _NO_PLACES


def _check_inside(places: np.ndarray, low: int, high: int, where: str) -> None:
    offsets, sizes = places
    outside = np.flatnonzero((offsets < low) | (offsets > high - sizes))
    if len(outside):
        first = int(offsets[outside[0]])
        stop = first + int(sizes[outside[0]])
        raise DataError(
            f"{where}: values are at bytes {first}:{stop}, expected within {low}:{high}. The file is damaged or "
            "forged: do not use it."
        )


def _check_apart(places: np.ndarray, where: str) -> None:
    offsets, sizes = places[:, np.argsort(places[0], kind="stable")]
    overlaps = offsets[1:] < offsets[:-1] + sizes[:-1]
    if overlaps.any():
        at = int(offsets[1:][overlaps][0])
        raise DataError(f"{where}: values overlap at byte {at}. The file is damaged or forged: do not use it.")


def _check_sizes(layout: Layout, index: np.ndarray, where: str) -> None:
    """Refuse chunks if their stored sizes are impossible, or too small for the decompressed size."""
    _, sizes, masks = index
    if layout.kind == "chunked":
        _check_chunk_sizes(layout, sizes, masks, where)
    declared = len(sizes) * layout.chunk_bytes
    stored = int(sizes.sum())
    if declared > max_decompressed(stored):
        raise DataError(
            f"{where}: {stored} bytes decompress to {declared} bytes, expected at most {_MOST_EXPANSION} times the "
            "stored size. The file may be forged. If you trust it, rewrite it with h5repack -f GZIP=1."
        )


def _check_chunk_sizes(layout: Layout, sizes: np.ndarray, masks: np.ndarray, where: str) -> None:
    all_skipped = 2 ** len(layout.filters) - 1
    is_unfiltered = (masks & all_skipped) == all_skipped
    wrong = (sizes > 2 * layout.chunk_bytes + 2**10) | (is_unfiltered & (sizes != layout.chunk_bytes))
    if wrong.any():
        raise DataError(
            f"{where}: a chunk takes {int(sizes[wrong][0])} bytes, expected about {layout.chunk_bytes}. The "
            "file is damaged or forged: do not use it."
        )
