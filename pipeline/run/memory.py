"""What a run takes of memory, at most, and what a process has taken."""

from __future__ import annotations

import re

from pipeline.report.sample import most_rows
from pipeline.run.budget import extras_bytes, large_chunks
from pipeline.run.job import Prepared
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype

__all__ = ["available_bytes", "device_bytes", "peak_bytes", "stage_bytes", "taken_bytes"]

_COPIES = 10  # of a network while it is trained: parameters, adam's states, the best ones; what they were made of
_COPIES_ON_DEVICE = 5  # parameters, adam's states, gradients, and one more while they are updated
_SCALING = 2**24  # bytes: a block of rows in float64 with what is made of it, while components are looked for
_LIBRARIES = 24 * 2**20  # what is loaded later than the device
_LEFT = 2 * _SCALING  # what the memory's allocator keeps of the training for what follows


def taken_bytes() -> int:
    """Bytes that this process has in memory now; 0 where the system does not say."""
    return _told("/proc/self/status", "VmRSS")


def peak_bytes() -> int:
    """The most that it has had."""
    return _told("/proc/self/status", "VmHWM")


def available_bytes() -> int:
    """Bytes that processes could still have."""
    return _told("/proc/meminfo", "MemAvailable")


def _told(path: str, name: str) -> int:
    try:
        with open(path) as file:
            found = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def stage_bytes(prepared: Prepared, resident: bool) -> dict[str, int]:
    """Bytes of rows, features and networks that each stage holds at its worst, beside the libraries.

    Parameters
    ----------
    resident : bool
        Whether training keeps all rows in the host's memory.
    """
    shards = prepared.shards
    budget = prepared.budget
    config = prepared.config
    n_inputs = shards[0].n_inputs
    n_rows = prepared.n_rows
    row_bytes = n_inputs * row_dtype(shards).itemsize
    block = min(budget.block_rows, max(shard.n_rows for shard in shards)) * row_bytes
    part = min(budget.part_rows, max(shard.n_rows for shard in shards)) * (4 * config.network.n_features + 1)
    network = network_of(config.network, n_inputs)
    parameters = 4 * network.n_weights
    # Chunks that are kept for several blocks.
    chunks = budget.chunk_bytes if large_chunks(shards, budget) else 0
    found = {"scan": budget.n_threads * block + chunks}
    if prepared.given is None:
        watched = min(round(config.validation.validation_fraction * n_rows), budget.max_validation_rows) * row_bytes
        kept = n_rows * row_bytes if resident else 0
        windows = 0 if resident else 2 * min(budget.window_rows, n_rows) * row_bytes + _LEFT
        looks = config.training.start == "components" or config.validation.baseline
        sample = min(budget.max_sample_rows, n_rows) * 4 * n_inputs + _SCALING if looks else 0
        found["training"] = chunks + kept + watched + max(sample, windows) + _COPIES * parameters
    left = parameters if prepared.given is not None else _COPIES * parameters + _LEFT
    extras = min(budget.n_wide, budget.n_writers) * extras_bytes(shards, budget.part_rows)
    found["encoding"] = left + budget.n_writers * (block + part) + extras + chunks
    # Of blocks the allocator keeps the memory, parts are too large for that.
    found["report"] = left + budget.n_writers * block + most_rows(network, config.machine.memory_budget)[1]
    return {stage: _LIBRARIES + n_bytes for stage, n_bytes in found.items()}


def device_bytes(prepared: Prepared, resident: bool, tile_rows: int) -> int:
    """Bytes that rows, network and activations take on a device of its own, beside what its driver takes."""
    config = prepared.config
    shards = prepared.shards
    row_bytes = shards[0].n_inputs * row_dtype(shards).itemsize
    network = network_of(config.network, shards[0].n_inputs)
    rows = prepared.n_rows * row_bytes if resident and prepared.given is None else 0
    at_once = max(config.training.batch_size, tile_rows)  # each layer's way there and back, and the gradients by it
    return rows + 4 * (_COPIES_ON_DEVICE * network.n_weights + 4 * at_once * sum(network.widths))
