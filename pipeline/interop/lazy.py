"""Arrays of Dask, without loading it for whoever has none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import WriteFailed, shown

__all__ = ["by_blocks", "computed", "is_lazy"]


def is_lazy(rows: object) -> bool:
    """Whether rows are an array of Dask."""
    return type(rows).__module__.startswith("dask.array")


def computed(rows: Any, most_bytes: float = np.inf) -> Any:
    """What an array of Dask computes, each block once; beyond so many bytes in a file, which is mapped; others as is.

    Parameters
    ----------
    rows : array of shape (n_rows, n_inputs)

    Raises
    ------
    ValueError
        For an array of an unknown number of rows.
    WriteFailed
        When there is no room for the file.
    """
    if not is_lazy(rows):
        return rows
    if np.isnan(rows.shape[0]):
        raise ValueError("a Dask array of an unknown number of rows: X.compute_chunk_sizes() finds it out")
    return rows.compute() if rows.nbytes <= most_bytes else _spooled(rows)


def _spooled(rows: Any) -> np.ndarray:
    """The rows in a temporary file, which goes with the array."""
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, rows.nbytes)  # or a full disk would end the process
        except OSError as error:
            raise WriteFailed(
                f"{shown(tempfile.gettempdir())}: no room for {rows.nbytes} bytes of a Dask array that is larger than "
                f"half the memory budget: {error.strerror}. Set TMPDIR to another place, or write shards of it."
            ) from error
        found: np.ndarray = np.memmap(file, rows.dtype, "r+", shape=rows.shape)
        rows.store(found, lock=False)  # blocks do not overlap
    return found


def by_blocks(function: Callable[[np.ndarray], np.ndarray], rows: Any, width: int | None, dtype: type) -> Any:
    """What a function makes of each block of whole rows: of shape (n_rows, width), or (n_rows,) where that is None."""
    whole = rows.rechunk({1: -1})
    shape = {"drop_axis": 1} if width is None else {"chunks": (whole.chunks[0], (width,))}
    kind: np.ndarray = np.empty((0,) if width is None else (0, width), dtype)
    return whole.map_blocks(function, **shape, dtype=kind.dtype, meta=kind)
