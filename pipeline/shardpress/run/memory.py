"""Maximum memory that a run needs, and memory that a process has used."""

from __future__ import annotations

import re

from shardpress.run.budget import large_chunks
from shardpress.run.task import Task

NETWORK_COPIES = 11
"""Copies of the network's parameters during training, including Adam's states, the best and the first parameters."""
_COPIES_ON_DEVICE = 5  # parameters, Adam's states, gradients, and one more while they are updated
SCALING_BYTES = 2**24
"""Bytes of one block of rows in float64, with everything computed from it, during the search for components."""
LIBRARY_BYTES = 24 * 2**20
"""Bytes of libraries that are loaded after the device."""
CLUSTER_BYTES = 2**27
"""Bytes of the packages that the process of a run with workers loads."""
ALLOCATOR_BYTES = 2 * SCALING_BYTES
"""Bytes that the memory allocator keeps after the training, for later stages."""


def taken_bytes() -> int:
    """Return the bytes that this process has in memory now; 0 where the system does not report them."""
    return _from_proc("/proc/self/status", "VmRSS")


def peak_bytes() -> int:
    """Return the largest number of bytes that this process has had in memory."""
    return _from_proc("/proc/self/status", "VmHWM")


def available_bytes() -> int:
    """Return the bytes that processes could still allocate."""
    return _from_proc("/proc/meminfo", "MemAvailable")


def _from_proc(path: str, name: str) -> int:
    try:
        with open(path) as file:
            match = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0


def block_bytes(task: Task) -> int:
    """Return the bytes of one block of rows."""
    n_rows = min(task.budget.block_rows, max(shard.n_rows for shard in task.inputs.shards))
    return n_rows * task.row_bytes


def chunk_bytes(task: Task) -> int:
    """Return the bytes of decompressed chunks that a process keeps for several blocks."""
    return task.budget.chunk_bytes if large_chunks(task.inputs.shards, task.budget) else 0


def network_bytes(task: Task) -> int:
    """Return the bytes of the network's parameters."""
    return 4 * task.max_network.n_weights


def trained_network_bytes(task: Task) -> int:
    """Return the bytes that the training, or a given model, leaves in memory for later stages."""
    if task.model is not None:
        return network_bytes(task)
    return NETWORK_COPIES * network_bytes(task) + ALLOCATOR_BYTES


def device_bytes(task: Task, resident: bool, tile_rows: int) -> int:
    """Return the bytes of rows, network and activations on a device with its own memory, excluding its driver."""
    config = task.settings
    network = task.max_network
    rows = task.inputs.n_rows * task.row_bytes if resident and task.model is None else 0
    # The activations of each layer in the encoder and in the decoder, and their gradients.
    n_rows_at_once = max(config.training.batch_size, tile_rows)
    activations = 4 * n_rows_at_once * sum(network.widths)
    return rows + 4 * (_COPIES_ON_DEVICE * network.n_weights + activations)
