"""What a process keeps from one part to the next: the model on its device, memory of each thread, and turns.

None of it can be sent anywhere. The process that has trained puts in what it has; any other makes its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline.device import autoencoder_of, start_device
from pipeline.encoding.partfile import PartMemory
from pipeline.model import Model
from pipeline.output.disk import Disk
from pipeline.shards.shard import Block, Shard

__all__ = ["Encoder", "Sizes", "Worker", "serving", "worker_of"]

Encoder = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Writes the features of rows (n, n_inputs) into an array (n, n_features), in any number of threads. It may return
positions of rows; all others then hold finite numbers in the model's range."""


@dataclass(frozen=True)
class Sizes:
    """What the memory of a process follows from.

    Attributes
    ----------
    n_features : int
    dtype : str
        That holds the rows of all shards, which decides how they are scaled.
    block_rows, part_rows : int
        Of the largest block and part.
    n_readers : int
        Threads that read and encode at a time; others may write meanwhile.
    """

    n_features: int
    dtype: str
    block_rows: int
    part_rows: int
    n_readers: int


class Worker:
    """A process that encodes.

    Attributes
    ----------
    encode : Encoder
    disk : Disk
        What makes every change to the file system.
    turns : Semaphore
        So that not all threads come to wait for the disk at the same time: the others encode whole parts meanwhile.
    """

    def __init__(self, encode: Encoder, disk: Disk, sizes: Sizes) -> None:
        self.encode, self.disk, self.turns = encode, disk, threading.Semaphore(sizes.n_readers)
        self._sizes, self._kept = sizes, threading.local()

    def block_memory(self, block: Block) -> np.ndarray:
        """Where a block's rows go, over those of this thread's last one: fresh memory costs more than reading."""
        kept = getattr(self._kept, "block", None)
        if kept is None or kept.dtype != block.shard.dtype:
            kept = np.empty((self._sizes.block_rows, block.shard.n_inputs), dtype=block.shard.dtype)
            self._kept.block = kept
        return np.asarray(kept[: len(block)])

    def part_memory(self, shard: Shard) -> PartMemory:
        """Where a part becomes a file, over this thread's last one."""
        if not hasattr(self._kept, "part"):
            self._kept.part = PartMemory(self._sizes.part_rows, self._sizes.n_features, shard.riders)
        kept: PartMemory = self._kept.part
        return kept


_workers: dict[tuple[str, Sizes], Worker] = {}  # one at most: a model and its memory are large
_making = threading.Lock()  # a model compiles once, however many threads begin with it


def worker_of(model: Model, sizes: Sizes) -> Worker:
    """The worker of this process for a model; made on the device that the process is set to, if there is none."""
    key = (model.fingerprint, sizes)
    with _making:
        if key not in _workers:
            start_device()
            autoencoder = autoencoder_of(model.scaler, model.n_features, np.dtype(sizes.dtype))
            autoencoder.set_parameters(model.parameters)
            _workers.clear()
            _workers[key] = Worker(autoencoder.encode_checked, Disk(), sizes)
        return _workers[key]


@contextmanager
def serving(model: Model, sizes: Sizes, encode: Encoder, disk: Disk) -> Iterator[None]:
    """Within the context this process encodes with what it has already, so that nothing compiles twice."""
    _workers.clear()
    _workers[model.fingerprint, sizes] = Worker(encode, disk, sizes)
    try:
        yield
    finally:
        _workers.clear()
