"""Tests of minibatches: they do not depend on where rows are kept, and an epoch can start at any minibatch."""

import threading
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.files import FILES
from shardpress.scan.scaler import Cleaning, Scaler
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.order import Order, noise_of, slab_starts
from shardpress.training.rows import DeviceRows, Reader, ResidentRows, StepFeed, StreamedRows, cut
from shardpress_kernels.network import Network
from tests.support.cases import case
from tests.support.helpers import numbered, numbered_shards, refused, write_shard
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

NONE = np.empty(0, dtype=np.int64)
reader = partial(Reader, conversion=AS_STORED, n_threads=2)


def epoch_of(order, epoch=0):
    return np.concatenate([rows for _slabs, rows in order.windows(epoch)])


@pytest.fixture
def shards(tmp_path):
    """Return 21 rows in shards of 8, 0, 1 and 12."""
    return numbered_shards(tmp_path, 8, 0, 1, 12)


def order_of(shards, left_out=NONE, window_rows=3, seed=0, slab_rows=3):
    return Order(slab_starts(shards, AS_STORED, slab_rows), np.array(left_out, dtype=np.int64), window_rows, seed)


@pytest.mark.process
def test_resident_and_streamed_rows_give_equal_minibatches(shards):
    for window_rows, batch_size in product([1, 7, 19, 21, 1000], [1, 18, 19, 20]):
        with case(window_rows, batch_size):
            order = order_of(shards, [2, 8], window_rows, seed=5)
            resident = ResidentRows.of(reader(shards))
            streamed = StreamedRows(reader(shards))
            np.testing.assert_array_equal(resident.resident, numbered(21))
            assert streamed.resident is None
            for epoch in (0, 1):
                numbers = list(resident.minibatches(order, epoch, batch_size))
                rows = list(streamed.minibatches(order, epoch, batch_size))
                assert [len(batch) for batch in rows] == [len(batch) for batch in numbers]
                assert all(1 <= len(batch) <= batch_size for batch in numbers)
                for i, batch in zip(numbers, rows, strict=True):
                    np.testing.assert_array_equal(batch, numbered(21)[i])
                np.testing.assert_array_equal(np.concatenate(numbers), epoch_of(order, epoch))


@pytest.mark.process
def test_rows_reach_a_device_in_order_for_any_window(shards):
    order = order_of(shards, [2, 8], 7, seed=5)
    for window_rows in (1, 2, 5, 12, 20, 21, 22, 1000):
        with case(window_rows):
            rows = DeviceRows(reader(shards), window_rows)
            np.testing.assert_array_equal(np.concatenate([*rows.resident]), numbered(21))
            assert len(rows.resident) == 21
            assert all(1 <= len(piece) <= window_rows + window_rows // 4 for piece in rows.resident)
            np.testing.assert_array_equal(rows.take(np.array([0, 9, 20])), numbered(21)[[0, 9, 20]])
            numbers = [source.minibatches(order, 1, 4, 2) for source in (rows, ResidentRows.of(reader(shards)))]
            assert all(np.array_equal(*pair) for pair in zip(*numbers, strict=True))


@pytest.mark.slow
def test_an_epoch_can_start_at_any_minibatch(shards):
    """An interrupted training run resumes in the middle of an epoch with exactly the remaining minibatches."""
    for seed in range(6):
        with case(seed):
            rng = np.random.default_rng(seed)
            left_out = np.flatnonzero(rng.random(21) < rng.choice([0, 0.3, 0.9]))
            window_rows = int(rng.choice([1, 4, 7, 1000]))
            batch_size = int(rng.choice([1, 2, 5, 21, 30]))
            order = order_of(shards, left_out, window_rows, seed, int(rng.choice([1, 3])))
            for rows in (ResidentRows.of(reader(shards)), StreamedRows(reader(shards))):
                for epoch in (0, 3):
                    whole = list(rows.minibatches(order, epoch, batch_size))
                    for first in range(len(whole) + 2):
                        tail = list(rows.minibatches(order, epoch, batch_size, first))
                        assert [batch.tolist() for batch in tail] == [batch.tolist() for batch in whole[first:]]
                        n_each = int(rng.integers(1, 5))
                        pieces = list(rows.minibatches(order, epoch, batch_size, first, n_each))
                        assert [len(piece) for piece in pieces[:-1]] == [n_each * batch_size] * (len(pieces) - 1)
                        np.testing.assert_array_equal(*map(join, (pieces, tail)))


def join(batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(batch.ravel() for batch in batches)])


class Recorder:
    """Stand-in for a step, which records the rows and the noise of each minibatch."""

    def __init__(self, n_each: int) -> None:
        self.n_each = n_each
        self.started = list[tuple[np.ndarray, np.ndarray]]()

    def n_at_once(self, batch_size: int) -> int:
        return self.n_each

    def begin(self, minibatches: np.ndarray, noise: np.ndarray, batch_size: int) -> None:
        assert len(minibatches) <= self.n_each * batch_size
        for i in range(0, len(minibatches), batch_size):
            self.started.append((minibatches[i : i + batch_size], noise[i : i + batch_size]))

    def take(self, rates: list[float], with_cost: bool) -> float | None:
        return 0.5 if with_cost else None


@pytest.mark.parametrize("n_each", [1, 2, 5])
@pytest.mark.parametrize("n_rows", [1, 4, 11, 12])
def test_steps_do_not_depend_on_how_minibatches_are_grouped(n_each: int, n_rows: int) -> None:
    """Rows and noise do not depend on the number of minibatches that a device takes at a time."""
    config = settings_of(**{**ONE_LAYER, "corruption": 0.5}, batch_size=4, seed=3)
    rows = numbered(n_rows)
    step: Any = Recorder(n_each)
    feed = StepFeed(step, lambda n: cut([(rows, np.arange(n_rows))], 4 * n), Network((2, 1)), config.training, 7)
    n_taken = 0
    while feed.n_ready():
        n_of_minibatch, cost = feed.take([0.1], with_cost=n_taken == 0)
        assert (cost is not None) == (n_taken == 0)
        n_taken += n_of_minibatch
    assert n_taken == n_rows
    for i, (batch, noise) in enumerate(step.started):
        np.testing.assert_array_equal(batch, rows[4 * i : 4 * i + 4])
        np.testing.assert_array_equal(noise, noise_of(3, 7 + i, batch.shape))


def test_minibatches_of_one_window_are_full_except_the_last(shards):
    order = order_of(shards, window_rows=1000)
    assert [len(batch) for batch in ResidentRows.of(reader(shards)).minibatches(order, 0, 8)] == [8, 8, 5]


@pytest.mark.process
def test_rows_are_imputed_and_clipped_after_reading(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(9, 3)).astype(np.float32), rng.integers(-5, 5, (30, 3)).astype(np.int8)]
    arrays[0][4] = np.nan
    arrays[0][7, 1] = -99
    arrays[1][[3, 8], [0, 2]] = -99
    shards = open_shards([write_shard(tmp_path / f"{i}.h5", rows) for i, rows in enumerate(arrays)])
    scaler = Scaler(np.array([-1.5, -2.5, -0.5]), np.array([1.5, 0.5, 2.5]), np.array([0.75, -0.5, 1.25]), clips=True)
    whole = np.concatenate(arrays, dtype=np.float32)
    filled = np.where(np.isnan(whole) | (whole == -99), [0.75, -0.5, 1.25], whole)
    expected = filled.clip([-1.5, -2.5, -0.5], [1.5, 0.5, 2.5])  # integers, too, although the limits are fractions
    cleaned = reader(shards, cleaning=Cleaning(scaler, -99))
    for kind in (ResidentRows.of, StreamedRows):
        np.testing.assert_array_equal(kind(cleaned).take(np.arange(39)), expected)
    np.testing.assert_array_equal(ResidentRows.of(cleaned).resident, expected)
    order = order_of(shards, window_rows=7)
    streamed = np.concatenate(list(StreamedRows(cleaned).minibatches(order, 0, 4)))
    np.testing.assert_array_equal(streamed, expected[epoch_of(order, 0)])


def test_closing_a_stream_ends_its_threads_and_closes_files(shards):
    batches = StreamedRows(reader(shards)).minibatches(order_of(shards), 0, 1)
    next(batches)
    batches.close()
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
    assert [thread.name for thread in threading.enumerate() if "read-ahead" in thread.name] == []


def test_an_error_while_reading_ahead_reaches_the_training(shards, monkeypatch):
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    Path(shards[3].path).unlink()
    with refused(74, shards[3].path, "No such file"):
        list(StreamedRows(reader(shards)).minibatches(order_of(shards), 0, 4))


def test_taking_rows_equals_fancy_indexing(shards):
    for kind, rows in product(
        [ResidentRows.of, StreamedRows], [[], [0], [20], [7, 8], [0, 1, 2, 7, 8, 9, 20], range(21), range(0, 21, 2)]
    ):
        with case(kind, rows):
            rows = np.array(rows, dtype=np.int64)
            np.testing.assert_array_equal(kind(reader(shards)).take(rows), numbered(21)[rows])
