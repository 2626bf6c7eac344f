"""Tests of sharing the memory budget: it holds, in whole tiles, blocks and parts."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from shardpress.base.errors import ConfigError
from shardpress.hdf5.files import Identity
from shardpress.hdf5.shard import Extra, Shard
from shardpress.run import budget as budget_module
from shardpress.run.budget import Budget, extras_bytes, make_budget
from shardpress.settings.config import Config
from shardpress.settings.resolve import network_of, resolve
from shardpress.shards.conversion import AS_STORED
from shardpress_kernels.backend import Device
from tests.support.cases import case

MiB = 2**20
TILE = 64
ENCODING = {"model": "features"}  # a run that trains nothing: it needs no memory for a training


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "TILE_ROWS", TILE)


def shard(n_rows: int = 10**6, n_inputs: int = 100, dtype: str = "float32") -> Shard:
    return Shard("x.h5", "X", (n_rows, n_inputs), np.dtype(dtype).str)


def budget_of(shards: list[Shard], n_features: int = 16, **settings: Any) -> Budget:
    config = Config.of(**{"threads": 4, "n_features": n_features, "hidden": (), **settings})
    n_inputs = shards[0].n_inputs
    resolved = resolve(config, sum(each.n_rows for each in shards), n_inputs)
    given = network_of(resolved.network, n_inputs) if config.inputs.model else None
    return make_budget(resolved, shards, AS_STORED, given)


def test_blocks_and_parts_fit_the_budget() -> None:
    for memory, threads, dtype, n_inputs, n_features in product(
        (16 * MiB, 2048 * MiB), (1, 16), ("uint8", "float64"), (1, 100), (1, 50)
    ):
        shards = [shard(10**7, n_inputs, dtype)]
        budget = budget_of(shards, n_features, memory_budget=memory, threads=threads, **ENCODING)
        row_bytes = n_inputs * np.dtype(dtype).itemsize
        features_bytes = threads * budget.part_rows * 4 * n_features
        with case(memory=memory, threads=threads, dtype=dtype, n_inputs=n_inputs, n_features=n_features):
            assert budget.n_threads == threads
            assert budget.n_writers in (threads, threads + 2)
            assert budget.block_rows % TILE == budget.part_rows % budget.block_rows == 0
            assert threads * budget.block_rows * row_bytes <= memory // 8 + TILE * row_bytes * threads
            assert features_bytes <= max(memory // 8, threads * budget.block_rows * 4 * n_features)
            assert budget.resident == (10**7 * row_bytes <= memory // 2)


def test_sizes_that_determine_the_model_do_not_depend_on_the_machine() -> None:
    """Rows that do not fit are refused: another model for each budget would not be the same result."""
    for dtype, n_rows, n_inputs in product(("uint8", "float64"), (10**5, 10**7), (10, 100)):
        shards = [shard(n_rows, n_inputs, dtype)]
        found = set()
        for memory, threads in product((256 * MiB, 2048 * MiB, 2**40), (1, 16)):
            with suppress(ConfigError):
                budget = budget_of(shards, 4, memory_budget=memory, threads=threads)
                found.add((budget.window_rows, budget.max_validation_rows, budget.max_sample_rows))
        assert len(found) == 1, (dtype, n_rows, n_inputs)


def test_rows_of_the_training_fit_the_budget_or_are_refused() -> None:
    for n_rows, n_inputs, memory in product((10**4, 10**6, 10**9), (10, 1000), (64 * MiB, 1024 * MiB)):
        shards = [shard(n_rows, n_inputs)]
        with case(n_rows, n_inputs, memory):
            try:
                budget = budget_of(shards, 4, memory_budget=memory)
            except ConfigError as error:
                least = int(re.findall("[0-9]+", str(error))[1])
                assert memory < least <= 1024 * MiB
                budget = budget_of(shards, 4, memory_budget=least)
            held_rows = n_rows if budget.resident else min(n_rows, 2 * budget.window_rows)
            held_rows += min(n_rows // 20, budget.max_validation_rows) + min(n_rows, budget.max_sample_rows)
            assert held_rows * 4 * n_inputs <= 0.75 * 1024 * MiB


# -- refused sizes ---------------------------------------------------------------------------------------------------


def test_the_error_about_wide_rows_names_a_sufficient_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only existing rows take memory: fewer rows than a tile, and fewer blocks than threads."""
    wide = [shard(n_inputs=100_000)]
    with pytest.raises(ConfigError, match=r"--memory-budget\b.*\b16777216\b.*--threads") as caught:
        budget_of(wide, 1, memory_budget=16 * MiB, threads=1, **ENCODING)
    least = int(re.findall("[0-9]+", str(caught.value))[1])
    budget_of(wide, 1, memory_budget=least, threads=1, **ENCODING)
    budget_of([shard(TILE, 300_000)], memory_budget=4 * TILE * 1_200_000, threads=8, n_features=1)
    monkeypatch.setattr(budget_module, "TILE_ROWS", 1024)
    budget_of([shard(12, 300_000)] * 3, memory_budget=2**30, threads=2, n_features=4)


# -- extras ----------------------------------------------------------------------------------------------------------


def with_extras(each: Shard, *dtypes: str) -> Shard:
    extras = tuple(Extra(f"y{i}", np.dtype(dtype)) for i, dtype in enumerate(dtypes))
    return replace(each, extras=extras, identity=Identity(0, 0, 10**9, 0))


def test_extras_fit_the_budget() -> None:
    """Small ones do not change the size of parts."""
    for memory, threads, dtype, n_rows in product((64 * MiB, 2048 * MiB), (1, 16), ("f8", "S5000"), (100, 10**7)):
        shards = [with_extras(shard(n_rows), dtype, "O")]
        budget = budget_of(shards, memory_budget=memory, threads=threads, **ENCODING)
        least = 2 * budget.n_writers * TILE * (np.dtype(dtype).itemsize + 8)
        with case(memory=memory, threads=threads, dtype=dtype, n_rows=n_rows):
            assert budget.part_rows % TILE == 0
            n_text_bytes = 2 * budget.n_writers * budget.text_bytes
            assert n_text_bytes <= memory // 4
            assert budget.n_writers * extras_bytes(shards, budget) - n_text_bytes <= max(memory // 4, least)
    assert budget_of([with_extras(shard(), "f8", "O")]).part_rows == budget_of([shard()]).part_rows
    with pytest.raises(ConfigError, match=r"memory_budget\b.*\bextras\b.*--memory-budget"):
        budget_of([with_extras(shard(), *["S65536"] * 9)], memory_budget=256 * MiB)


# -- rows on a device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "free", "max_rows"),
    [
        (900 * 4096, 10**9, 900),  # the requested amount, independent of the free memory
        (None, 2 * 901 * 4096, 901),  # half of the free memory
        (2**36, 80 * 10**9, 2**32 // 4096),  # limit of 32-bit offsets into rows on a device
    ],
)
def test_rows_stay_on_a_device_if_they_fit_its_memory(limit: int | None, free: int, max_rows: int) -> None:
    device = Device("cuda", "cuda", "Card", free=free)
    for n_rows in (max_rows, max_rows + 1):
        settings = {"memory_budget": 32 * MiB, "device_memory_budget": limit, **ENCODING}
        budget = budget_of([shard(n_rows, 4096, "uint8")], 1, **settings)
        sizes = budget.sizes(device)
        assert budget.keeps_rows(device) == sizes.on_device == (n_rows <= max_rows), n_rows
        assert not sizes.resident
