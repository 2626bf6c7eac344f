"""Functions of the child that check where values are. A forged file can name any place."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardpress.hdf5.child.find import Rejection
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import SMALLEST

_MOST_BYTES = 2**46  # bytes of one dataset; the total of all datasets in a file then stays below 2**63
_MOST_EXPANSION = 1100  # the deflate format itself allows at most 1032
_EXPANSION_FLOOR = 2**28  # decompressed bytes that are allowed regardless of the file size
_FORGED = "The file is damaged or forged: do not use it."


def max_decompressed(n_stored: int) -> int:
    """Return the maximum size to which `n_stored` bytes may decompress."""
    return max(_EXPANSION_FLOOR, _MOST_EXPANSION * n_stored)


def check_place(layout: Layout, size: int) -> None:
    """Refuse values that are outside a file of `size` bytes, or too large when decompressed."""
    if layout.n_bytes > _MOST_BYTES:
        raise Rejection(
            f"shape {layout.shape} takes {layout.n_bytes} bytes, expected at most {_MOST_BYTES}. Split the dataset "
            "into several files.",
            layout.name,
        )
    outside = None
    if layout.index is not None:
        offsets, sizes, _ = layout.index
        (is_outside,) = np.nonzero((offsets < SMALLEST) | (offsets > size - sizes))
        if len(is_outside):
            outside = layout.index[:2, is_outside[0]].tolist()
    elif layout.kind == "contiguous" and not SMALLEST <= layout.offset <= size - layout.n_bytes:
        outside = [layout.offset, layout.n_bytes]
    if outside is not None:
        first, n_bytes = outside
        raise Rejection(
            f"values are at bytes {first}:{first + n_bytes}, expected within {SMALLEST}:{size}. {_FORGED}", layout.name
        )
    if layout.index is not None:
        _check_sizes(layout, layout.index)


def places_apart(layouts: Sequence[Layout]) -> np.ndarray:
    """Return the places of values, first bytes and numbers of bytes: (n, 2), int64, in order.

    Refuse a file in which the values of different datasets, or of different chunks, share bytes.
    """
    # Two names for one dataset share all places. Different datasets must not share any place.
    places: dict[object, Any] = {}
    for layout in layouts:
        key = layout.shape, layout.dtype
        if layout.index is not None:
            places[*key, layout.index[0].tobytes()] = layout.index[:2].T
        elif layout.kind == "contiguous":
            places[*key, layout.offset] = [(layout.offset, layout.n_bytes)]
    together = np.concatenate([np.empty((0, 2), np.int64), *places.values()])
    together = together[together[:, 0].argsort(kind="stable")]
    offsets, sizes = together.T
    (overlaps,) = np.nonzero(offsets[1:] < offsets[:-1] + sizes[:-1])
    if len(overlaps):
        raise Rejection(f"values overlap at byte {int(offsets[1 + overlaps[0]])}. {_FORGED}")
    return together


def _check_sizes(layout: Layout, index: np.ndarray) -> None:
    """Refuse chunks if their stored sizes are impossible, or too small for the decompressed size."""
    _, sizes, masks = index
    if layout.kind == "chunked":
        _check_chunk_sizes(layout, sizes, masks)
    declared = len(sizes) * layout.chunk_bytes
    stored = int(sizes.sum())
    if declared > max_decompressed(stored):
        raise Rejection(
            f"{stored} bytes decompress to {declared} bytes, expected at most {_MOST_EXPANSION} times the stored size. "
            "The file may be forged. If you trust it, rewrite it with h5repack -f GZIP=1.",
            layout.name,
        )


def _check_chunk_sizes(layout: Layout, sizes: np.ndarray, masks: np.ndarray) -> None:
    all_skipped = 2 ** len(layout.filters) - 1
    is_unfiltered = (masks & all_skipped) == all_skipped
    wrong = (sizes > 2 * layout.chunk_bytes + 2**10) | (is_unfiltered & (sizes != layout.chunk_bytes))
    if np.count_nonzero(wrong):
        raise Rejection(
            f"a chunk takes {int(sizes[wrong][0])} bytes, expected about {layout.chunk_bytes}. {_FORGED}", layout.name
        )
