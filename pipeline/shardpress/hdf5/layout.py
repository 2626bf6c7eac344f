"""Dataset layouts, built from the claims of the child or of `plain.describe` after checking each number."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from shardpress.errors import DataError, printable
from shardpress.hdf5.filters.codecs import ASKED, objection
from shardpress.hdf5.limits import MOST_CHUNK_BYTES, MOST_CHUNKS, MOST_ITEM, SMALLEST

_KINDS = ("contiguous", "chunked", "inline", "asked")
_MOST_BYTES = 2**46  # bytes of one dataset; the total of all datasets in a file then stays below 2**63
_MOST_EXPANSION = 1100  # the deflate format itself allows at most 1032
_EXPANSION_FLOOR = 2**28  # decompressed bytes that are allowed regardless of the file size
_CODE = re.compile(r"[<>|=][uifbcSVMm][0-9]{1,7}(\[[0-9]{0,6}[a-z]{1,2}\])?")


@dataclass(frozen=True, eq=False)
class Layout:
    """Location of the bytes of a dataset.

    Attributes
    ----------
    name : str
        Path in the file.
    shape : tuple of int
    dtype : dtype
        Dtype as stored.
    kind : str
        ``contiguous``, ``chunked``, ``inline`` (stored in the metadata), or ``asked`` (readable only by libhdf5).
    offset : int
        Offset of the bytes of a contiguous dataset. For an ``asked`` dataset of strings: the claimed offset of the
        string references, or 0 if it is unknown.
    chunks : tuple of int
        Shape of a chunk.
    filters : tuple of (int, tuple of int)
        Filter codes and parameters, in the order in which the filters were applied.
    index : ndarray of shape (3, n_chunks), int64, or None
        Offset, size and filter mask of every chunk, in C order of the chunk grid. The order is arbitrary if `kind` is
        ``asked``.
    data : bytes
        Values of an ``inline`` dataset.
    longest : int
        Bytes of the longest variable-length string, or 0 if it is unknown or there are no such strings.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str
    offset: int = 0
    chunks: tuple[int, ...] = ()
    filters: tuple[tuple[int, tuple[int, ...]], ...] = ()
    index: np.ndarray | None = None
    data: bytes = b""
    longest: int = 0

    @property
    def n_bytes(self) -> int:
        """Total size of the values in bytes."""
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
    """Convert a claim from `child.layouts.layout_claim` to a layout.

    Chunked and inline layouts take the next array from `arrays`.

    Raises
    ------
    ValueError, TypeError, KeyError, StopIteration
        If the claim is malformed.
    """
    name = claim["name"]
    kind = claim["kind"]
    dtype = _dtype(claim["dtype"])
    layout = Layout(name, _integers(claim["shape"], 0, 2**63), dtype, kind)
    _check_form(layout)
    if kind == "contiguous":
        return replace(layout, offset=_offset(claim["offset"]))
    if kind == "inline":
        return replace(layout, data=_data(layout, next(arrays)))
    if kind == "asked" and "chunks" not in claim:
        return replace(layout, offset=_offset(claim.get("offset", 0)))
    chunks = _integers(claim["chunks"], 1, 2**32)
    layout = replace(layout, chunks=chunks, filters=_filters(claim["filters"], name, kind))
    return replace(layout, index=_index(layout, next(arrays)))


def _check_form(layout: Layout) -> None:
    if not isinstance(layout.name, str) or layout.kind not in _KINDS or len(layout.shape) > 32:
        raise ValueError("invalid name, kind or rank")
    if layout.dtype.hasobject and (layout.dtype != np.dtype("O") or layout.kind != "asked"):
        raise ValueError("invalid object dtype")  # NumPy would interpret bytes of the file as pointers


def _filters(claims: Any, name: str, kind: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    filters = []
    for claimed_code, claimed_values in claims:
        code = _integer(claimed_code, 0, 2**16)
        values = _integers(claimed_values, 0, 2**32)
        if objection(code, values, name):
            raise ValueError(f"unsupported filter {code}")
        filters.append((code, values))
    codes = {code for code, _ in filters}
    if len(codes) < len(filters):
        raise ValueError("a filter that is applied twice")
    if kind == "chunked" and not ASKED.isdisjoint(codes):
        raise ValueError("filters that only libhdf5 can decode")
    return tuple(filters)


def _offset(claim: Any) -> int:
    return _integer(claim, 0, 2**63)


def _integer(claim: Any, low: int, high: int) -> int:
    (value,) = _integers([claim], low, high)
    return value


def _integers(values: Any, low: int, high: int) -> tuple[int, ...]:
    """Check that a list has only integers from `low` to `high` - 1, and return a tuple. Refuse JSON's ``true``."""
    if not isinstance(values, list) or not all(type(value) is int and low <= value < high for value in values):
        raise ValueError(f"expected integers from {low} to {high - 1}")
    return tuple(values)


def _data(layout: Layout, data: np.ndarray) -> bytes:
    if data.dtype != np.uint8 or data.shape != (layout.n_bytes,):
        raise ValueError("invalid inline data")
    return data.tobytes()


def _index(layout: Layout, index: np.ndarray) -> np.ndarray:
    n_chunks = prod(grid_of(layout.shape, layout.chunks))
    if not layout.chunks or layout.chunk_bytes > MOST_CHUNK_BYTES or n_chunks > MOST_CHUNKS:
        raise ValueError("invalid chunks")
    if index.dtype != np.int64 or index.shape != (3, n_chunks):
        raise ValueError("invalid dtype or shape of a chunk index")
    if (index < 0).any() or (index[2] >= 2**32).any():  # filter masks have 32 bits
        raise ValueError("invalid numbers in a chunk index")
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
    metadata: dict[str, Any] = {}
    if "enum" in notes:
        metadata["enum"] = _enumeration(notes["enum"])
    if notes.get("h5py_encoding") in ("ascii", "utf-8"):
        metadata["h5py_encoding"] = notes["h5py_encoding"]
    if notes.get("h5py_opaque") is True:
        metadata["h5py_opaque"] = True
    if not metadata:
        return dtype
    return np.dtype(dtype, metadata=metadata)


def _enumeration(claim: Any) -> dict[str, int]:
    if not all(isinstance(name, str) for name in claim):
        raise ValueError("invalid enumeration")
    values = _integers([*claim.values()], -(2**63), 2**64)
    return dict(zip(claim, values, strict=True))


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
    """Refuse places that are not within the offsets `low` and `high`."""
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
    """Refuse places that overlap."""
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
