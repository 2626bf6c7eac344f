"""The gate: whether a file is a shard, and if not, why, before anything of it is read.

A shard is one HDF5 file with a numeric dataset, rows first; whatever lies behind the first axis is flattened per row.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError, DeviceError, NoInput, NotPermitted, shown

__all__ = ["Shard", "open_file", "vet"]

log = logging.getLogger(__name__)

PREFERRED_DATASET = "X"
_NATIVE_DTYPES = {
    "bool": "uint8",  # Theano's 8-bit integers are what a device copies fastest
    "float16": "float32",  # Theano has no float16 arithmetic on the CPU
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("float32", "float64")},
}
_LISTED = 20  # how many names an error lists


@dataclass(frozen=True)
class Shard:
    """One vetted file of the data set.

    Attributes
    ----------
    path : str
        Where it lies.
    dataset : str
        Which of its datasets holds the rows.
    shape : tuple of int
        As stored; the rank may be above 2.
    stored_dtype, dtype : str
        As stored, and as `read` returns it: native byte order, bool as uint8, float16 as float32.
    chunk_rows : int
        Rows of one HDF5 chunk, 1 where storage is contiguous.
    riders : tuple of str
        The 1-D datasets of the same length that ride along.
    """

    path: str
    dataset: str
    shape: tuple[int, ...]
    stored_dtype: str
    dtype: str
    chunk_rows: int = 1
    riders: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows."""
        return self.shape[0]

    @property
    def n_inputs(self) -> int:
        """Columns, all axes behind the first flattened."""
        return prod(self.shape[1:])


def vet(path: Path, dataset: str | None) -> Shard:
    """Look at a file's structure, not at its rows.

    Parameters
    ----------
    path : Path
    dataset : str, optional
        The dataset that holds the rows. With none: ``X``, else the only candidate.

    Raises
    ------
    NoInput, NotPermitted, DeviceError, DataError
        Whatever is wrong with it, in words that name it.
    """
    _check_regular(path)
    with open_file(path) as file:
        try:
            return _describe(file, path, dataset)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(
                f"file={shown(path)}: its structure cannot be read: {error}. The file is damaged: copy it again."
            ) from error


def _describe(file: h5py.File, path: Path, dataset: str | None) -> Shard:
    name = dataset if dataset is not None else _choose(file, path)
    found = _dataset(file, path, name)
    stored = _check_dtype(found, path, name)
    _check_filters(found, path, name)
    return Shard(
        path=str(path),
        dataset=name,
        shape=found.shape,
        stored_dtype=stored.str,
        dtype=_NATIVE_DTYPES[stored.newbyteorder("=").name],
        chunk_rows=found.chunks[0] if found.chunks else 1,
        riders=_riders(found, path),
    )


def _check_regular(path: Path) -> None:
    """Refuse what cannot be a shard before opening it: a FIFO would hang."""
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise NotPermitted(f"file={shown(path)}: {error.strerror}, expected a readable file") from error
    except OSError as error:
        raise NoInput(f"file={shown(path)}: {error.strerror}, expected an HDF5 file") from error
    if not stat.S_ISREG(mode):
        raise NoInput(f"file={shown(path)}: not a regular file, expected an HDF5 file")
    if not os.access(path, os.R_OK):
        raise NotPermitted(f"file={shown(path)}: no permission to read it. Run: chmod u+r on the file, as its owner.")


def open_file(path: Path) -> h5py.File:
    """Open for reading, or raise `DataError` that says why not.

    No lock is taken: shards may lie on a file system that knows none.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        words = str(error)
        if "truncated file" in words:
            stored = re.search(r"stored_eof = (\d+)", words)
            expected = f"{stored[1]} bytes as its header says" if stored else "a whole file"
            raise DataError(
                f"file={shown(path)}: truncated: {path.stat().st_size} bytes, expected {expected}. Copy it again."
            ) from error
        if "signature not found" in words:
            with path.open("rb") as opened:
                start = opened.read(16)
            raise DataError(
                f"file={shown(path)}: not an HDF5 file (first bytes {start!r}), expected one. Check --input."
            ) from error
        raise DataError(f"file={shown(path)}: cannot be opened as HDF5: {words}") from error


def _choose(file: h5py.File, path: Path) -> str:
    """``X``, else the only candidate: a numeric dataset of rank 2 or more."""
    if PREFERRED_DATASET in file and _is_candidate(file[PREFERRED_DATASET]):
        return PREFERRED_DATASET
    candidates: list[str] = []

    def consider(name: str, item: Any) -> None:
        if _is_candidate(item):
            candidates.append(name)

    file.visititems(consider)
    if len(candidates) == 1:
        return candidates[0]
    if PREFERRED_DATASET in file and not candidates:
        return PREFERRED_DATASET  # and be told what is wrong with it
    found = f"candidates {_listing(candidates)}" if candidates else f"no candidate among {_listing(_names(file))}"
    raise DataError(
        f"file={shown(path)}: {found}, expected a dataset {PREFERRED_DATASET!r} or exactly one numeric dataset of rank "
        "2 or more. Name it with --dataset."
    )


def _is_candidate(item: Any) -> bool:
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.ndim < 2:
        return False
    stored = _dtype(item)
    return stored is not None and stored.kind in "uifb"


def _dtype(found: h5py.Dataset) -> np.dtype | None:
    """A dataset's dtype; None where NumPy has none like it."""
    try:
        return found.dtype
    except TypeError:
        return None


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    where = f"file={shown(path)} dataset={shown(name)}"
    try:
        found = file[name]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{where}: not there, the file holds {_listing(_names(file))}. Name one with --dataset."
        ) from error
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where}: a group, expected a dataset; the file holds {_listing(_names(file))}")
    if found.shape is None:
        raise DataError(f"{where}: an empty dataset (no shape at all), expected rows of numbers")
    if found.ndim < 2:
        raise DataError(f"{where}: shape {found.shape} has rank {found.ndim}, expected rank 2 or more, rows first")
    if not prod(found.shape[1:]):
        raise DataError(f"{where}: an empty dataset (shape {found.shape} has no columns), expected at least one column")
    return found


def _check_dtype(found: h5py.Dataset, path: Path, name: str) -> np.dtype:
    stored = _dtype(found)
    if stored is None:
        kind = "a type that NumPy does not know"
    elif stored.newbyteorder("=").name in _NATIVE_DTYPES and stored.fields is None and stored.subdtype is None:
        return stored
    elif h5py.check_string_dtype(stored) is not None or stored.kind in "SU":
        kind = "strings"
    elif stored.fields is not None:
        kind = f"compound records of {len(stored.fields)} fields"
    else:
        kind = f"dtype {stored}"
    raise DataError(
        f"file={shown(path)} dataset={shown(name)}: holds {kind}, expected integers, bool, or floating-point numbers "
        "of 16, 32 or 64 bits"
    )


def _check_filters(found: h5py.Dataset, path: Path, name: str) -> None:
    """Every filter must be there before the night starts; hdf5plugin brings the ones that HDF5 itself lacks."""
    properties = found.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    if not all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        try:
            importlib.import_module("hdf5plugin")
        except ImportError:
            log.debug("hdf5plugin is not installed")
    for code, _flags, _values, label in filters:
        if not h5py.h5z.filter_avail(code):
            raise DeviceError(
                f"file={shown(path)} dataset={shown(name)}: compressed with HDF5 filter {code} "
                f"({shown(label.decode(errors='replace'))}), which is not available. Run: pip install hdf5plugin"
            )


def _riders(rows: h5py.Dataset, path: Path) -> tuple[str, ...]:
    """1-D datasets of the same length beside the rows, of plain values or text: labels, ids."""
    names = []
    for name, item in rows.parent.items():
        if not isinstance(item, h5py.Dataset) or item.shape != rows.shape[:1]:
            continue
        stored = _dtype(item)
        if stored is None or (stored.hasobject and h5py.check_string_dtype(stored) is None):
            log.warning("file=%s dataset=%s: neither plain nor text, does not ride along", shown(path), shown(name))
            continue
        _check_filters(item, path, name)
        names.append(name)
    return tuple(names)


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(shown(name) for name in names[:_LISTED]) or "nothing") + more
