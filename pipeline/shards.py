"""Find HDF5 shards, and read their rows.

Shards and blocks are plain values: no open file crosses a wall, each read opens and closes its own.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline import signals
from pipeline.errors import DataError, NoInput, NotPermitted, shown
from pipeline.gate import Shard, open_file, vet

__all__ = [
    "Block",
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

_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


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


# -- opening -------------------------------------------------------------------------------------------------------


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
    shards = tuple(_checked(path, dataset) for path in find(patterns))
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


def _checked(path: Path, dataset: str | None) -> Shard:
    signals.check()  # there may be many
    return vet(path, dataset)


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
        with open_file(Path(block.shard.path)) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{block}: cannot be read: {error}. The file is damaged: copy it again.") from error
