"""Tests of sharing the memory budget: it holds, in whole tiles, blocks and parts."""

import re
from contextlib import suppress
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from shardpress.errors import ConfigError
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.shard import Extra, Shard
from shardpress.run import budget as budget_module
from shardpress.run.budget import extras_bytes, make_budget, repeated_chunks, too_wide
from shardpress.settings.config import Config
from shardpress.settings.resolve import network_of, resolve
from shardpress.shards.conversion import AS_STORED
from shardpress_kernels.backend import Device
from tests.support.fields import set_sizes
from tests.support.helpers import refused

MiB = 2**20
TILE = 64
ENCODING = {"model": "features"}  # a run that trains nothing: it needs no memory for a training


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "TILE_ROWS", TILE)


def shard(n_rows=10**6, n_inputs=100, dtype="float32"):
    return Shard("x.h5", "X", (n_rows, n_inputs), np.dtype(dtype).str)


def budget_of(shards=None, n_features=16, **settings):
    shards = shards or [shard()]
    config = Config.of(**{"threads": 4, "n_features": n_features, "hidden": (), **settings})
    n_inputs = shards[0].n_inputs
    settings = resolve(config, sum(each.n_rows for each in shards), n_inputs)
    given = network_of(settings.network, n_inputs) if config.inputs.model else None
    return make_budget(settings, shards, AS_STORED, given)


def test_blocks_and_parts_fit_the_budget():
    for memory, threads, dtype, n_inputs, n_features in product(
        (16 * MiB, 64 * MiB, 2048 * MiB), (1, 2, 16), ("uint8", "float64"), (1, 10, 100), (1, 50)
    ):
        case = f"{memory} bytes, {threads} threads, {dtype}, {n_inputs} columns, {n_features} features"
        shards = [shard(10**7, n_inputs, dtype)]
        budget = budget_of(shards, n_features, memory_budget=memory, threads=threads, **ENCODING)
        row_bytes = n_inputs * np.dtype(dtype).itemsize
        block_rows = budget.block_rows
        part_rows = budget.part_rows
        assert budget.n_threads == threads, case
        assert budget.n_writers in (threads, threads + 2), case
        assert block_rows % TILE == part_rows % block_rows == 0, case
        assert threads * block_rows * row_bytes <= memory // 8 + TILE * row_bytes * threads, case
        features_bytes = threads * part_rows * 4 * n_features
        assert features_bytes <= max(memory // 8, threads * block_rows * 4 * n_features), case
        assert budget.resident == (10**7 * row_bytes <= memory // 2), case


def test_sizes_that_determine_the_model_do_not_depend_on_the_machine():
    """Rows that do not fit are refused: another model for each budget would not be the same result."""
    for dtype, n_rows, n_inputs in product(("uint8", "float64"), (10**5, 10**7), (10, 100)):
        shards = [shard(n_rows, n_inputs, dtype)]
        found = set()
        for memory, threads in product((256 * MiB, 2048 * MiB, 2**40), (1, 16)):
            with suppress(ConfigError):
                budget = budget_of(shards, 4, memory_budget=memory, threads=threads)
                found.add((budget.window_rows, budget.max_validation_rows, budget.max_sample_rows))
        assert len(found) == 1, (dtype, n_rows, n_inputs)


def test_rows_of_the_training_fit_the_budget_or_are_refused():
    for n_rows, n_inputs, memory in product((10**4, 10**6, 10**9), (10, 1000), (64 * MiB, 512 * MiB, 1024 * MiB)):
        case = (n_rows, n_inputs, memory)
        shards = [shard(n_rows, n_inputs)]
        row_bytes = 4 * n_inputs
        try:
            budget = budget_of(shards, 4, memory_budget=memory)
        except ConfigError as error:
            least = int(re.findall("[0-9]+", str(error))[1])
            assert memory < least <= 1024 * MiB, case
            budget = budget_of(shards, 4, memory_budget=least)
        held = n_rows if budget.resident else min(n_rows, 2 * budget.window_rows)
        held_bytes = (held + min(n_rows // 20, budget.max_validation_rows)) * row_bytes
        assert held_bytes + min(n_rows, budget.max_sample_rows) * row_bytes <= 0.75 * 1024 * MiB, case


def test_many_rows_make_larger_parts_within_the_budget():
    """A process can open about a thousand files."""
    part_bytes = {}
    for memory, n_rows in product((2048 * MiB, 2**20 * MiB), (10**7, 10**8, 10**10)):
        budget = budget_of([shard(n_rows)], 64, memory_budget=memory, threads=2)
        part_bytes[memory, n_rows] = budget.part_rows * 4 * 64
        assert 4 * part_bytes[memory, n_rows] <= memory // 8, (memory, n_rows)
    assert part_bytes[2048 * MiB, 10**7] == part_bytes[2048 * MiB, 10**10]
    large = 2**20 * MiB
    assert part_bytes[large, 10**7] == pytest.approx(64 * MiB, rel=0.05)  # whole blocks
    assert part_bytes[large, 10**8] == pytest.approx(10**8 * 4 * 64 / 250, rel=0.05)
    assert part_bytes[large, 10**10] == pytest.approx(256 * MiB, rel=0.05)


def test_a_tile_for_each_thread_fits_the_budget_or_is_refused():
    for threads in (64, 256):
        with suppress(ConfigError):
            budget = budget_of([shard(n_inputs=10_000)], memory_budget=16 * MiB, threads=threads)
            assert budget.n_threads * budget.block_rows * 10_000 * 4 <= 16 * MiB, threads


def test_the_error_about_wide_rows_names_a_sufficient_budget():
    wide = [shard(n_inputs=100_000)]
    settings = {"threads": 1, **ENCODING}
    with pytest.raises(ConfigError, match=r"memory_budget\b.*\b16777216\b.*--threads") as caught:
        budget_of(wide, 1, memory_budget=16 * MiB, **settings)
    least = int(re.findall("[0-9]+", str(caught.value))[1])
    assert 4 * TILE * 400_000 <= least <= 4 * TILE * 400_000 + 16 * MiB
    budget_of(wide, 1, memory_budget=least, **settings)


def with_texts(each, text_bytes, n_numbers=0):
    extras = [Extra(f"y{i}", np.dtype("f8")) for i in range(n_numbers)]
    return replace(each, extras=(Extra("text", np.dtype("O"), text_bytes=text_bytes), *extras))


def test_small_extras_do_not_change_the_size_of_parts():
    for n_numbers, text_bytes in ((0, 10), (5, 0), (1, 40)):
        for n_rows in (10, 10**5, 10**7):
            plain = shard(n_rows)
            extra = with_texts(plain, text_bytes, n_numbers)
            assert replace(budget_of([extra]), n_wide=0) == replace(budget_of([plain]), n_wide=0), (n_numbers, n_rows)


def test_extras_fit_the_budget():
    for memory, threads, text_bytes, n_rows in product(
        (64 * MiB, 256 * MiB, 2048 * MiB), (1, 2, 16), (100, 10_000, 40_000), (100, 20_000, 10**7)
    ):
        case = f"{memory} bytes, {threads} threads, texts of {text_bytes} bytes, {n_rows} rows"
        shards = [shard(n_rows), with_texts(shard(n_rows), text_bytes)]
        shards[0] = with_texts(shards[0], 0)
        budget = budget_of(shards, memory_budget=memory, threads=threads, **ENCODING)
        assert budget.part_rows % TILE == 0, case
        extras_size = budget.n_wide * extras_bytes(shards, budget.part_rows)
        one_tile = extras_bytes(shards, TILE)
        assert extras_size <= max(memory // 4, one_tile), case
        if not too_wide(memory, shards):
            assert extras_size <= memory // 2, case


def test_extras_that_no_part_can_hold_are_named():
    shards = [with_texts(shard(), 10 * MiB, n_numbers=2), with_texts(shard(), 5, n_numbers=2)]
    (needed,) = too_wide(64 * MiB, shards).values()
    assert too_wide(needed, shards) == {}
    assert set(too_wide(needed - 2, shards)) == {"text"}
    few = [with_texts(shard(n_rows=1), 10 * MiB)]
    assert too_wide(64 * MiB, few) == {}


def shard_in_chunks(n_rows, chunk_rows, n_inputs=100):
    chunks = (chunk_rows, n_inputs)
    layout = Layout("X", (n_rows, n_inputs), np.dtype("f4"), "chunked", chunks=chunks, filters=((1, (4,)),))
    return replace(shard(n_rows, n_inputs), chunk_rows=chunk_rows, layouts=(layout,))


def test_chunks_that_do_not_fit_the_budget_cause_a_warning():
    for n_rows, chunk_rows, memory, times in (
        (10**6, 150_000, 2048 * MiB, None),  # 60 MB; an eighth of the budget holds one
        (10**6, 150_000, 256 * MiB, r"\b[0-9]+ times\b.*\bpass\b"),
        (10**6, 100, 64 * MiB, None),
        (10**7, 150_000, 2048 * MiB, r"\b1[0-9] times\b.*\bepoch\b"),
    ):
        shards = [shard_in_chunks(n_rows, chunk_rows)]
        found = repeated_chunks(shards, AS_STORED, budget_of(shards, memory_budget=memory, **ENCODING))
        assert (found is None) == (times is None), (n_rows, chunk_rows, memory, found)
        if times:
            assert re.search(times, found), found
            assert "h5repack" in found


def test_a_tile_larger_than_the_data_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows of 300,000 columns are 14 MB, although a full tile would be 1.2 GB."""
    one_block = [shard(TILE, 300_000)]
    budget_of(one_block, memory_budget=4 * TILE * 1_200_000, threads=8, n_features=1)  # seven threads are idle
    monkeypatch.setattr(budget_module, "TILE_ROWS", 1024)
    settings = {"memory_budget": 2**30, "threads": 2, "n_features": 4}
    budget_of([shard(12, 300_000)], **settings)
    budget_of([shard(12, 300_000)] * 3, **settings)
    with pytest.raises(ConfigError, match=r"memory_budget\b.*\b1024\b"):
        budget_of([shard(10_000, 300_000)], **settings)


def test_a_network_larger_than_half_of_the_budget_is_refused():
    wide = [shard(n_inputs=20_000)]
    n_weights = 20_000 * 4096 + 4096 * 16
    with refused(78, str(2 * 4 * 18 * n_weights), "20000 x 4096 x 16", "--hidden"):
        budget_of(wide, hidden=(4096,), memory_budget=2**31)
    budget_of(wide, hidden=(4096,), memory_budget=2 * 4 * 18 * n_weights)
    budget_of(wide, hidden=(4096,), memory_budget=2**31, **ENCODING)


def test_a_large_network_leaves_less_memory_for_rows():
    shards = [shard(9000, n_inputs=784)]
    settings = {"memory_budget": 64 * MiB, **ENCODING}
    assert budget_of(shards, **settings).resident
    assert not budget_of(shards, hidden=(3000,), **settings).resident


def test_blocks_are_rounded_up_to_whole_tiles(monkeypatch):
    for wanted, expected in ((0, 64), (1, 64), (63, 64), (64, 64), (65, 128), (1000, 1024)):
        set_sizes(monkeypatch, block_rows=wanted)
        assert budget_of().block_rows == expected, wanted


def test_rows_stay_in_memory_if_they_fit_half_of_the_budget():
    for n_rows in (899, 900, 901, 999, 1000, 1001):
        shards = [shard(n_rows - 1, 4096), shard(1, 4096)]
        budget = budget_of(shards, 1, memory_budget=2 * 1000 * 4 * 4096, **ENCODING)
        assert budget.resident == (n_rows <= 1000), n_rows
        sizes = budget.sizes(Device("cpu", "cpu", "Processor"))
        assert (sizes.resident, sizes.on_device) == (n_rows <= 1000, False), n_rows


@pytest.mark.parametrize(
    ("limit", "free", "max_rows"),
    [
        (900 * 4096, 10**9, 900),  # the requested amount, independent of the free memory
        (0, 10**9, 0),
        (None, 2 * 901 * 4096, 901),  # half of the free memory
        (None, 0, 2**30 // 4096),  # the device does not report its memory
        (None, 80 * 10**9, 2**32 // 4096),  # limit of 32-bit offsets into rows on a device
        (2**36, 80 * 10**9, 2**32 // 4096),
    ],
)
def test_rows_stay_on_a_device_if_they_fit_its_memory(limit, free, max_rows):
    device = Device("cuda", "cuda", "Card", free=free)
    for n_rows in {1, max(1, max_rows - 1), max(1, max_rows), max_rows + 1}:
        settings = {"memory_budget": 32 * MiB, "device_memory_budget": limit, **ENCODING}
        budget = budget_of([shard(n_rows, 4096, "uint8")], 1, **settings)
        sizes = budget.sizes(device)
        assert budget.keeps_rows(device) == sizes.on_device == (n_rows <= max_rows), n_rows
        assert not sizes.resident


def test_bytes_are_counted_in_the_dtype_that_holds_all_shards():
    narrow = shard(500, 8192, "uint8")
    wide = shard(500, 8192, "float64")
    settings = {"memory_budget": 16 * MiB, "threads": 1, **ENCODING}
    assert budget_of([narrow], 1, **settings).resident
    assert not budget_of([narrow, wide, narrow], 1, **settings).resident


def test_a_window_holds_its_bytes_and_at_least_one_row(monkeypatch):
    assert budget_of().window_rows == 256 * MiB // (100 * 4)
    for window in (1, 399, 400, 401, 10**6):
        set_sizes(monkeypatch, shuffle_window=window)
        assert budget_of().window_rows == max(1, window // (100 * 4)), window


def test_default_threads_are_the_cores_allowed_to_the_process(monkeypatch):
    """The process may use fewer cores than the machine has, for example in a batch system."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 9})
    assert budget_of(threads=None).n_threads == 3
