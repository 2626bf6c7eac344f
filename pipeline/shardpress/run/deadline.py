"""Training that leaves enough time to encode all rows before a deadline.

After each epoch, the number of epochs is decided again: those that fit in the time left, given the mean duration of the
later half of the epochs so far (at least four), and a measurement of the encoding. It falls when the machine gets
slower, and rises, up to the configured number, when it gets faster. The mean changes slowly, and a new number is used
only if it differs by more than a tenth of the epochs that are left. So a load that comes and goes does not make the
learning rate, which falls over these epochs, jump up and down; and at most about one epoch of the time stays unused.

If the deadline is within an epoch, training ends at a step of it. The parameters are then evaluated as at the end of an
epoch. A run that resumes uses the epochs of the interrupted run, and what is left of its time.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path

from shardpress.base.errors import quantity
from shardpress.base.text import duration
from shardpress.model.about import DeadlineFacts
from shardpress.model.device import DeviceAutoencoder
from shardpress.model.encoder import Model
from shardpress.output.disk import AnonymousDisk
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.estimate import measure_seconds, reserved_seconds, stretches
from shardpress.run.task import Fit, Task
from shardpress.scan.ranges import Scan
from shardpress.settings.kinds import time_in_words
from shardpress.training.epochs import Limit, Training

log = logging.getLogger(__name__)

_LEAST_EPOCHS = 4  # whose mean duration shows the speed
_LEAST_CHANGE = 0.1  # share of the epochs left, up to which a new number of epochs is ignored
_INTERVAL_PER_MEASUREMENT = 50  # so that measurements of the encoding take at most a fiftieth of the time


class DeadlinePolicy:
    """Policy that limits a training run so that the run ends in time (see `shardpress.training.loop._LimitPolicy`)."""

    def __init__(self, task: Task, directory: Path, scan: Scan, ends_by: float) -> None:
        self._task = task
        self._directory = directory  # of the output
        self._scan = scan
        self._ends_by = ends_by  # in seconds since 1970
        self._encodings: list[float] = []  # measured seconds that the encoding of all rows would take
        self._next_measurement = 0.0
        self._last_call = time.monotonic()
        self._decided_epoch = -1
        self._reserve = 0.0
        self._validation_seconds = 0.0

    def after_step(self, training: Training) -> Limit | None:
        """Decide the number of epochs after each epoch, and end the training in time."""
        step_seconds = time.monotonic() - self._last_call
        limit = None
        if not self._encodings:
            self._measure(training)
        if training.state.epoch != self._decided_epoch and _timed_epochs(training):
            self._decided_epoch = training.state.epoch
            limit = self._decide(training)
        if self._is_time_over(step_seconds) and len(self._encodings) == 1:
            self._measure(training)  # again, because one disturbed measurement must not end the training
        if self._is_time_over(step_seconds):
            limit = Limit(training.state.epoch + 1, ends_here=True)
            part = 100 * training.epoch_part
            log.info("deadline: training ends after %.3g %% of epoch %d, to finish in time", part, limit.n_epochs)
        self._last_call = time.monotonic()
        return limit

    def facts(self, training: Training) -> DeadlineFacts:
        return DeadlineFacts(
            ends_by=datetime.fromtimestamp(self._ends_by).astimezone().isoformat(timespec="seconds"),
            n_epochs=training.state.n_epochs,
            last_epoch_part=training.last_epoch_part,
            of=self._task.settings.training.epochs,
        )

    def _decide(self, training: Training) -> Limit | None:
        """Return the number of epochs that fit if it differs enough from the planned one. The current epoch counts."""
        if time.monotonic() >= self._next_measurement:
            self._measure(training)
        epochs = _timed_epochs(training)
        later = epochs[-max(_LEAST_EPOCHS, len(epochs) // 2) :]
        epoch_seconds = sum(later) / len(later)
        state = training.state
        left = self._ends_by - time.time() - self._reserve + state.seconds  # since the start of this epoch
        most = self._task.settings.training.epochs
        n_epochs = min(most, state.epoch + max(1, int(left / epoch_seconds)))
        n_left = training.n_epochs - state.epoch
        if state.n_epochs is not None and abs(n_epochs - state.n_epochs) <= _LEAST_CHANGE * n_left:
            return None
        log.info(
            "deadline: %d of %s fit before %s, at %s per epoch; %s are reserved for the encoding",
            n_epochs,
            quantity(most, "epoch"),
            time_in_words(self._ends_by),
            duration(epoch_seconds, 10.0),
            duration(self._reserve),
        )
        return Limit(n_epochs)

    def _measure(self, training: Training) -> None:
        """Measure the time of a validation and of the encoding, and the time to reserve for what follows training."""
        seconds, encoding = measure_seconds(
            lambda: _encoding_seconds(self._task, self._directory, self._scan, training.autoencoder)
        )
        self._next_measurement = time.monotonic() + _INTERVAL_PER_MEASUREMENT * seconds
        self._encodings.append(encoding)
        # A single disturbance, for example by first reads from a cold disk, does not count.
        self._reserve = reserved_seconds(min(self._encodings[-2:]), self._task.inputs.n_inputs)
        if len(training.validation):
            self._validation_seconds, _ = measure_seconds(lambda: training.autoencoder.cost(training.validation))

    def _is_time_over(self, step_seconds: float) -> bool:
        """Return whether too little time would be left after another step as long as the last one."""
        return time.time() + step_seconds + self._validation_seconds + self._reserve > self._ends_by


def warn_if_late(ends_by: float | None) -> None:
    if ends_by is not None and time.time() > ends_by:
        late = duration(time.time() - ends_by)
        log.warning("deadline: the run ends %s after the deadline (%s)", late, time_in_words(ends_by))


def _timed_epochs(training: Training) -> list[float]:
    """Return the seconds of the epochs that show the speed: with replicas, only one of them trains the first epoch."""
    n_alone = 1 if training.replicas else 0
    return [epoch.seconds for epoch in training.state.history[n_alone:]]


def _encoding_seconds(task: Task, directory: Path, scan: Scan, autoencoder: DeviceAutoencoder) -> float:
    """Return the seconds that encoding all rows would take, measured on some of them."""
    weights = autoencoder.parameters()
    preparation = task.conversion.preparation
    model = Model(scan.scaler, autoencoder.network, weights, offset=scan.offset, preparation=preparation)
    stage = EncodingStage(Fit(task, scan, model))
    readable = [piece for piece in stretches(task.inputs.shards, task) if piece.number not in scan.unreadable]
    disk = AnonymousDisk(directory)
    stage.sample(autoencoder, readable[:1], disk)  # so that the costs of starting do not count for every row
    pace, _ = stage.sample(autoencoder, readable, disk)
    return pace.seconds_for(task.inputs.n_rows)
