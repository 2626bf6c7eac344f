"""Features of some rows, read from the parts in which they stand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, shown
from pipeline.features import FAILURES, FEATURES, VALID, reading
from pipeline.output.records import check_storage

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
    ReadFailed, SystemLimit
        When the storage or the system fails: that says nothing about the part.
    """
    try:
        with reading(path) as file:
            return _values(path, file[FEATURES], rows), file[VALID][()][rows]
    except FAILURES as error:
        number = _error_number(error)
        if number:
            check_storage(OSError(number, os.strerror(number)), path)
        raise DataError(f"file={shown(path)}: cannot be read: {error}") from error


def _error_number(error: BaseException) -> int | None:
    """Return the system's error number of a failed read; HDF5 gives it in its text alone."""
    found = re.search(r"errno = (\d+), error message", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def _values(path: Path, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Past HDF5 where values lie in one piece: of single rows it takes longer to be told which than to read them."""
    place = features.id.get_offset()
    if place is not None:
        return _read_rows(path, place, features, rows)
    chunk = features.chunks[0] if features.chunks else 1
    starts = np.unique(rows // chunk) * chunk  # each chunk is undone once
    found = [features[start : start + chunk][rows[rows // chunk == start // chunk] - start] for start in starts]
    return np.concatenate([np.empty((0, *features.shape[1:]), features.dtype), *found])


def _read_rows(path: Path, place: int, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return rows of values that lie in one piece from `place` on.

    By reads, not by a map of the file: where the disk fails or the file is cut short, a map ends the process (SIGBUS).
    """
    found = np.empty((len(rows), *features.shape[1:]), features.dtype)
    row_bytes = found[:1].nbytes
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for i, row in enumerate(rows.tolist()):
            data = _read_whole(descriptor, place + row * row_bytes, row_bytes)
            found[i] = np.frombuffer(data, features.dtype).reshape(features.shape[1:])
    finally:
        os.close(descriptor)
    return found


def _read_whole(descriptor: int, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` of a file, however many reads that takes."""
    data = b""
    while len(data) < n_bytes:
        piece = os.pread(descriptor, n_bytes - len(data), offset + len(data))
        if not piece:
            raise ValueError(f"the file ends at byte {offset + len(data)}")
        data += piece
    return data
