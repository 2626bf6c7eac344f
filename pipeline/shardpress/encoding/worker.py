"""State that a process keeps between parts: the model on its device, the memory of each thread, and a semaphore.

This state cannot be sent to another process. The process that trained the model uses its own encoder, and any other
process loads the model from its file. Tasks contain the name of this file instead of the weights, because the weights
would be the largest part of a task.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardpress.base.errors import ReadFailed
from shardpress.base.processcache import ProcessCache
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.storage import PLAIN, Storage
from shardpress.model.device import DeviceAutoencoder, RowEncoder, autoencoder_of, n_cores, start_device
from shardpress.model.encoder import Model, finite_errors
from shardpress.output.disk import PAGE, Disk
from shardpress.output.folder import fault_of
from shardpress.result.finished import read_model_file
from shardpress.result.records import Entry

IN_MEMORY = Entry("", 0, "")
"""Placeholder for the model file in tasks of the process that has the model in memory (see `serving`)."""


@dataclass(frozen=True)
class EncodeSettings:
    """Settings that all parts of a run share."""

    directory: str  # output directory
    model: Entry  # file of the model in the output directory
    block_rows: int  # largest number of rows of a block
    part_rows: int  # largest number of rows of a part
    n_readers: int  # threads in a process that read and encode, while others write; 0 means `n_cores`
    bad_data: BadData = field(default_factory=BadData)
    has_range: bool = False  # rows can have values outside the range of the model's training rows
    storage: Storage = PLAIN
    row_error: bool = False  # whether the error of each row is stored
    text_bytes: int = 2**24  # of the strings in a file, which ends after the rows that exceed it
    chunk_bytes: int = 0  # size of the cache of decompressed chunks in each process

    @property
    def key(self) -> object:
        """Key that is equal for all settings that can share one worker."""
        sizes = (self.block_rows, self.part_rows, self.n_readers)
        return (self.model.blake3, *sizes, self.storage)


class Encoders:
    """A model on the device of this process.

    Rows are scaled in a dtype that depends on the dtype of their own shard only. The bits of their features are
    therefore the same, whatever other shards a run has.
    """

    def __init__(self, model: Model) -> None:
        self.network = model.network
        self._model = model
        self._lock = threading.Lock()
        self._by_dtype: dict[np.dtype, DeviceAutoencoder] = {}  # of the rows
        self._by_scaling: dict[np.dtype, DeviceAutoencoder] = {}  # of the scaled values

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """Write the features of rows into `out`. Return the positions of suspect rows, as in `RowEncoder`."""
        suspects: np.ndarray | None = self._encoder_for(rows.dtype).encode_checked(rows, out)
        return suspects

    def errors(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the errors of rows, as in `RowEncoder`."""
        return finite_errors(np.asarray(self._encoder_for(rows.dtype).errors(rows, features)))

    def ignores_positions(self, dtype: np.dtype) -> bool:
        """Return whether the bits of a row never depend on its position, as in `RowEncoder`."""
        return self._encoder_for(dtype).ignores_positions(dtype)

    def _encoder_for(self, dtype: np.dtype) -> DeviceAutoencoder:
        with self._lock:
            if dtype not in self._by_dtype:
                self._by_dtype[dtype] = self._encoder_of_scaling(dtype)
            return self._by_dtype[dtype]

    def _encoder_of_scaling(self, dtype: np.dtype) -> DeviceAutoencoder:
        shift, _ = self._model.scaler.arrays(dtype)
        if shift.dtype not in self._by_scaling:
            encoder = autoencoder_of(self._model.scaler, self._model.network, dtype)
            encoder.set_parameters(self._model.parameters)
            self._by_scaling[shift.dtype] = encoder
        return self._by_scaling[shift.dtype]


class Worker:
    """Model, device and memory of a process that encodes."""

    def __init__(self, settings: EncodeSettings, model: Model, encoder: RowEncoder, disk: Disk) -> None:
        self.model = model
        self.encoder = encoder
        self.disk = disk
        # Without this limit, all threads would soon wait for the disk at the same time.
        self.readers = threading.Semaphore(settings.n_readers or n_cores())
        self._settings = settings
        self._local = threading.local()

    def block_memory(self, row_bytes: int) -> np.ndarray:
        """Return this thread's memory, uint8, for the rows of a block."""
        n_bytes = self._settings.block_rows * row_bytes
        memory = getattr(self._local, "block", None)
        if memory is None or len(memory) < n_bytes:  # shards can have different dtypes
            memory = np.empty(n_bytes, np.uint8)
            self._local.block = memory
        return np.asarray(memory)

    def features(self, n_rows: int) -> np.ndarray:
        """Return this thread's array (n_rows, n_features), float32, for the features of a part.

        It is aligned as direct I/O requires. New memory for each part would take longer than encoding.
        """
        n_values = n_rows * self.model.n_features
        memory = getattr(self._local, "features", None)
        if memory is None or len(memory) < n_values:
            most = max(n_rows, self._settings.part_rows) * self.model.n_features
            memory = _aligned_array(most, np.dtype("<f4"))
            self._local.features = memory
        return np.asarray(memory[:n_values].reshape(n_rows, -1))

    def stored(self, features: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Return features in the form in which they are stored, and their largest error; None if it is the same."""
        storage = self._settings.storage
        if storage.dtype == "float32":
            return features, None if storage.is_plain else 0.0
        memory = getattr(self._local, "stored", None)
        if memory is None or memory.size < features.size:
            memory = _aligned_array(self._local.features.size, np.dtype(storage.dtype).newbyteorder("<"))
            self._local.stored = memory
        out = memory[: features.size].reshape(features.shape)
        return out, storage.store(features, out)


def _aligned_array(n_values: int, dtype: np.dtype) -> np.ndarray:
    """Return zeros (n_values,) that start at a multiple of `PAGE`."""
    n_bytes = n_values * dtype.itemsize
    memory = np.zeros(n_bytes + PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + n_bytes].view(dtype)


_workers = ProcessCache[object, Worker](max_size=1)  # a model and its memory are large


def worker_of(settings: EncodeSettings) -> Worker:
    """Return the worker of this process. If necessary, create it on the device of this process.

    Raise `ReadFailed` if the model's file has changed, or an error of `shardpress.model.device.start_device`.
    """
    return _workers.get_or_make(settings.key, lambda: _new_worker(settings))


def _new_worker(settings: EncodeSettings) -> Worker:
    model = _load_model(settings)
    start_device()
    return Worker(settings, model, Encoders(model), Disk())


def _load_model(settings: EncodeSettings) -> Model:
    directory = Path(settings.directory)
    fault = fault_of(directory, settings.model)
    if fault is not None:
        raise ReadFailed(
            f"{fault}. Either the model file was damaged, or this worker (on host {socket.gethostname()}) does not "
            "see the same file system as the driver. Every worker must find the output directory under the same "
            "path."
        )
    return read_model_file(directory / settings.model.file)


@contextmanager
def serving(settings: EncodeSettings, model: Model, encoder: RowEncoder, disk: Disk) -> Iterator[None]:
    """Let this process encode with an existing model and encoder within the context, so that nothing is recompiled."""
    _workers.put(settings.key, Worker(settings, model, encoder, disk))
    try:
        yield
    finally:
        _workers.clear()  # this also frees the memory of the worker's threads
