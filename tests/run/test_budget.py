"""Memory is shared out so that the budget holds, in whole tiles, blocks and parts."""

from contextlib import suppress
from math import prod

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.run.budget import make_budget
from pipeline.settings.config import Config
from pipeline.settings.resolved import resolve
from pipeline.shards.shard import Shard
from tests.support.helpers import refused

MiB = 2**20
TILE = 64


def shard(n_rows=10**6, n_inputs=100, dtype="float32"):
    return Shard("x.h5", "X", (n_rows, n_inputs), np.dtype(dtype).str, dtype)


def budget_of(shards=None, n_features=16, **settings):
    shards = shards or [shard()]
    config = Config(**{"threads": 4, "n_features": n_features, **settings})
    return make_budget(resolve(config, sum(each.n_rows for each in shards), shards[0].n_inputs), shards, TILE)


@pytest.mark.parametrize("memory", [16 * MiB, 64 * MiB, 2048 * MiB])
@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("n_inputs", [1, 10, 100])
@pytest.mark.parametrize("n_features", [1, 50])
def test_blocks_parts_windows_and_validation_fit_the_memory(memory, threads, dtype, n_inputs, n_features):
    budget = budget_of([shard(10**7, n_inputs, dtype)], n_features, memory_budget=memory, threads=threads)
    row_bytes = n_inputs * np.dtype(dtype).itemsize
    assert budget.n_threads == threads
    assert budget.block_rows % TILE == budget.part_rows % budget.block_rows == 0
    tile_bytes = TILE * row_bytes * threads
    assert threads * budget.block_rows * row_bytes <= memory // 8 + tile_bytes
    assert threads * 3 * budget.part_rows * 4 * n_features <= max(
        memory // 8, 3 * threads * budget.block_rows * 4 * n_features
    )
    assert 2 * budget.window_rows * row_bytes <= memory // 2
    assert budget.max_validation_rows * row_bytes <= memory // 8
    assert budget.resident == (10**7 * row_bytes <= memory // 2)


@pytest.mark.parametrize("threads", [64, 256])
def test_a_tile_for_each_thread_fits_the_budget_or_is_refused(threads):
    with suppress(ConfigError):
        budget = budget_of([shard(n_inputs=10_000)], memory_budget=16 * MiB, threads=threads)
        assert budget.n_threads * budget.block_rows * 10_000 * 4 <= 16 * MiB


def test_rows_too_wide_for_the_budget_are_refused_with_what_would_do():
    with refused(78, "memory_budget: 16777216 bytes", f"expected at least {4 * TILE * 400_000}", "--block-rows"):
        budget_of([shard(n_inputs=100_000)], memory_budget=16 * MiB, threads=1)
    budget_of([shard(n_inputs=100_000)], memory_budget=4 * TILE * 400_000, threads=1)


@pytest.mark.parametrize(("asked", "given"), [(1, 64), (63, 64), (64, 64), (65, 128), (1000, 1024)])
def test_blocks_asked_for_are_rounded_up_to_whole_tiles(asked, given):
    assert budget_of(block_rows=asked).block_rows == given


@pytest.mark.parametrize("n_rows", [899, 900, 901, 999, 1000, 1001])
def test_rows_stay_in_memory_when_they_fit_half_of_it_and_the_device(n_rows):
    shards = [shard(n_rows - 1, 4096), shard(1, 4096)]
    budget = budget_of(shards, memory_budget=2 * 1000 * 4 * 4096, device_memory_budget=900 * 4 * 4096)
    assert budget.resident == (n_rows <= 1000)
    assert budget.resident_on_device == (n_rows <= 900)


def test_bytes_are_counted_in_the_dtype_that_holds_all_shards():
    narrow, wide = shard(500, 8192, "uint8"), shard(500, 8192, "float64")
    settings = {"memory_budget": 16 * MiB, "threads": 1}
    assert budget_of([narrow], **settings).resident
    assert not budget_of([narrow, wide, narrow], **settings).resident


@pytest.mark.parametrize("window", [1, 399, 400, 401, 10**6])
def test_a_window_takes_the_rows_asked_for_and_one_at_least(window):
    assert budget_of(shuffle_window=window).window_rows == max(1, window // prod((100, 4)))


def test_there_are_as_many_threads_as_cores_this_process_may_use(monkeypatch):
    """Not as the machine has: a batch system gives a job its share of them."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 9})
    assert budget_of(threads=None).n_threads == 3
