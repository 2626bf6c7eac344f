"""How memory is shared out: pure arithmetic from sizes and budgets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernels.network import Network
from pipeline.device import MOST_RESIDENT
from pipeline.encoding.storage import storages
from pipeline.errors import ConfigError
from pipeline.settings.config import MachineSettings
from pipeline.settings.defaults import COPIES_IN_TRAINING
from pipeline.settings.resolve import ResolvedStorage
from pipeline.shards.shard import WIDE_BYTES, Shard, leave_out_riders, row_dtype
from pipeline.training.fit import Sizes
from pipeline.training.order import MAX_CHUNK_BYTES

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = ["Budget", "extras_bytes", "large_chunks", "make_budget", "repeated_chunks", "too_wide"]

_BLOCK_BYTES = 2**23  # read at once; see docs/performance.md
_PART_BYTES = 2**26  # of features in one file
# More parts than this are made larger, as far as the memory holds them: what a part costs the driver and a scheduler,
# some milliseconds, its lines in manifest and index aside, is not to be what thousands of workers wait for.
_MANY_PARTS = 2**15
_COPIES_IN_ENCODING = 3  # of a network
_COPIES_OF_EXTRAS = 2  # of numbers as they are read and in the file; of texts in the file and in blocks on their way
_COPIES_OF_REPLICAS = (
    4  # beyond those of training: the velocity of their common steps, also in a checkpoint and its file
)
# The rest is for the network, what training keeps of it, and what a step or a block takes on its way.
_SHARE_ON_DEVICE = 0.5
_BYTES_ON_DEVICE = 2**30  # where a device does not tell what is free
_SAMPLE_BYTES = 2**26  # of scaled rows whose components are looked for: more of them would not turn these noticeably


@dataclass(frozen=True)
class Budget:
    """Sizes that keep a run within its memory.

    Attributes
    ----------
    n_threads : int
        Dask threads, each of which holds a block.
    n_writers : int
        Dask threads while encoding, each of which holds a block and the features of a part.
    block_rows : int
        Rows read at once; whole tiles of the encoder.
    part_rows : int
        Rows whose features make one file; whole blocks, or where extras are wide whole tiles.
    n_wide : int
        Parts with wide extras that a process writes at a time.
    chunk_bytes : int
        Of decompressed chunks that a process keeps for further reads.
    resident : bool
        Whether training may keep all rows in the host's memory.
    rows_bytes : int
        Of all rows, in the dtype that holds them.
    device_bytes : int or None
        That rows may take of a device's own memory; None for a share of what is free there.
    window_rows : int
        Rows shuffled together, of which streaming holds two windows.
    """

    n_threads: int
    n_writers: int
    block_rows: int
    part_rows: int
    resident: bool
    rows_bytes: int
    device_bytes: int | None
    window_rows: int
    max_validation_rows: int
    max_sample_rows: int
    n_wide: int = 1
    chunk_bytes: int = 0

    def keeps_rows(self, device: Device) -> bool:
        """Whether a training whose products run there keeps all rows where they do."""
        if device.used == "cpu":
            return self.resident
        of_free = int(device.free * _SHARE_ON_DEVICE) or _BYTES_ON_DEVICE
        most = of_free if self.device_bytes is None else self.device_bytes
        return self.rows_bytes <= min(most, MOST_RESIDENT)

    def sizes(self, device: Device) -> Sizes:
        """What a training keeps to whose products run there."""
        keeps = self.keeps_rows(device)
        on_host = device.used == "cpu"
        return Sizes(
            resident=keeps and on_host,
            window_rows=self.window_rows,
            max_validation_rows=self.max_validation_rows,
            max_sample_rows=self.max_sample_rows,
            n_threads=self.n_threads,
            on_device=keeps and not on_host,
        )


def make_budget(
    machine: MachineSettings,
    storage: ResolvedStorage,
    network: Network,
    n_replicas: int,
    shards: Sequence[Shard],
    tile_rows: int,
) -> Budget:
    """Share the memory out.

    A half goes to the rows of the training when all of them fit it, else a quarter to two windows of them; a sixteenth
    to the validation's rows; an eighth at most to a sample; a quarter to the threads' blocks and parts. The rest is for
    the network and for copies on the way; what a large network needs beyond an eighth, rows have to do without.

    Parameters
    ----------
    network : Network
        The network that is trained or given.
    n_replicas : int
        Replicas that train it; 0 with a given model.
    tile_rows : int
        Rows of one product of the encoder, which blocks are rounded up to.

    Raises
    ------
    ConfigError
        When the memory does not hold one tile of rows for each thread, or half of it not the network.
    """
    # Of the widest: a block is read as it is stored, and kept in the dtype that holds all shards.
    itemsize = max(row_dtype(shards).itemsize, *(np.dtype(shard.stored_dtype).itemsize for shard in shards))
    row_bytes = shards[0].n_inputs * itemsize
    n_bytes = sum(shard.n_rows for shard in shards) * row_bytes
    n_threads = machine.threads or len(os.sched_getaffinity(0))  # not all cores: a batch system may give a few
    # Two more, so that the processor has work while parts are brought to the disk; but who asks for one gets one.
    n_writers = n_threads + 2 * (n_threads > 1)
    beyond = max(0, _network_bytes(network, n_replicas, machine.memory_budget) - machine.memory_budget // 8)
    memory = machine.memory_budget - beyond
    share = memory // 8 // n_writers  # of each thread for its block, and as much for its part

    n_tiles = -(-(machine.block_rows or min(_BLOCK_BYTES, share) // row_bytes) // tile_rows)
    block_rows = max(1, n_tiles) * tile_rows  # whole ones, so that no product is padded but a shard's last
    # Only rows that exist take memory: a file may have fewer than a tile, and fewer blocks than there are threads.
    held_rows = min(block_rows, max(shard.n_rows for shard in shards))
    n_held = min(n_threads, sum(-(-shard.n_rows // block_rows) for shard in shards))
    least = 4 * n_held * held_rows * row_bytes
    if least > memory:
        raise ConfigError(
            f"memory_budget: {machine.memory_budget} bytes, expected at least {least + beyond} for {n_held} "
            f"threads with blocks of {held_rows} rows of {row_bytes} bytes each. Raise --memory-budget, or lower "
            f"--threads or --block-rows (the least is {tile_rows})."
        )
    # A part is one piece of memory; the rest is for what rides along, and for a copy when that is longer than thought.
    # Features that are stored otherwise are there twice, and compressed ones as long as HDF5 lays the file out.
    usual_bytes = max(_PART_BYTES, sum(shard.n_rows for shard in shards) * 4 * network.n_features // _MANY_PARTS)
    part_bytes = min(usual_bytes, share // (3 if storages(storage)[0].is_plain else 6))
    part_rows = max(block_rows, part_bytes // (4 * network.n_features) // block_rows * block_rows)
    part_rows, n_wide = _for_extras(shards, part_rows, n_writers, memory // 4, tile_rows)
    return Budget(
        n_threads=n_threads,
        n_writers=n_writers,
        block_rows=block_rows,
        part_rows=part_rows,
        resident=n_bytes <= memory // 2,
        rows_bytes=n_bytes,
        device_bytes=machine.device_memory_budget,
        window_rows=max(1, min(machine.shuffle_window, memory // 8) // row_bytes),
        max_validation_rows=memory // 16 // row_bytes,
        max_sample_rows=max(1, min(_SAMPLE_BYTES, memory // 8) // (4 * shards[0].n_inputs)),  # scaled, in float32
        n_wide=n_wide,
        chunk_bytes=memory // 8,
    )


def extras_bytes(shards: Sequence[Shard], n_rows: int) -> int:
    """Return the memory that the extras of one part of `n_rows` rows take while it is written, at most."""
    held_rows = min(n_rows, max(shard.n_rows for shard in shards))
    # The same from each shard, but for the lengths of texts.
    widths = [rider.dtype.itemsize for rider in shards[0].riders]
    texts = max(sum(rider.text_bytes for rider in shard.riders) for shard in shards)
    n_bytes = sum(min(held_rows * width, WIDE_BYTES) for width in widths) + held_rows * texts
    return _COPIES_OF_EXTRAS * n_bytes


def _for_extras(
    shards: Sequence[Shard], part_rows: int, n_writers: int, n_bytes: int, tile_rows: int
) -> tuple[int, int]:
    """Return rows of a part, and parts that are written at a time, whose extras take no more than `n_bytes`.

    Where they take less than that at any rate, as they nearly always do, parts stay as large as they are. One tile, and
    one part at a time, are the least (`too_wide`).
    """
    while part_rows > tile_rows and n_writers * extras_bytes(shards, part_rows) > n_bytes:
        half = min(part_rows, max(shard.n_rows for shard in shards)) // 2
        part_rows = max(1, half // tile_rows) * tile_rows
    needed = extras_bytes(shards, part_rows)
    return part_rows, max(1, min(n_writers, n_bytes // max(1, needed)))


def too_wide(memory_budget: int, shards: Sequence[Shard], tile_rows: int) -> dict[str, int]:
    """Return extras that half of the memory budget does not hold, even of the smallest part alone.

    Returns
    -------
    dict of str to int
        For each name, the budget in bytes that the extras of a part would need, until then.
    """
    found: dict[str, int] = {}
    while (needed := extras_bytes(shards, tile_rows)) > memory_budget // 2:
        texts = {rider.name: 0 for rider in shards[0].riders}
        for shard in shards:
            for rider in shard.riders:
                texts[rider.name] = max(texts[rider.name], rider.text_bytes)
        widest = max(texts, key=lambda name: texts[name])
        found[widest] = 2 * needed
        shards = [leave_out_riders(shard, {widest: ""}) for shard in shards]
    return found


def large_chunks(shards: Sequence[Shard], budget: Budget) -> list[Shard]:
    """Return shards whose compressed chunks hold more rows than are read at once."""
    return [shard for shard in shards if shard.chunk_rows >= 2 * budget.block_rows and shard.band_bytes > 0]


def repeated_chunks(shards: Sequence[Shard], budget: Budget) -> str | None:
    """Return a warning if chunks are decompressed again and again, since the budget does not hold them; else None."""
    large = large_chunks(shards, budget)
    advice = "Raise --memory-budget, or rewrite such files with smaller chunks (h5repack -l)."
    too_large = [shard for shard in large if shard.band_bytes > budget.chunk_bytes]
    if too_large:
        shard = too_large[0]
        n_times = -(-shard.chunk_rows // budget.block_rows)
        return (
            f"{shard}: a row lies in compressed chunks of {shard.chunk_rows} rows, {shard.band_bytes} bytes, expected "
            f"at most {budget.chunk_bytes} bytes, an eighth of the memory budget ({len(too_large)} such files). Each "
            f"chunk is decompressed about {n_times} times in every pass over the rows. {advice}"
        )
    n_windows = -(-sum(shard.n_rows for shard in shards) // budget.window_rows)
    cut = [shard for shard in large if shard.chunk_rows * shard.row_bytes > MAX_CHUNK_BYTES]
    if cut and not budget.resident and n_windows > 1:
        return (
            f"{cut[0]}: chunks of {cut[0].chunk_rows} rows ({len(cut)} such files). The rows do not fit in memory, so "
            f"the training decompresses each chunk about {n_windows} times in every epoch. {advice}"
        )
    return None


def _network_bytes(network: Network, n_replicas: int, memory_budget: int) -> int:
    """What a run needs for its network, if a half of the memory holds that."""
    n_copies = COPIES_IN_TRAINING if n_replicas else _COPIES_IN_ENCODING
    needed = 4 * network.n_weights * n_copies
    if needed > memory_budget // 2:
        raise ConfigError(
            f"memory_budget: {memory_budget} bytes, expected at least {2 * needed} for a network of "
            f"{' x '.join(map(str, network.widths))} units: its {network.n_weights} weights, what training keeps "
            "beside them, and copies for checkpoints. Raise --memory-budget, or lower --hidden or --n-features."
        )
    if n_replicas > 1:
        needed += 4 * network.n_weights * _COPIES_OF_REPLICAS
    return needed
