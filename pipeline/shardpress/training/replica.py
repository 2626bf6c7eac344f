"""Replicas of a model: the tasks of a round, and the compiled model that a process uses for them.

A task holds the initial weights and the location of its rows, not the rows themselves. Any process can run it, and can
run it more than once, because a task has no effect except its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np

from shardpress.base.errors import quantity
from shardpress.base.formats import digest
from shardpress.base.processcache import ProcessCache
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import check
from shardpress.hdf5.shard import Block, Shard, block_of, first_rows
from shardpress.model.device import (
    DeviceAutoencoder,
    DeviceStep,
    autoencoder_of,
    start_device,
    theanos_errors,
    training_step_of,
)
from shardpress.model.scaler import Cleaning
from shardpress.settings.resolve import ResolvedTraining
from shardpress.shards.conversion import Conversion
from shardpress.training.averaging import Weights
from shardpress.training.feed import StepFeed, cut, read_ahead, rows_of
from shardpress.training.order import learning_rate
from shardpress.training.rounds import Rounds, Share
from shardpress_kernels.network import Network, TargetLoss


@dataclass(frozen=True)
class ReplicaSettings:
    """Settings shared by all tasks of a training run."""

    training: ResolvedTraining
    network: Network
    conversion: Conversion
    cleaning: Cleaning
    dtype: str  # dtype that holds the rows of all shards
    n_threads: int  # threads that read a share
    loss: TargetLoss | None = None

    @property
    def key(self) -> object:
        """Key shared by all settings that can use the same compiled step."""
        scaler = self.cleaning.scaler
        values = [getattr(scaler, field.name) for field in fields(scaler)]
        content = digest(value.tobytes() for value in values if isinstance(value, np.ndarray))
        facts = (self.training, self.network, self.loss, self.dtype, self.cleaning.missing, scaler.clips)
        return *facts, content


@dataclass(frozen=True)
class _ReplicaTask:
    """The work of one replica in a round."""

    settings: ReplicaSettings
    weights: Weights  # initial weights
    share: Share
    blocks: tuple[Block, ...]  # row ranges of the share, in reading order
    rates: tuple[float, ...]  # learning rate of each step
    first_noise: int  # noise seed of the first step; it increases by 1 per step
    targets: np.ndarray | None = None  # (n,), float32: targets of the rows of all blocks, if the network has a head

    def __str__(self) -> str:
        rows = str(self.blocks[0]) if self.blocks else "no rows"
        n_others = len(self.blocks) - 1
        if n_others > 0:
            rows += f" and {quantity(n_others, 'other row range')}"
        return f"training on {self.share}: {rows}"


@dataclass(frozen=True)
class _ReplicaResult:
    weights: Weights
    n_rows: int
    cost: float | None  # cost of the first minibatch before its step; None if the share has no rows


RoundRunner = Callable[[Sequence[_ReplicaTask]], Iterable[_ReplicaResult]]
"""Function that runs the tasks of a round and returns their results in the same order."""


class Replica:
    """Compiled model and training step of one process. If `is_resident`, the step takes row numbers instead of rows."""

    def __init__(self, autoencoder: DeviceAutoencoder, step: DeviceStep, is_resident: bool = False) -> None:
        self._autoencoder = autoencoder
        self._step = step
        self._is_resident = is_resident
        # All threads share one set of parameters. Threads read their rows before they wait for the lock.
        self._lock = threading.Lock()

    def read(self, settings: ReplicaSettings, share: Share, blocks: Sequence[Block]) -> np.ndarray:
        """Return the rows of a share, or their numbers, one piece after the other."""
        if self._is_resident:
            return share.numbers()
        dtype = np.dtype(settings.dtype)
        n_inputs = settings.network.n_inputs
        return rows_of(blocks, settings.conversion, dtype, n_inputs, settings.cleaning, settings.n_threads)

    def train(self, task: _ReplicaTask, values: np.ndarray) -> _ReplicaResult:
        """Take the steps of a task on the rows or numbers that `read` returned for it."""
        with self._lock:
            self._autoencoder.set_parameters(task.weights.parameters)
            self._step.set_state(task.weights.rule)
            cost = self._take_steps(task, values)
            weights = Weights(self._autoencoder.parameters(), self._step.state())
        return _ReplicaResult(weights, task.share.n_rows, cost)

    def _take_steps(self, task: _ReplicaTask, values: np.ndarray) -> float | None:
        """Take the steps; return the cost before the first step, or None if there are no rows."""
        feed = self._feed(task, values)
        first_cost = None
        n_done = 0
        while n_ready := feed.n_ready():
            check()
            n_steps = n_ready if n_done else 1
            _n_rows, cost = feed.take(task.rates[n_done : n_done + n_steps], with_cost=n_done == 0)
            if n_done == 0:
                first_cost = cost
            n_done += n_steps
        return first_cost

    def _feed(self, task: _ReplicaTask, values: np.ndarray) -> StepFeed:
        training = task.settings.training

        def pieces_of(array: np.ndarray) -> Callable[[int], Iterator[np.ndarray]]:
            return lambda n_each: cut([(array, task.share.places())], n_each * training.batch_size)

        targets = None if task.targets is None else pieces_of(task.targets)
        network = task.settings.network
        return StepFeed(self._step, pieces_of(values), network, training, task.first_noise, targets)


@dataclass
class Replicas:
    """Training with several replicas: how the rows are distributed, and the replica of this process."""

    rounds: Rounds
    settings: ReplicaSettings
    shards: Sequence[Shard]
    own_replica: Replica  # replica of this process
    targets: np.ndarray | None = None  # (n_rows,), float32: targets of all rows, if the network has a head

    def __post_init__(self) -> None:
        # Every task contains a copy of its shards, but needs only what is needed to read rows.
        self.shards = tuple(replace(shard, extras=(), left_out=()) for shard in self.shards)
        self._firsts = first_rows(self.shards)

    def task(self, share: Share, weights: Weights, n_epochs: int, steps_per_epoch: int) -> _ReplicaTask:
        """Return the task of training on a share, given the initial weights.

        The learning rate falls over `n_epochs`. An epoch has `steps_per_epoch` steps if one replica trains alone.
        """
        blocks = self._blocks(share)
        return _ReplicaTask(
            settings=self.settings,
            weights=weights,
            share=share,
            blocks=blocks,
            rates=tuple(self._rates(share, n_epochs, steps_per_epoch)),
            # Shares never reuse noise seeds, because no share has more than `steps_per_epoch` steps.
            first_noise=(share.epoch * self.rounds.n_shares + share.number) * steps_per_epoch,
            targets=None if self.targets is None else self.targets[share.numbers()],
        )

    def _blocks(self, share: Share) -> tuple[Block, ...]:
        return tuple(block_of(self.shards, self._firsts, *piece) for piece in share.pieces)

    def _rates(self, share: Share, n_epochs: int, steps_per_epoch: int) -> Iterator[float]:
        """Yield the rates that one replica would have at the same positions of the epoch."""
        training = self.settings.training
        n_steps = -(-share.n_rows // training.batch_size)
        at_once = self.rounds.at_once(share.epoch)
        n_rounds = self.rounds.n_shares // at_once
        n_before = share.number // at_once * n_steps
        first = share.epoch * steps_per_epoch
        for i in range(n_steps):
            step = first + (n_before + i) * steps_per_epoch // (n_rounds * n_steps)
            yield learning_rate(training, step, steps_per_epoch, n_epochs)

    @contextmanager
    def runner_here(self, epoch: int, n_done: int) -> Iterator[RoundRunner]:
        """Provide a runner that runs all tasks in this process and meanwhile reads the rows of the next task.

        It starts after the first `n_done` tasks of an epoch.
        """

        def read_share(share: Share) -> np.ndarray:
            return self.own_replica.read(self.settings, share, self._blocks(share))

        shares = chain.from_iterable(self.rounds.rounds(epoch, n_done))
        with closing(read_ahead(read_share, shares)) as shares_with_rows:

            def run(tasks: Sequence[_ReplicaTask]) -> Iterator[_ReplicaResult]:
                for task in tasks:
                    _share, values = next(shares_with_rows)
                    yield self.own_replica.train(task, values)
                    del values  # free these rows before another share is read

            yield run


def runner_on(executor: Executor, n_at_once: int) -> RoundRunner:
    """Return a runner that runs the tasks of a round on an executor of any kind."""
    return lambda tasks: compute([(_train_replica, task) for task in tasks], executor, n_at_once)


@theanos_errors()  # also in a worker process, because most of Theano's exceptions cannot be pickled
def _train_replica(task: _ReplicaTask) -> _ReplicaResult:
    replica = _replicas.get_or_make(task.settings.key, lambda: _compiled_replica(task.settings))
    return replica.train(task, replica.read(task.settings, task.share, task.blocks))


_replicas = ProcessCache[object, Replica](max_size=1)  # a model is large


def _compiled_replica(settings: ReplicaSettings) -> Replica:
    start_device()
    dtype = np.dtype(settings.dtype)
    autoencoder = autoencoder_of(settings.cleaning.scaler, settings.network, dtype)
    step = training_step_of(autoencoder, settings.training, dtype, None, settings.loss)
    return Replica(autoencoder, step)
