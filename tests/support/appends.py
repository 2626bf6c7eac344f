"""Helpers of tests that append files to finished runs of the stand-in."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from shardpress.features import open_features
from tests.support.helpers import write_shard
from tests.support.standin import Workspace

N_ROWS = (20, 9, 15)
"""Rows of the files of the first run, see the fixture `growing`."""


def add(runs: Workspace, name: str, n_rows: int = 7, seed: int = 1) -> Path:
    """Write another file, or replace one."""
    rows = np.random.default_rng(seed).normal(size=(n_rows, 4)).astype(np.float32)
    return runs.add_shard(name, rows)


def write(path: Path, n_inputs: int = 4, **extras: object) -> None:
    """Write a file of six rows with other columns or extras."""
    rows = np.random.default_rng(2).normal(size=(6, n_inputs)).astype(np.float32)
    write_shard(path, rows, extras=extras)


def add_extra(path: Path, name: str, values: object) -> None:
    """Write a dataset into an existing file, as a user who labels rows does."""
    with h5py.File(path, "r+") as file:
        file[name] = values


def ids_of(output: Path) -> list[int]:
    """Return the number of the append of each row."""
    found: list[int] = open_features(output).extras["append_id"].compute().tolist()
    return found
