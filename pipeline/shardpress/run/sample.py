"""Samples of the work: the functions of a run are timed on a few rows from all over the input.

`shardpress plan` uses samples to estimate the time of each stage. A run with a deadline uses them to estimate the time
of its encoding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.device import seconds_compiling
from shardpress.output.disk import Disk
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import Block, first_rows

T = TypeVar("T")

_SECONDS = 1.5  # time limit for each kind of work, after which no further task is started
_BLOCKS = 8  # blocks per stretch
_MAX_STRETCHES = 4096


# -- measurements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Measured work: rows, and the seconds that they took."""

    n_rows: int
    seconds: float

    def seconds_for(self, n_rows: int) -> float:
        return self.seconds * n_rows / max(1, self.n_rows)

    def in_words(self) -> str:
        return f"{self.n_rows / max(self.seconds, 1e-9):,.0f} rows/s"


@dataclass(frozen=True)
class TrainingPace:
    """Measured parts of a training run."""

    n_rows: int  # of an epoch
    n_validated: int  # validation rows
    once: float  # seconds of everything that is done once, except for the reading
    validating: float  # seconds of an evaluation of the validation rows
    reading: Pace
    steps: Pace
    # Numbers of principal components, and the mean squared error of the sampled rows when reconstructed from them.
    components: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sample:
    """Measured work of all stages."""

    scan: Pace
    training: TrainingPace | None  # None with a given model
    encoding: Pace
    resident: bool  # whether training keeps all rows in memory
    on_host: bool  # whether the model is trained on the CPU, which also reads the rows


@dataclass(frozen=True)
class StageEstimate:
    name: str
    seconds: float
    what: str  # description of the work


# -- rows --------------------------------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Consecutive rows of a shard."""

    number: int  # position of the shard in the input
    first_row: int  # of the shard, counted over all shards
    block: Block


def stretches(prepared: Prepared) -> list[Stretch]:
    """Return a limited number of stretches from all over the input, in an order that depends on the seed."""
    shards = prepared.shards
    n_rows = _BLOCKS * prepared.budget.block_rows
    found = [
        Stretch(number, int(first), block)
        for number, (shard, first) in enumerate(zip(shards, first_rows(shards)[:-1], strict=True))
        for block in Block(shard, 0, shard.n_rows).cut(n_rows)
    ]
    order = np.random.default_rng(prepared.config.training.seed).permutation(len(found))[:_MAX_STRETCHES]
    return [found[i] for i in order]


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure_tasks(tasks: Sequence[Any], n_at_once: int, n_rows_of: Callable[[Any], int]) -> tuple[Pace, list[Any]]:
    """Run tasks for a limited time; return the pace and the results, whose rows `n_rows_of` returns."""
    found: list[Any] = []
    start = time.monotonic()
    end = start

    def collect(result: Any) -> None:
        nonlocal end
        found.append(result)
        end = time.monotonic()
        if end - start > _SECONDS:
            raise _Enough

    with suppress(_Enough), threads(n_at_once) as pool:
        compute(tasks, pool, n_at_once, collect)
    return Pace(sum(map(n_rows_of, found)), end - start), found


class _Enough(Exception):
    """Exception that ends tasks whose results are no longer needed."""


def measure_seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that `work` takes, and its result.

    The time of the compiler is excluded, because a run finds the kernels in the compile cache.
    """
    start = time.monotonic()
    compiled = seconds_compiling()
    found = work()
    return time.monotonic() - start - (seconds_compiling() - compiled), found


class AnonymousDisk(Disk):
    """Disk whose files have no names, so that writing can be measured without leaving files.

    They are written to the disk of `folder` or, if it is None or does not support such files, to memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def create(self, path: Path) -> int:
        """Open a file that never has a name."""
        if self._folder is not None:
            try:
                return os.open(self._folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError:  # not every file system supports it
                pass
        return os.memfd_create("shardpress", os.MFD_CLOEXEC)

    def replace(self, source: Path, target: Path) -> None:
        """Do nothing, since neither file has a name."""

    def remove(self, path: Path) -> None:
        """Do nothing, since an existing file of this name does not belong to this disk."""

    def make_directory(self, path: Path) -> None:
        """Do nothing, since no file is in a directory."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing, since no name was added to the directory."""
