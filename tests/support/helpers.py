"""Helpers of several tests: shards, expected errors, and calls without root privileges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.base.errors import ShardpressError
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Block, Shard
from shardpress.result.features import open_features
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import Scan, scan
from shardpress.shards.conversion import AS_STORED, Conversion
from shardpress.shards.open import open_shards
from tests.support.faulty import forked

UNPRIVILEGED = 65534


def write_shard(path: Path, rows: Any, name: str = "X", extras: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Write an HDF5 file with rows and extras. `options` are passed to ``create_dataset`` of h5py for the rows."""
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=rows, **options)
        for extra, values in (extras or {}).items():
            file.create_dataset(extra, data=values)
    return str(path)


def numbered(n_rows: int, n_inputs: int = 2, first: int = 0, dtype: Any = np.int64) -> np.ndarray:
    """Return rows that contain their number: row i, counted from `first`, holds 10 i, 10 i + 1 and so on."""
    return (10 * np.arange(first, first + n_rows)[:, None] + np.arange(n_inputs)).astype(dtype)


def numbered_shards(folder: Path, *sizes: int, **options: Any) -> tuple[Shard, ...]:
    """Write shards of these sizes. Each row contains its number over all shards."""
    for i, size in enumerate(sizes):
        write_shard(folder / f"{i}.h5", numbered(size, first=sum(sizes[:i])), **options)
    return open_shards([str(folder / f"{i}.h5") for i in range(len(sizes))])


def blocks(shards: Sequence[Shard], block_rows: int) -> Iterator[Block]:
    """Yield blocks of `block_rows` rows of every shard."""
    for shard in shards:
        yield from Block(shard, 0, shard.n_rows).cut(block_rows)


def whole(shard: Shard, conversion: Conversion = AS_STORED) -> np.ndarray:
    """Return all rows of a shard."""
    return conversion.read(Block(shard, 0, shard.n_rows))


def scanned(
    shards: Sequence[Shard],
    block_rows: int,
    n_threads: int = 1,
    advance: Callable[[int], object] = lambda n_rows: None,
    fitted: np.ndarray | None = None,
    **settings: Any,
) -> Scan:
    """Scan shards in threads, and return the scan."""
    with threads(n_threads) as pool:
        return scan(shards, ScanSettings(block_rows, **settings), pool, n_threads, advance, fitted)


def features_in(output: Path, **options: Any) -> np.ndarray:
    """Return the features of an output directory. `options` are those of `open_features`."""
    return open_features(output, **options).features.compute()


def names(shard: Shard) -> tuple[str, ...]:
    """Return the names of a shard's extras."""
    return tuple(extra.name for extra in shard.extras)


def some_rows(dtype: Any = "<f4", n_rows: int = 61, n_inputs: int = 6) -> np.ndarray:
    """Return rows with mostly zero entries."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 100, (n_rows, n_inputs)) * (rng.random((n_rows, n_inputs)) < 0.4)
    return values.astype(dtype)


def csr(rows: np.ndarray, index: str = "<i4", scramble: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, column indices and row pointers, as in SciPy and AnnData."""
    where = [np.flatnonzero(row)[:: -1 if scramble else 1] for row in rows]
    values = [row[columns] for row, columns in zip(rows, where, strict=True)]
    ends = np.cumsum([0, *map(len, where)])
    return np.concatenate(values).astype(rows.dtype), np.concatenate(where).astype(index), ends.astype(index)


def write_csr(path: Path, parts: Sequence[np.ndarray], shape: tuple[int, ...], **attributes: Any) -> str:
    """Write a sparse matrix, `X`, from values, column indices and row pointers."""
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group["data"], group["indices"], group["indptr"] = parts
        group.attrs.update({"shape": shape, **attributes})
    return str(path)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@contextmanager
def refused(exit_code: int, *phrases: str) -> Iterator[pytest.ExceptionInfo[ShardpressError]]:
    """Expect a `ShardpressError` with this exit code. Its message must be one line and contain these phrases."""
    with pytest.raises(ShardpressError) as caught:
        yield caught
    sentence = str(caught.value)
    assert caught.value.exit_code == exit_code, sentence
    assert [phrase for phrase in phrases if phrase not in sentence] == [], sentence
    assert sentence.isprintable()


def without_privileges(act: Callable[[], object]) -> tuple[int, str]:
    """Call `act` without root privileges. Return the exit code and message of its error, or (0, "") for success."""
    if os.getuid() != 0:
        return _outcome(act)

    def drop_and_act() -> tuple[int, str]:
        os.setgroups([])
        os.setgid(UNPRIVILEGED)
        os.setuid(UNPRIVILEGED)
        return _outcome(act)

    _, (exit_code, sentence) = forked(drop_and_act)
    return exit_code, sentence


def _outcome(act: Callable[[], object]) -> tuple[int, str]:
    try:
        act()
    except ShardpressError as error:
        return error.exit_code, str(error)
    except BaseException as error:
        return -1, repr(error)
    return 0, ""
