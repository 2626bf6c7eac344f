"""Tests of minibatches: they do not depend on where rows are kept, and an epoch can start at any minibatch."""

import threading
from functools import partial
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.files import FILES
from shardpress.shards.conversion import AS_STORED
from shardpress.training.feed import DeviceRows, Reader, ResidentRows, StreamedRows
from shardpress.training.order import Order, slab_starts
from tests.support.cases import case
from tests.support.helpers import numbered, numbered_shards, refused

reader = partial(Reader, conversion=AS_STORED, n_threads=2)


@pytest.fixture
def shards(tmp_path):
    """Return 21 rows in shards of 8, 0, 1 and 12."""
    return numbered_shards(tmp_path, 8, 0, 1, 12)


def order_of(shards, left_out=(), window_rows=3, seed=0, slab_rows=3):
    return Order(slab_starts(shards, AS_STORED, slab_rows), np.array(left_out, dtype=np.int64), window_rows, seed)


@pytest.mark.process
def test_resident_and_streamed_rows_give_equal_minibatches(shards):
    for window_rows, batch_size in product([1, 7, 19, 21, 1000], [1, 18, 19, 20]):
        with case(window_rows, batch_size):
            order = order_of(shards, [2, 8], window_rows, seed=5)
            resident = ResidentRows.of(reader(shards))
            streamed = StreamedRows(reader(shards))
            np.testing.assert_array_equal(resident.resident, numbered(21))
            for epoch in (0, 1):
                numbers = list(resident.minibatches(order, epoch, batch_size))
                rows = list(streamed.minibatches(order, epoch, batch_size))
                assert [len(batch) for batch in rows] == [len(batch) for batch in numbers]
                assert all(len(batch) == batch_size for batch in numbers[:-1])
                assert 1 <= len(numbers[-1]) <= batch_size
                for i, batch in zip(numbers, rows, strict=True):
                    np.testing.assert_array_equal(batch, numbered(21)[i])
                expected = np.concatenate([rows for _slabs, rows in order.windows(epoch)])
                np.testing.assert_array_equal(np.concatenate(numbers), expected)


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
                whole = list(rows.minibatches(order, 3, batch_size))
                for first in range(len(whole) + 2):
                    tail = list(rows.minibatches(order, 3, batch_size, first))
                    assert [batch.tolist() for batch in tail] == [batch.tolist() for batch in whole[first:]]
                    n_each = int(rng.integers(1, 5))
                    pieces = list(rows.minibatches(order, 3, batch_size, first, n_each))
                    assert [len(piece) for piece in pieces[:-1]] == [n_each * batch_size] * (len(pieces) - 1)
                    joined = [row.tolist() for piece in pieces for row in piece]
                    assert joined == [row.tolist() for batch in tail for row in batch]


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
