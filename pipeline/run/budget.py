"""How memory is shared out: pure arithmetic from sizes and budgets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError
from pipeline.settings.config import Config
from pipeline.shards.shard import Shard, row_dtype

__all__ = ["Plan", "make_plan"]

_BLOCK_BYTES = 2**23
_PART_BYTES = 2**26


@dataclass(frozen=True)
class Plan:
    """Sizes that keep a run within its budgets.

    Attributes
    ----------
    n_threads : int
        Dask threads, each of which holds a block.
    block_rows : int
        Rows read at once; whole tiles of the encoder.
    part_rows : int
        Rows whose features make one file; whole blocks.
    resident : bool
        Whether training keeps all rows in memory.
    window_rows : int
        Rows shuffled together, of which streaming holds two windows.
    max_validation_rows : int
    """

    n_threads: int
    block_rows: int
    part_rows: int
    resident: bool
    window_rows: int
    max_validation_rows: int

    @property
    def n_writers(self) -> int:
        """Dask threads while encoding, each of which holds a block and the features of a part.

        Two more, so that the processor has work while parts are brought to the disk; but who asks for one gets one.
        """
        return _n_writers(self.n_threads)


def make_plan(config: Config, shards: Sequence[Shard], n_features: int, tile_rows: int, on_device: bool) -> Plan:
    """Share the memory budget out.

    A half goes to the rows of the training when all of them fit it, else a quarter to two windows of them; a sixteenth
    to the validation's rows; a quarter to the threads' blocks and parts. The rest is for copies on the way.

    Parameters
    ----------
    config : Config
    shards : sequence of Shard
    n_features : int
    tile_rows : int
        Rows of one product of the encoder, which blocks are rounded up to.
    on_device : bool
        Whether resident rows lie in a device's own memory.

    Raises
    ------
    ConfigError
        When the budget does not hold one tile of rows for each thread.
    """
    row_bytes = shards[0].n_inputs * max(
        row_dtype(shards).itemsize, *(np.dtype(s.stored_dtype).itemsize for s in shards)
    )
    n_rows = sum(shard.n_rows for shard in shards)
    n_threads = config.threads or len(os.sched_getaffinity(0))
    budget = config.memory_budget
    share = budget // 8 // _n_writers(n_threads)

    wanted = config.block_rows or min(_BLOCK_BYTES, share) // row_bytes
    block_rows = _round_up(max(1, wanted), tile_rows)
    least = 4 * n_threads * block_rows * row_bytes
    if least > budget:
        raise ConfigError(
            f"memory_budget: {budget} bytes, expected at least {least} for {n_threads} threads with blocks of "
            f"{block_rows} rows of {row_bytes} bytes each. Raise --memory-budget, or lower --threads or --block-rows "
            f"(the least is {tile_rows})."
        )
    # A part is one piece of memory; the rest is for what rides along, and for a copy when that is longer than thought.
    part_rows = max(block_rows, min(_PART_BYTES, share // 3) // (4 * n_features) // block_rows * block_rows)

    resident_limit = min(budget // 2, config.device_memory_budget) if on_device else budget // 2
    window = min(config.shuffle_window, budget // 8)
    return Plan(
        n_threads=n_threads,
        block_rows=block_rows,
        part_rows=part_rows,
        resident=n_rows * row_bytes <= resident_limit,
        window_rows=max(1, window // row_bytes),
        max_validation_rows=budget // 16 // row_bytes,
    )


def _n_writers(n_threads: int) -> int:
    return n_threads + 2 * (n_threads > 1)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
