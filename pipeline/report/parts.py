"""Features of some rows, read from the parts in which they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, shown
from pipeline.features import FAILURES, FEATURES, VALID, reading

__all__ = ["Part", "drawn", "features_at"]

Part = Mapping[str, Any]
"""A part's line in the manifest."""


def drawn(sizes: Sequence[int], n: int, seed: int = 0) -> list[np.ndarray]:
    """Up to `n` rows of pieces of these sizes, one from each of as many stretches of all rows: for each piece, sorted.

    The rows and the seed alone decide which.
    """
    firsts = np.cumsum([0, *sizes])
    n = min(n, int(firsts[-1]))
    edges = np.arange(n + 1) * int(firsts[-1]) // max(1, n)
    rows = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    ends = np.searchsorted(rows, firsts)
    return [rows[ends[i] : ends[i + 1]] - firsts[i] for i in range(len(sizes))]


def features_at(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, n_features) of a part's rows (n,), sorted, as they are stored, and which of them count: bool, (n,).

    Raises
    ------
    DataError
        When the part cannot be read.
    """
    try:
        with reading(path) as file:
            return _values(path, file[FEATURES], rows), file[VALID][()][rows]
    except FAILURES as error:
        raise DataError(f"file={shown(path)}: cannot be read: {error}") from error


def _values(path: Path, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Past HDF5 where values lie in one piece: of single rows it takes longer to be told which than to read them."""
    place = features.id.get_offset()
    if place is not None:
        return np.asarray(np.memmap(path, features.dtype, "r", place, features.shape)[rows])
    chunk = features.chunks[0] if features.chunks else 1
    starts = np.unique(rows // chunk) * chunk  # each chunk is undone once
    found = [features[start : start + chunk][rows[rows // chunk == start // chunk] - start] for start in starts]
    return np.concatenate([np.empty((0, *features.shape[1:]), features.dtype), *found])
