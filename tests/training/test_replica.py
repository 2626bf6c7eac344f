"""Tests of training by replicas: the bits do not depend on where tasks run, or on interruptions."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Shard
from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import Scaler
from shardpress.settings import replicas as sizes_module
from shardpress.settings.resolve import Settings
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training import replica as module
from shardpress.training.epochs import Training
from shardpress.training.fit import Sizes, prepare_training
from shardpress.training.replica import RoundRunner, runner_on
from tests.support import standin
from tests.support.helpers import write_shard
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

CONFIG = settings_of(
    **{**ONE_LAYER, "replicas": 3},
    **{"n_features": 2, "batch_size": 8, "learning_rate": 0.01, "epochs": 5, "validation_fraction": 0.2},
)
SIZES = Sizes(resident=True, window_rows=1000, max_validation_rows=1000, max_sample_rows=1000, n_threads=2)
BAD = [4, 190]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Shard, ...]:
    """Return 200 rows in five columns; three replicas train on 159 of them, in three rounds per epoch."""
    monkeypatch.setattr(sizes_module, "_MIN_ROUNDS", 8)
    monkeypatch.setattr(sizes_module, "_MIN_STEPS_PER_ROUND", 1)
    rows = np.random.default_rng(2).random((200, 5), dtype=np.float32)
    rows[BAD] = np.nan
    paths = [write_shard(tmp_path / f"{i}.h5", each) for i, each in enumerate((rows[:150], rows[150:]))]
    return open_shards(list(map(str, paths)))


def training_of(shards: tuple[Shard, ...], config: Settings = CONFIG, **sizes: Any) -> Training:
    scan = Scan(200, Scaler(np.zeros(5), np.ones(5)), np.array(BAD))
    return prepare_training(shards, AS_STORED, scan, config, replace(SIZES, **sizes))


def result_of(training: Training, runner: RoundRunner | None = None) -> Any:
    """Return the result of a training run."""
    done = train(training, runner=runner)
    parameters = {name: array.tobytes() for name, array in training.best.items()}
    return parameters, [replace(epoch, seconds=0) for epoch in done.history], training.n_rows_done


@pytest.fixture
def numpy_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use NumPy as the device."""
    standin.install(monkeypatch)
    monkeypatch.setattr(module, "start_device", lambda: None)
    module._replicas.clear()
    yield
    module._replicas.clear()


def test_a_task_of_a_share_contains_no_rows(numpy_device: None, shards: Any) -> None:
    training = training_of(shards)
    assert training.replicas is not None
    shares = next(training.replicas.rounds.rounds(1))
    tasks = [
        training.replicas.task(share, training.weights(), training.n_epochs, training.steps_per_epoch)
        for share in shares
    ]
    sent = pickle.dumps(tasks[0])
    assert pickle.loads(sent).settings.key == training.replicas.settings.key
    assert len(sent) < 2 * len(pickle.dumps(training.replicas.settings)) + 20_000
    numbers = [task.first_noise + i for task in tasks for i in range(len(task.rates))]
    assert len(set(numbers)) == len(numbers), "no two steps corrupt the same entries"


def test_the_learning_rate_falls_over_rounds_as_over_steps(numpy_device: None, shards: Any) -> None:
    training = training_of(shards, CONFIG.changed(schedule="linear"))
    replicas = training.replicas
    assert replicas is not None
    found = []
    for epoch in range(5):
        for shares in replicas.rounds.rounds(epoch):
            tasks = [replicas.task(share, training.weights(), 5, training.steps_per_epoch) for share in shares]
            found.append(tasks[0].rates)
            assert len({task.rates[0] for task in tasks}) == 1, "all at once"
    rates = np.concatenate(found)
    n_rising = sum(map(len, found[: replicas.rounds.n_shares]))
    assert (np.diff(rates[:n_rising]) >= 0).all()
    assert (np.diff(rates[n_rising:]) <= 0).all()
    assert rates[-1] < 0.1 * rates.max() <= 0.1 * training.settings.learning_rate


def test_any_order_of_tasks_in_threads_trains_equally(numpy_device: None, shards: Any) -> None:
    """The tasks arrive in any order, and some are done twice."""
    expected = result_of(training_of(shards))
    assert result_of(training_of(shards, resident=False)) == expected
    with threads(3) as pool:
        run = runner_on(pool, 3)

        def run_twice(tasks: Any) -> Any:
            again = list(run([tasks[-1], *reversed(tasks)]))
            return list(reversed(again[1:]))

        assert result_of(training_of(shards, resident=False), run_twice) == expected
    assert result_of(training_of(shards, CONFIG.changed(seed=1))) != expected
