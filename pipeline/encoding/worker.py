"""What a process keeps from one part to the next: the model on its device, memory of each thread, and turns.

None of it can be sent anywhere. The process that has trained puts in what it has; any other makes its own, of the
model's file: a task names that, and does not carry the weights, which are larger than all else in it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device import autoencoder_of, n_cores, start_device
from pipeline.encoding.bad_data import BadData
from pipeline.encoding.partfile import PartMemory
from pipeline.encoding.storage import PLAIN, Storage
from pipeline.errors import ReadFailed, TryAgain, shown
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.records import Entry, fault_of
from pipeline.processcache import ProcessCache
from pipeline.shards.shard import Block, Shard

__all__ = ["IN_MEMORY", "EncodeSettings", "Encoder", "Worker", "check_place", "serving", "worker_of"]

Encoder = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Writes the features of rows (n, n_inputs) into an array (n, n_features), in any number of threads. It may return
positions of rows; all others then hold finite numbers in the model's range."""

IN_MEMORY = Entry("", 0, "")
"""The model's file of tasks that never leave the process which has the model: see `serving`."""


@dataclass(frozen=True)
class EncodeSettings:
    """What all parts have in common.

    Attributes
    ----------
    directory : str
        The output directory.
    model : Entry
        The model's file there.
    dtype : str
        That holds the rows of all shards, which decides how they are scaled.
    block_rows, part_rows : int
        Of the largest block and part.
    n_readers : int
        Threads of a process that read and encode at a time; others may write meanwhile. 0 for as many as it has cores
        for its products: only it knows that, where others start it.
    bad_data : BadData
    has_range : bool
        Whether rows may lie outside the range of those that the model was trained on.
    attributes : mapping
        Of every file.
    storage : Storage
        How features are stored.
    n_wide : int
        Parts with wide extras (`pipeline.shards.shard.is_wide`) that a process writes at a time.
    chunk_bytes : int
        Of decompressed chunks that a process keeps for further reads.
    """

    directory: str
    model: Entry
    dtype: str
    block_rows: int
    part_rows: int
    n_readers: int
    bad_data: BadData = field(default_factory=BadData)
    has_range: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    storage: Storage = PLAIN
    n_wide: int = 1
    chunk_bytes: int = 0

    @property
    def key(self) -> object:
        """Equal for settings, wherever they come from, that one worker can serve."""
        sizes = (self.block_rows, self.part_rows, self.n_readers, self.n_wide)
        return (self.model.blake3, self.dtype, *sizes, self.storage)


class Worker:
    """A process that encodes.

    Attributes
    ----------
    model : Model
        What it encodes with.
    disk : Disk
        What makes every change to the file system.
    turns : Semaphore
        So that not all threads come to wait for the disk at the same time: the others encode whole parts meanwhile.
    wide_turns : Semaphore
        Bounds the memory of wide extras: few threads hold those of a part at the same time.
    """

    def __init__(self, settings: EncodeSettings, model: Model, encode: Encoder, disk: Disk) -> None:
        self.model = model
        self.encode = encode
        self.disk = disk
        self.turns = threading.Semaphore(settings.n_readers or n_cores())
        self.wide_turns = threading.Semaphore(max(1, settings.n_wide))
        self._settings = settings
        self._kept = threading.local()

    def block_memory(self, block: Block) -> np.ndarray:
        """Where a block's rows (len(block), n_inputs) go, in its shard's dtype, over this thread's last ones."""
        kept = getattr(self._kept, "block", None)
        if kept is None or kept.dtype != block.shard.dtype:  # shards may differ in it
            kept = np.empty((self._settings.block_rows, block.shard.n_inputs), dtype=block.shard.dtype)
            self._kept.block = kept
        return np.asarray(kept[: len(block)])

    def part_memory(self, shard: Shard) -> PartMemory:
        """Where a part becomes a file, over this thread's last one."""
        # In all shards of a run they are alike; but a process may serve another run that has the same model.
        categories = [(rider.name, rider.categories) for rider in shard.riders]
        if getattr(self._kept, "categories", None) != categories:
            settings = self._settings
            self._kept.part = PartMemory(settings.part_rows, self.model.n_features, shard.riders, settings.storage)
            self._kept.categories = categories
        kept: PartMemory = self._kept.part
        return kept


_workers = ProcessCache[object, Worker](max_size=1)  # a model and its memory are large


def worker_of(settings: EncodeSettings) -> Worker:
    """Return the worker of this process; if there is none yet, make one on the device that the process is set to.

    Raises
    ------
    ReadFailed
        When the model's file is not the one that the task names.
    DeviceError, ConfigError, NotPermitted, WriteFailed
        As `pipeline.device.start_device`.
    """
    return _workers.get_or_make(settings.key, lambda: _new_worker(settings))


def _new_worker(settings: EncodeSettings) -> Worker:
    """Return a worker with a model that is compiled for this process."""
    model = _loaded(settings)
    start_device()
    autoencoder = autoencoder_of(model.scaler, model.network, np.dtype(settings.dtype))
    autoencoder.set_parameters(model.parameters)
    return Worker(settings, model, autoencoder.encode_checked, Disk())


def _loaded(settings: EncodeSettings) -> Model:
    directory = Path(settings.directory)
    if fault := fault_of(directory, settings.model):
        raise ReadFailed(
            f"{fault}. Either the model was damaged, or this worker, on host {socket.gethostname()}, sees another file "
            "system than the driver: every worker must find the output directory under the same path."
        )
    return load_model(directory / settings.model.file)


def check_place(settings: EncodeSettings) -> None:
    """Raise `TryAgain` when the output directory is no longer the one in which the run began.

    The model's file is looked for, since no other directory has a file of its name. Device and inode of the lock, by
    which the driver knows the directory, differ between hosts that share a file system.
    """
    if settings.model == IN_MEMORY:
        return
    if not os.path.lexists(os.path.join(settings.directory, settings.model.file)):
        raise TryAgain(
            f"output={shown(settings.directory)}: {shown(settings.model.file)} is not there any more, expected the "
            "directory in which the run began: it was moved away or replaced. Keep it in its place, and type the same "
            "command again."
        )


@contextmanager
def serving(settings: EncodeSettings, model: Model, encode: Encoder, disk: Disk) -> Iterator[None]:
    """Within the context this process encodes with what it has already, so that nothing compiles twice."""
    _workers.put(settings.key, Worker(settings, model, encode, disk))
    try:
        yield
    finally:
        _workers.clear()  # the memory of its threads goes as well
