"""A replica's task in a round, and what a process keeps to do it: the model and its step, compiled, on a device.

A task carries where training stands and which rows its share has, not the rows; it can be done in any process, and more
than once: it changes nothing but its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from kernels.network import Network
from pipeline.cluster.executor import compute
from pipeline.cluster.threads import check
from pipeline.device import autoencoder_of, start_device, theanos_errors, training_step_of
from pipeline.formats import digest
from pipeline.scan.scaler import Cleaning
from pipeline.settings.resolve import ResolvedTraining
from pipeline.shards.shard import Block, Shard, block_of, first_rows
from pipeline.training.averaging import State
from pipeline.training.order import learning_rate
from pipeline.training.rounds import Rounds, Share
from pipeline.training.rows import begun, cut, rows_of

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.step import TrainingStep

__all__ = ["Done", "Replica", "ReplicaSettings", "ReplicaTask", "Replicas", "Run", "run_by", "train_replica"]


@dataclass(frozen=True)
class ReplicaSettings:
    """What all tasks of a training have in common.

    Attributes
    ----------
    dtype : str
        That holds the rows of all shards.
    n_threads : int
        That read a share.
    """

    training: ResolvedTraining
    network: Network
    cleaning: Cleaning
    dtype: str
    n_threads: int

    @property
    def n_inputs(self) -> int:
        """Columns."""
        return len(self.cleaning.scaler.minimum)

    @property
    def key(self) -> object:
        """Equal for settings, wherever they come from, that one compiled step can serve."""
        scaler = self.cleaning.scaler
        arrays = [scaler.minimum, scaler.maximum, *([] if scaler.fill is None else [scaler.fill])]
        content = digest(each.tobytes() for each in arrays)
        return self.training, self.network, self.dtype, self.cleaning.missing, scaler.clips, content


@dataclass(frozen=True)
class ReplicaTask:
    """One replica's part of a round.

    Attributes
    ----------
    state : State
        What it begins with.
    blocks : tuple of Block
        The share's pieces, as they are read.
    rates : tuple of float
        The learning rate of each step.
    first_noise : int
        Number of the first step's noise; the following ones are those behind it.
    """

    settings: ReplicaSettings
    state: State
    share: Share
    blocks: tuple[Block, ...]
    rates: tuple[float, ...]
    first_noise: int

    def __str__(self) -> str:
        rows = f"{self.blocks[0]} and {len(self.blocks) - 1} other stretches" if self.blocks else "no rows"
        return f"training on {self.share}: {rows}"


@dataclass(frozen=True)
class Done:
    """What it has come to.

    Attributes
    ----------
    costs : tuple of float
        Of the first minibatch, before its step; none without rows.
    """

    state: State
    n_rows: int
    costs: tuple[float, ...]


Run = Callable[[Sequence[ReplicaTask]], Iterable[Done]]
"""Does the tasks of a round: results in their order."""


class Replica:
    """What a process trains with.

    Parameters
    ----------
    is_resident : bool
        Whether the step has all rows already, and takes their numbers.
    """

    def __init__(self, autoencoder: Autoencoder, step: TrainingStep, is_resident: bool = False) -> None:
        self._autoencoder = autoencoder
        self._step = step
        self._is_resident = is_resident
        self._turn = threading.Lock()  # there is one set of parameters: who waits has read its rows meanwhile

    def read(self, settings: ReplicaSettings, share: Share, blocks: Sequence[Block]) -> np.ndarray:
        """A share's rows, or their numbers, one piece after the other."""
        if self._is_resident:
            return share.numbers()
        return rows_of(blocks, np.dtype(settings.dtype), settings.n_inputs, settings.cleaning, settings.n_threads)

    def train(self, task: ReplicaTask, values: np.ndarray) -> Done:
        """Take a share's steps, on what `read` has given."""
        training = task.settings.training
        n_inputs = task.settings.n_inputs

        def pieces(n_each: int) -> Iterator[np.ndarray]:
            return cut([(values, task.share.places())], n_each * training.batch_size)

        costs = list[float]()
        n_done = 0
        with self._turn:
            self._autoencoder.set_parameters(task.state.parameters)
            self._step.set_state(task.state.rule)
            for lengths in begun(self._step, pieces, training, n_inputs, task.first_noise):
                check()
                rates = task.rates[n_done : n_done + len(lengths)]
                if n_done == 0 and (cost := self._step.take(rates[:1], with_cost=True)) is not None:
                    costs = [cost]
                    rates = rates[1:]
                    check()
                if rates:
                    self._step.take(rates)
                n_done += len(lengths)
            state = State(self._autoencoder.parameters(), self._step.state())
        return Done(state, task.share.n_rows, tuple(costs))


@dataclass(frozen=True)
class Replicas:
    """A training by several replicas: how they share its rows, and one of them, that this process has.

    Attributes
    ----------
    shards : tuple of Shard
        As far as reading needs them.
    firsts : ndarray of int64
        Number of each one's first row.
    here : Replica
    """

    rounds: Rounds
    settings: ReplicaSettings
    shards: tuple[Shard, ...]
    firsts: np.ndarray
    here: Replica

    @classmethod
    def of(cls, rounds: Rounds, shards: Sequence[Shard], settings: ReplicaSettings, here: Replica) -> Replicas:
        """Keep of the shards what tasks need, each of which carries it."""
        bare = tuple(replace(shard, riders=(), left_out=()) for shard in shards)
        return cls(rounds, settings, bare, first_rows(bare), here)

    def task(self, share: Share, state: State, training: ResolvedTraining, steps_per_epoch: int) -> ReplicaTask:
        """To train on a share, from a state on.

        Parameters
        ----------
        training : ResolvedTraining
            Whose epochs the learning rate falls over.
        steps_per_epoch : int
            If one replica took them.
        """
        return ReplicaTask(
            settings=self.settings,
            state=state,
            share=share,
            blocks=self._blocks(share),
            rates=self._rates(share, training, steps_per_epoch),
            # Behind those of other shares, each of which has as many steps at most as an epoch of one replica.
            first_noise=(share.epoch * self.rounds.n_shares + share.number) * steps_per_epoch,
        )

    def _blocks(self, share: Share) -> tuple[Block, ...]:
        return tuple(block_of(self.shards, self.firsts, *piece) for piece in share.pieces)

    def _rates(self, share: Share, training: ResolvedTraining, steps_per_epoch: int) -> tuple[float, ...]:
        """As far on in the epoch as each step is, one replica would have these."""
        n = -(-share.n_rows // training.batch_size)
        at_once = self.rounds.at_once(share.epoch)
        n_rounds = self.rounds.n_shares // at_once
        n_before = share.number // at_once
        steps = ((n_before * n + i) * steps_per_epoch // (n_rounds * n) for i in range(n))
        return tuple(learning_rate(training, share.epoch * steps_per_epoch + step, steps_per_epoch) for step in steps)

    @contextmanager
    def run_here(self, epoch: int, n_done: int) -> Iterator[Run]:
        """One after the other in this process, from a share of an epoch on; the rows of the next one are read ahead."""
        shares = chain.from_iterable(self.rounds.rounds(epoch, n_done))
        with ThreadPoolExecutor(1, "read-ahead") as ahead:  # one, since each more holds a share more
            # Lazy: each step starts to read a share.
            reading = (ahead.submit(self.here.read, self.settings, each, self._blocks(each)) for each in shares)
            upcoming = next(reading, None)

            def run(tasks: Sequence[ReplicaTask]) -> Iterator[Done]:
                nonlocal upcoming
                for task in tasks:
                    assert upcoming is not None
                    values = upcoming.result()
                    upcoming = next(reading, None)
                    yield self.here.train(task, values)

            yield run


def run_by(executor: Executor, n_at_once: int) -> Run:
    """What has an executor of any kind do the tasks of a round."""
    return lambda tasks: compute([(train_replica, task) for task in tasks], executor, n_at_once)


@theanos_errors()  # in a worker's process, too: what Theano raises could hardly be sent from there
def train_replica(task: ReplicaTask) -> Done:
    """Do a task in any process.

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        When rows cannot be read.
    DeviceError, ConfigError, WriteFailed
        As `pipeline.device.start_device`.
    """
    replica = _replica_of(task.settings)
    return replica.train(task, replica.read(task.settings, task.share, task.blocks))


_replicas: dict[object, Replica] = {}  # one at most: a model is large
_making = threading.Lock()  # a model compiles once, however many threads begin with it


def _replica_of(settings: ReplicaSettings) -> Replica:
    """The replica of this process; if there is none yet, one is made on the device that the process is set to."""
    with _making:
        if (key := settings.key) not in _replicas:
            start_device()
            dtype = np.dtype(settings.dtype)
            autoencoder = autoencoder_of(settings.cleaning.scaler, settings.network, dtype)
            _replicas.clear()  # another run's, in a process that serves several
            _replicas[key] = Replica(autoencoder, training_step_of(autoencoder, settings.training, dtype, None))
        return _replicas[key]
