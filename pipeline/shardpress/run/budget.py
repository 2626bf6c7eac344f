"""Division of the memory budget: arithmetic on sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardpress.base.errors import ConfigError, Problem
from shardpress.encoding.storage import storage_of
from shardpress.hdf5.shard import Shard
from shardpress.model.device import MOST_RESIDENT, TILE_ROWS
from shardpress.settings.config import MachineSettings, StorageSettings
from shardpress.settings.defaults import COPIES_IN_TRAINING, SHUFFLE_WINDOW
from shardpress.settings.resolve import Settings, largest_network
from shardpress.shards.conversion import Conversion
from shardpress.training.fit import Sizes
from shardpress.training.order import MAX_CHUNK_BYTES
from shardpress_kernels.network import Network

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

# With smaller blocks and parts (2 or 4 MB, and 8 or 16 MB), an encoding that takes 680 ms took 760 to 980 ms.
_BLOCK_BYTES = 2**23  # rows that are read at once
_PART_BYTES = 2**26  # features in one file
_MOST_PART_BYTES = 2**28
_MANY_PARTS = 250  # of one run, above which parts get larger
_COPIES_IN_ENCODING = 3  # copies of the network
_COPIES_OF_EXTRAS = 2  # as read, and in the arrays or in the image of the file
_COPIES_OF_REPLICAS = 4  # extra copies of the network with several replicas: momentum of the averaging, checkpoints
# Share of a device's free memory for rows. The rest is for the network, its copies in training, and the intermediate
# results of a step or a block.
_SHARE_ON_DEVICE = 0.5
_BYTES_ON_DEVICE = 2**30  # bytes for rows if a device does not report its free memory
# The model depends on these numbers, so they are constants, and no shares of the memory budget.
_VALIDATION_BYTES = 2**27  # rows that are held out from the training
_SAMPLE_BYTES = 2**26  # scaled rows for principal components, which more rows would hardly change


@dataclass(frozen=True)
class Budget:
    """Sizes that keep a run within its memory."""

    n_threads: int  # Dask threads; each of them holds a block
    n_writers: int  # Dask threads while encoding; each of them holds a block and the features of a part
    block_rows: int  # rows that are read at once, a multiple of the encoder's tile
    part_rows: int  # rows of a file: a multiple of `block_rows`, or with long extras of the encoder's tile
    resident: bool  # all training rows fit in the host's memory
    rows_bytes: int  # of all rows, in their common dtype
    device_bytes: int | None  # for rows in a device's own memory; None for a share of the free memory
    window_rows: int  # rows that are shuffled together; streaming holds two windows
    max_validation_rows: int
    max_sample_rows: int  # for the computation of principal components
    text_bytes: int = 0  # strings of the extras in a part, which is divided after the tile that exceeds it
    chunk_bytes: int = 0  # decompressed chunks that a process keeps for further reads

    def keeps_rows(self, device: Device) -> bool:
        """Return whether training keeps all rows in device memory, or in host memory on the CPU."""
        if device.used == "cpu":
            return self.resident
        most = self.device_bytes
        if most is None:
            most = int(device.free * _SHARE_ON_DEVICE) or _BYTES_ON_DEVICE
        return self.rows_bytes <= min(most, MOST_RESIDENT)

    def sizes(self, device: Device) -> Sizes:
        """Return the sizes for training on a device."""
        keeps_rows = self.keeps_rows(device)
        on_host = device.used == "cpu"
        return Sizes(
            resident=keeps_rows and on_host,
            window_rows=self.window_rows,
            max_validation_rows=self.max_validation_rows,
            max_sample_rows=self.max_sample_rows,
            n_threads=self.n_threads,
            on_device=keeps_rows and not on_host,
        )


def n_threads_of(machine: MachineSettings) -> int:
    """Return the number of threads. A batch system may grant fewer cores than exist."""
    return machine.threads or len(os.sched_getaffinity(0))


def make_budget(settings: Settings, shards: Sequence[Shard], conversion: Conversion, given: Network | None) -> Budget:
    """Divide the memory budget.

    - Training rows: half, if all of them fit; otherwise two windows.
    - Validation rows and the sample for principal components: a fixed number of bytes.
    - Blocks and parts of the threads: a quarter.
    - The network and copies: the rest. If a network needs more than an eighth, the rows get less.

    `given` is the network of a given model, which is not trained. Blocks are rounded up to a multiple of the
    encoder's tile, the rows per matrix product. Raise `ConfigError` if the budget is too small for one tile of rows per
    thread, for the rows that the training holds, or for twice the network.
    """
    machine = settings.machine
    if given is None:
        network = largest_network(settings, shards[0].n_inputs)
        n_replicas = settings.training.replicas
    else:
        network = given
        n_replicas = 0
    # of one row in its file or in memory, whichever is larger
    itemsizes = [np.dtype(shard.stored_dtype).itemsize for shard in shards]
    row_bytes = network.n_inputs * max(conversion.dtype(shards).itemsize, *itemsizes)
    n_rows = sum(shard.n_rows for shard in shards)
    n_threads = n_threads_of(machine)
    # Two more threads keep the processor busy while parts are written. If only one thread is allowed, none are added.
    n_writers = n_threads + 2 if n_threads > 1 else 1
    network_bytes = _network_bytes(network, n_replicas, machine.memory_budget)
    memory = machine.memory_budget - max(0, network_bytes - machine.memory_budget // 8)

    thread_bytes = memory // 8 // n_writers  # for each thread's block; its part gets the same number of bytes
    n_tiles = max(1, -(-_wanted_block_rows(thread_bytes, row_bytes) // TILE_ROWS))
    block_rows = n_tiles * TILE_ROWS  # only the last tile of a shard is padded
    _check_blocks(machine, memory, shards, row_bytes, n_threads, block_rows)

    part_rows = _part_rows(thread_bytes, settings.storage, network.n_outputs, n_rows, block_rows)
    part_rows = _with_extras(part_rows, shards, n_writers, memory)
    window_rows = max(1, SHUFFLE_WINDOW // row_bytes)
    max_validation_rows = _VALIDATION_BYTES // row_bytes
    max_sample_rows = max(1, _SAMPLE_BYTES // (4 * network.n_inputs))  # scaled, in float32
    resident = n_rows * row_bytes <= memory // 2
    if n_replicas:
        held_rows = n_rows if resident else min(n_rows, 2 * window_rows)
        held_rows += min(round(settings.validation.validation_fraction * n_rows), max_validation_rows)
        sample_bytes = min(n_rows, max_sample_rows) * 4 * network.n_inputs
        _check_training(machine, memory, held_rows * row_bytes + sample_bytes)
    return Budget(
        n_threads=n_threads,
        n_writers=n_writers,
        block_rows=block_rows,
        part_rows=part_rows,
        resident=resident,
        rows_bytes=n_rows * row_bytes,
        device_bytes=machine.device_memory_budget,
        window_rows=window_rows,
        max_validation_rows=max_validation_rows,
        max_sample_rows=max_sample_rows,
        text_bytes=memory // 4 // n_writers // _COPIES_OF_EXTRAS,
        chunk_bytes=memory // 8,
    )


def _wanted_block_rows(thread_bytes: int, row_bytes: int) -> int:
    return min(_BLOCK_BYTES, thread_bytes) // row_bytes


def _check_blocks(
    machine: MachineSettings,
    memory: int,
    shards: Sequence[Shard],
    row_bytes: int,
    n_threads: int,
    block_rows: int,
) -> None:
    """Raise `ConfigError` if the blocks of all threads do not fit in a quarter of the memory budget."""
    # Only existing rows take memory: a file may have fewer rows than a tile, and there may be fewer blocks than
    # threads.
    held_rows = min(block_rows, max(shard.n_rows for shard in shards))
    n_held = min(n_threads, sum(-(-shard.n_rows // block_rows) for shard in shards))
    least = 4 * n_held * held_rows * row_bytes
    if least > memory:
        network_bytes = machine.memory_budget - memory
        words = (
            f"{machine.memory_budget} bytes, expected at least {least + network_bytes} for {n_held} threads with "
            f"blocks of {held_rows} rows of {row_bytes} bytes each"
        )
        raise ConfigError(Problem(("memory_budget",), words, "Raise it, or lower {threads}"))


def _check_training(machine: MachineSettings, memory: int, held_bytes: int) -> None:
    """Raise `ConfigError` if the rows that the training holds do not fit in three quarters of the memory budget."""
    least = -(-4 * held_bytes // 3)
    if least > memory:
        network_bytes = machine.memory_budget - memory
        words = (
            f"{machine.memory_budget} bytes, expected at least {least + network_bytes}, because the training holds "
            f"{held_bytes} bytes of rows"
        )
        raise ConfigError(Problem(("memory_budget",), words, "Raise it; models do not depend on it"))


def _part_rows(thread_bytes: int, storage: StorageSettings, n_features: int, n_rows: int, block_rows: int) -> int:
    """Return the rows of a part, a multiple of `block_rows`, whose features take less than `thread_bytes`."""
    wanted_bytes = min(_MOST_PART_BYTES, max(_PART_BYTES, n_rows * 4 * n_features // _MANY_PARTS))
    # The features of a part are held as one array. A copy is needed for conversion and for compression.
    n_shares = 1 if storage_of(storage).is_plain else 2
    part_bytes = min(wanted_bytes, thread_bytes // n_shares)
    n_blocks = part_bytes // (4 * n_features) // block_rows
    return max(1, n_blocks) * block_rows


def extras_bytes(shards: Sequence[Shard], budget: Budget) -> int:
    """Return the maximum memory of the extras of a part while it is written."""
    n_rows = min(budget.part_rows, sum(shard.n_rows for shard in shards))
    n_bytes = n_rows * _extras_row_bytes(shards)
    if any(extra.dtype.hasobject for extra in shards[0].extras):
        n_bytes += min(budget.text_bytes, sum(shard.identity.size for shard in shards))
    return _COPIES_OF_EXTRAS * n_bytes


def _extras_row_bytes(shards: Sequence[Shard]) -> int:
    """Return the bytes of the extras of a row, without those of strings of any length."""
    return sum(extra.dtype.itemsize for extra in shards[0].extras)  # the same dtypes in all shards


def _with_extras(part_rows: int, shards: Sequence[Shard], n_writers: int, memory: int) -> int:
    """Return the rows of a part of which each writer can also hold the extras, in a quarter of the memory.

    The least is a tile. Raise `ConfigError` if its extras exceed the memory.
    """
    held_rows = min(part_rows, sum(shard.n_rows for shard in shards))
    held_bytes = n_writers * _COPIES_OF_EXTRAS * _extras_row_bytes(shards)  # for each row of a part
    if min(held_rows, TILE_ROWS) * held_bytes > memory:
        raise ConfigError(
            f"memory_budget: expected at least {min(held_rows, TILE_ROWS) * held_bytes} bytes for the extras of "
            f"{n_writers} parts. Raise --memory-budget, or lower --threads."
        )
    if held_rows * held_bytes <= memory // 4:
        return part_rows
    return max(1, memory // 4 // held_bytes // TILE_ROWS) * TILE_ROWS


def large_chunks(shards: Sequence[Shard], budget: Budget) -> list[Shard]:
    """Return shards whose compressed chunks hold more rows than are read at once."""
    return [shard for shard in shards if shard.chunk_rows >= 2 * budget.block_rows and shard.band_bytes > 0]


def repeated_chunks(shards: Sequence[Shard], conversion: Conversion, budget: Budget) -> str | None:
    """Return a warning if chunks are decompressed repeatedly because they exceed the budget, otherwise None."""
    large = large_chunks(shards, budget)
    advice = "Raise --memory-budget, or rewrite such files with smaller chunks (h5repack -l)."
    too_large = [shard for shard in large if shard.band_bytes > budget.chunk_bytes]
    if too_large:
        shard = too_large[0]
        n_times = -(-shard.chunk_rows // budget.block_rows)
        return (
            f"{shard}: reading one row decompresses {shard.band_bytes} bytes, because chunks hold {shard.chunk_rows} "
            f"rows, expected at most {budget.chunk_bytes} bytes, an eighth of the memory budget ({len(too_large)} such "
            f"files). Each chunk is decompressed about {n_times} times in every pass over the rows. {advice}"
        )
    n_windows = -(-sum(shard.n_rows for shard in shards) // budget.window_rows)
    cut = [shard for shard in large if shard.chunk_rows * conversion.row_bytes(shard) > MAX_CHUNK_BYTES]
    if cut and not budget.resident and n_windows > 1:
        most_rows = max(1, MAX_CHUNK_BYTES // conversion.row_bytes(cut[0]))
        return (
            f"{cut[0]}: chunks hold {cut[0].chunk_rows} rows, expected at most {most_rows} ({len(cut)} such files). "
            f"The rows do not fit in memory, so the training decompresses each chunk about {n_windows} times in every "
            f"epoch. {advice}"
        )
    return None


def _network_bytes(network: Network, n_replicas: int, memory_budget: int) -> int:
    """Return the bytes that a run needs for its network; raise `ConfigError` if half of the budget is too small."""
    n_copies = COPIES_IN_TRAINING if n_replicas else _COPIES_IN_ENCODING
    needed = 4 * network.n_weights * n_copies
    if needed > memory_budget // 2:
        words = (
            f"{memory_budget} bytes, expected at least {2 * needed} for a network of "
            f"{' x '.join(map(str, network.widths))} units: its {network.n_weights} weights, the optimizer's state, "
            "and copies for checkpoints"
        )
        raise ConfigError(Problem(("memory_budget",), words, "Raise it, or lower {hidden} or {n_features}"))
    if n_replicas > 1:
        needed += 4 * network.n_weights * _COPIES_OF_REPLICAS
    return needed
