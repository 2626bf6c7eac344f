"""Find, vet and open HDF5 shards.

A shard is one HDF5 file with a numeric dataset, rows first; whatever lies behind the first axis is flattened per row.
`Shard` and `Block` are plain values: no open file crosses a wall, each read opens and closes its own.
"""

from __future__ import annotations

import glob
import importlib
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline import signals
from pipeline.errors import DataError, DeviceError, NoInput, NotPermitted, shown

__all__ = [
    "Block",
    "Shard",
    "block_of",
    "blocks",
    "find",
    "first_rows",
    "open_shards",
    "read",
    "read_riders",
    "row_dtype",
    "to_dask",
]

log = logging.getLogger(__name__)

PREFERRED_DATASET = "X"
_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
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


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` of one shard: what a task reads at once."""

    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"file={shown(self.shard.path)} dataset={shown(self.shard.dataset)} rows={self.start}:{self.stop}"


# -- which files -------------------------------------------------------------------------------------------------


def find(patterns: Sequence[str]) -> list[Path]:
    """Files that patterns name, in the order given, and in natural order of the names (9 before 10) within each.

    Parameters
    ----------
    patterns : sequence of str
        Files, directories (their files ending in .h5, .hdf5, .hdf or .he5) and globs.

    Raises
    ------
    NoInput
        When one of them matches nothing.
    NotPermitted
        When a directory may not be listed.
    DataError
        When one file is found twice, since its rows would count double.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        for path in _matches(pattern):
            resolved = Path(os.path.realpath(path))
            if resolved in found:
                raise DataError(
                    f"file={shown(path)}: found twice (as {shown(found[resolved])} and by {shown(pattern)}), expected "
                    "each shard once: its rows would count double. Drop one of the inputs."
                )
            found[resolved] = str(path)
    return [Path(name) for name in found.values()]


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(pattern):
        try:
            matches = [entry for entry in path.iterdir() if entry.suffix in _SUFFIXES]
        except PermissionError as error:
            raise NotPermitted(f"input={shown(pattern)}: {error.strerror}, expected a directory to list") from error
    elif os.path.lexists(pattern):
        matches = [path]
    else:
        matches = [Path(name) for name in glob.glob(pattern)]
    if not matches:
        raise NoInput(
            f"input={shown(pattern)}: no file matches, expected at least one HDF5 file. Check --input "
            "(scripts/make_data.py writes sample shards to data/)."
        )
    return sorted(matches, key=lambda match: natural_key(str(match)))


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which digits count as numbers."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


# -- vetting -----------------------------------------------------------------------------------------------------


def open_shards(patterns: Sequence[str], dataset: str | None = None) -> tuple[Shard, ...]:
    """Vet every file that `patterns` names, without reading rows.

    Parameters
    ----------
    patterns : sequence of str
        As for `find`.
    dataset : str, optional
        The dataset that holds the rows. With none: ``X``, else the only candidate.

    Returns
    -------
    tuple of Shard
        All of one width; at least one row in all.

    Raises
    ------
    NoInput, NotPermitted, DeviceError, DataError
        Whatever is wrong with a file, in words that name it.
    """
    shards = tuple(_vet(path, dataset) for path in find(patterns))
    first = shards[0]
    for shard in shards[1:]:
        if shard.n_inputs != first.n_inputs:
            raise DataError(
                f"file={shown(shard.path)} dataset={shown(shard.dataset)}: shape {shard.shape} has {shard.n_inputs} "
                f"columns, expected {first.n_inputs} as in file={shown(first.path)} dataset={shown(first.dataset)} of "
                f"shape {first.shape}. Give shards of one width."
            )
    if not any(shard.n_rows for shard in shards):
        raise DataError(
            f"file={shown(first.path)} dataset={shown(first.dataset)}: found no rows in any of {len(shards)} shards"
        )
    _log_shards(shards)
    return shards


def row_dtype(shards: Sequence[Shard]) -> np.dtype:
    """The dtype that holds the rows of all shards."""
    return np.result_type(*(np.dtype(shard.dtype) for shard in shards))


def _log_shards(shards: Sequence[Shard]) -> None:
    first = shards[0]
    n_bytes = sum(shard.n_rows * shard.n_inputs * np.dtype(shard.dtype).itemsize for shard in shards)
    log.info(
        "input: %d shards, %d rows x %d columns %s, %.1f MB",
        *(len(shards), sum(shard.n_rows for shard in shards), first.n_inputs, row_dtype(shards), n_bytes / 1e6),
    )
    if len(first.shape) > 2:
        log.info("input: rows of shape %s are flattened to %d columns", first.shape[1:], first.n_inputs)
    if len({shard.dtype for shard in shards}) > 1:
        log.info("input: dtypes %s are read as %s", sorted({s.stored_dtype for s in shards}), row_dtype(shards))
    for shard in shards:
        if not shard.n_rows:
            log.warning("file=%s dataset=%s: no rows", shown(shard.path), shown(shard.dataset))


def _vet(path: Path, dataset: str | None) -> Shard:
    signals.check()
    _check_regular(path)
    with _open(path) as file:
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


def _open(path: Path) -> h5py.File:
    """Open for reading, or say why not. No lock is taken: shards may lie on a file system that knows none."""
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


# -- reading -----------------------------------------------------------------------------------------------------


def blocks(shards: Sequence[Shard], block_rows: int) -> Iterator[Block]:
    """Cut every shard into blocks of `block_rows` rows, the last of each shard shorter."""
    for shard in shards:
        for start in range(0, shard.n_rows, block_rows):
            yield Block(shard, start, min(start + block_rows, shard.n_rows))


def read(block: Block) -> np.ndarray:
    """The rows of a block.

    Returns
    -------
    ndarray of shape (len(block), n_inputs), the shard's `dtype`, C order

    Raises
    ------
    DataError
        When HDF5 cannot read them: a damaged chunk, a wrong checksum.
    """
    shard = block.shard
    with _reading(block) as file:
        # In the stored dtype: HDF5 converts several times slower than NumPy.
        rows = file[shard.dataset][block.start : block.stop]
    if rows.shape != (len(block), *shard.shape[1:]):
        raise DataError(f"{block}: {len(rows)} rows of shape {rows.shape[1:]}, the file changed during the run")
    return np.ascontiguousarray(rows.reshape(len(block), shard.n_inputs), dtype=shard.dtype)


def read_riders(block: Block) -> dict[str, np.ndarray]:
    """The riding datasets' values for a block, by name; strings as objects."""
    shard = block.shard
    with _reading(block) as file:
        parent = file[shard.dataset].parent
        return {name: parent[name][block.start : block.stop] for name in shard.riders}


def block_of(shards: Sequence[Shard], first_rows: np.ndarray, start: int, stop: int) -> Block:
    """The block of rows `start` to `stop`, counted over all shards, which lie in one shard.

    Parameters
    ----------
    shards : sequence of Shard
    first_rows : ndarray of shape (len(shards) + 1,), int64
        What `first_rows` returns for them.
    start, stop : int
    """
    i = int(np.searchsorted(first_rows, start, side="right")) - 1
    return Block(shards[i], start - int(first_rows[i]), stop - int(first_rows[i]))


def first_rows(shards: Sequence[Shard]) -> np.ndarray:
    """Number of each shard's first row, counted over all shards, and of all rows at the end: int64."""
    return np.cumsum([0, *(shard.n_rows for shard in shards)], dtype=np.int64)


def to_dask(shards: Sequence[Shard], block_rows: int) -> Any:
    """All rows as one lazy array.

    Returns
    -------
    dask.array.Array of shape (n_rows, n_inputs), dtype `row_dtype`
        One chunk for each block.
    """
    import dask
    import dask.array as da

    dtype, n_inputs = row_dtype(shards), shards[0].n_inputs
    lazy = [
        da.from_delayed(dask.delayed(read)(block), (len(block), n_inputs), dtype=block.shard.dtype).astype(dtype)
        for block in blocks(shards, block_rows)
    ]
    return da.concatenate(lazy)


@contextmanager
def _reading(block: Block) -> Iterator[h5py.File]:
    """Open a block's file, and turn HDF5's complaints about it into ours."""
    try:
        with _open(Path(block.shard.path)) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{block}: cannot be read: {error}. The file is damaged: copy it again.") from error
