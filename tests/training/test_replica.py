"""Tests of training by replicas: the bits do not depend on where tasks run, or on interruptions."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, Security

from shardpress.cluster.threads import threads
from shardpress.cluster.workers import Cluster as Scheduler
from shardpress.cluster.workers import ClusterPool, quiet_dask
from shardpress.errors import TrainingDiverged
from shardpress.hdf5.shard import Shard
from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import Scaler
from shardpress.settings import replicas as sizes_module
from shardpress.settings.resolve import Settings
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training import replica as module
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Training
from shardpress.training.fit import Sizes, prepare_training
from shardpress.training.replica import RoundRunner, runner_on
from tests.support import standin
from tests.support.clusters import Cluster
from tests.support.helpers import write_shard
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

CONFIG = settings_of(
    **{**ONE_LAYER, "replicas": 3},
    **{"n_features": 2, "batch_size": 8, "learning_rate": 0.01, "epochs": 5, "validation_fraction": 0.2},
)
DEEP = CONFIG.changed(hidden=(7,), activation="leaky-relu", decoder_gain=True, corruption=0.25)
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


def result_of(
    training: Training, runner: RoundRunner | None = None, save: Callable[[Checkpoint], object] | None = None
) -> Any:
    """Return the result of a training run."""
    done = train(training, save, 0.0, runner)
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


def test_divergence_of_a_replica_names_its_share(
    numpy_device: None, shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin.TrainingStep, "take_one", lambda *arguments: np.nan)
    with pytest.raises(TrainingDiverged, match=r"\bepoch 0, share 0\b.*\bnan\b"):
        train(training_of(shards))


def test_a_task_of_a_share_contains_no_rows(numpy_device: None, shards: Any) -> None:
    training = training_of(shards)
    assert training.replicas is not None
    shares = next(training.replicas.rounds.rounds(1))
    tasks = [
        training.replicas.task(share, training.weights(), training.n_epochs, training.steps_per_epoch)
        for share in shares
    ]
    assert len(tasks) == 3
    for task, share in zip(tasks, shares, strict=True):
        sent = pickle.loads(pickle.dumps(task))
        assert sent.settings.key == training.replicas.settings.key
        assert sum(map(len, sent.blocks)) == share.n_rows + len(share.left_out)
        assert len(sent.rates) == -(-share.n_rows // 8)
    assert len(pickle.dumps(tasks[0])) < 2 * len(pickle.dumps(training.replicas.settings)) + 20_000
    numbers = [task.first_noise + i for task in tasks for i in range(len(task.rates))]
    assert len(set(numbers)) == len(numbers), "no two steps corrupt the same entries"


def test_the_learning_rate_falls_over_rounds_as_over_steps(numpy_device: None, shards: Any) -> None:
    training = training_of(shards, CONFIG.changed(schedule="linear"))
    replicas = training.replicas
    n_steps = training.steps_per_epoch
    found = []
    assert replicas is not None
    for epoch in range(5):
        for shares in replicas.rounds.rounds(epoch):
            tasks = [replicas.task(share, training.weights(), training.n_epochs, n_steps) for share in shares]
            found.append(tasks[0].rates)
            assert len({task.rates[0] for task in tasks}) == 1, "all at once"
    rates = np.concatenate(found)
    rising = sum(map(len, found[: replicas.rounds.n_shares]))
    assert (np.diff(rates[:rising]) >= 0).all()
    assert (np.diff(rates[rising:]) <= 0).all()
    assert rates.max() <= training.settings.learning_rate
    assert rates[-1] < 0.1 * training.settings.learning_rate


def test_resident_rows_streamed_rows_and_threads_train_equally(numpy_device: None, shards: Any) -> None:
    expected = result_of(training_of(shards))
    assert result_of(training_of(shards, resident=False)) == expected
    with threads(3) as pool:
        assert result_of(training_of(shards, resident=False), runner_on(pool, 3)) == expected
    assert result_of(training_of(shards, CONFIG.changed(seed=1))) != expected


@pytest.mark.process
@pytest.mark.compiler
def test_processes_train_equally_in_any_order_of_tasks(shards: Any) -> None:
    """The tasks arrive in any order, and some are done twice."""
    expected = result_of(training_of(shards, DEEP))
    assert result_of(training_of(shards, DEEP, resident=False)) == expected
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:

        def run_twice(tasks: Any, run: RoundRunner) -> Any:
            again = run([tasks[-1], *reversed(tasks)])
            return list(reversed(again[1:]))

        assert (
            result_of(training_of(shards, DEEP, resident=False), partial(run_twice, run=runner_on(pool, 2))) == expected
        )


@pytest.mark.compiler
@pytest.mark.process
def test_workers_that_die_or_join_in_training_change_no_bit(shards: Any, tmp_path: Path) -> None:
    """One of the two workers is killed at the start of a round; another worker joins later."""
    expected = result_of(training_of(shards, DEEP))
    n_rounds = count(1)
    with Cluster(tmp_path / "cluster") as cluster, quiet_dask():
        for name in "ab":
            cluster.start_worker(name)
        with Client(scheduler_file=str(cluster.file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=240)
            scheduler = Scheduler("scheduler", "", Security(), patience=240)
            with ClusterPool(client, scheduler).watched() as pool, pool.executor(1) as where:

                def run(tasks: Any) -> Any:
                    number = next(n_rounds)
                    timer = threading.Timer(0.01, cluster.kill, ["a"])
                    if number == 11:
                        timer.start()
                    if number == 12:
                        cluster.start_worker("c")
                    done = runner_on(*where)(tasks)
                    if number == 11:
                        timer.join(240)
                    return done

                assert result_of(training_of(shards, DEEP, resident=False), run) == expected
    assert next(n_rounds) == 9 + 4 * 3 + 1
