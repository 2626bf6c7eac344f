"""Training that leaves enough time to encode all rows before a deadline.

The number of epochs is decided once, from the measured speed of this run, and is stored in its checkpoints. The
learning rate decreases to its final value over these epochs. If epochs take longer later, their number is reduced; it
is never increased. Only whole epochs are planned. If no further epoch fits, or the deadline is within an epoch,
training ends at a step of the current epoch. The parameters are then evaluated as at the end of an epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shardpress.errors import quantity
from shardpress.model import Model
from shardpress.run.context import RunContext
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.prepare import Prepared
from shardpress.run.sample import AnonymousDisk, Stretch, measure_seconds, stretches
from shardpress.scan.ranges import Scan
from shardpress.settings.deadline import in_words
from shardpress.text import duration
from shardpress.training.epochs import Limit, Training

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder

log = logging.getLogger(__name__)

# The measured encoding time is multiplied by this factor, and these seconds are added for the files written after it.
_ENCODING_MARGIN = 1.25
_SECONDS_AFTER_ENCODING = 10.0

# The first decision plans with this share of the remaining training time.
_PLANNED_SHARE = 0.9

# After this share of the remaining time, the first decision is made even within the first epoch. With replicas it is
# larger, because only one replica trains the first epoch, and its speed says little about the speed of all replicas.
_FIRST_DECISION = 0.05
_FIRST_DECISION_OF_REPLICAS = 0.5

# The encoding is measured again, once per epoch and before an early end, if that takes at most this share of the
# remaining time.
_MEASURING_SHARE = 0.02
_CONFIRMING_SHARE = 0.1


def reserved_seconds(encoding: float) -> float:
    """Return the seconds to keep for the time after training, given the seconds that the encoding takes."""
    return _ENCODING_MARGIN * encoding + _SECONDS_AFTER_ENCODING


def epochs_that_fit(left: float, epoch_seconds: float) -> float:
    """Return how many epochs fit in `left` seconds: a whole number, or a fraction below 1."""
    fitting = max(0.0, left) / max(epoch_seconds, 1e-9)
    return fitting if fitting < 1 else float(int(fitting))


class DeadlinePolicy:
    """Policy that limits a training run so that the run ends in time (see `shardpress.training.loop.LimitPolicy`)."""

    def __init__(self, prepared: Prepared, context: RunContext, scan: Scan, ends_by: float) -> None:
        self._prepared = prepared
        self._context = context
        self._scan = scan
        self._ends_by = ends_by  # in seconds since 1970
        self._measured: list[float] = []  # seconds that the encoding of all rows would take
        self._seconds_measuring = 0.0  # of the last measurement
        self._start = time.monotonic()
        self._left_at_start = ends_by - time.time()
        self._last_call = self._start
        self._checked_epoch = -1
        self._is_end_confirmed = False
        self._reserve = 0.0
        self._epoch_seconds = 0.0
        self._validation_seconds = 0.0

    def after_step(self, training: Training) -> Limit | None:
        """Decide the number of epochs when their speed is known; check it once per epoch; end the training in time."""
        step_seconds = time.monotonic() - self._last_call
        n_epochs = self._planned_epochs(training)
        limit = None
        if n_epochs is not None:
            if n_epochs != training.state.n_epochs:
                limit = Limit(n_epochs)
            if self._must_end(training, step_seconds):
                limit = Limit(training.state.epoch + 1, ends_here=True)
        self._last_call = time.monotonic()
        return limit

    def facts(self, training: Training) -> dict[str, Any]:
        return {
            "ends_by": datetime.fromtimestamp(self._ends_by).astimezone().isoformat(timespec="seconds"),
            "n_epochs": training.state.n_epochs,
            "last_epoch_part": training.last_epoch_part,
            "of": self._prepared.config.training.epochs,
            "epoch_seconds": self._epoch_seconds,
            "reserved_seconds": self._reserve,
            "note": "The number of epochs depends on the speed of the machine, so the same command can give another "
            "model.",
        }

    def _planned_epochs(self, training: Training) -> int | None:
        """Return the number of epochs of the training; None until it can be decided."""
        state = training.state
        if state.n_epochs is None:
            if not self._can_decide(training):
                return None
            n_epochs = self._epochs_in_time(training, _PLANNED_SHARE)
            self._log_decision(training, n_epochs)
        elif state.epoch != self._checked_epoch:
            n_epochs = self._epochs_in_time(training, 1.0)
            if n_epochs < state.n_epochs:
                log.warning("deadline: epochs take longer than before, so only %d fit", n_epochs)
        else:
            return state.n_epochs
        self._checked_epoch = state.epoch
        return n_epochs

    def _can_decide(self, training: Training) -> bool:
        """Return whether the speed of an epoch is known, or waiting for it would take too long."""
        state = training.state
        if training.replicas is None:
            is_speed_known = state.epoch > 0
            patience = _FIRST_DECISION
        else:
            is_speed_known = state.epoch > 1 or (state.epoch == 1 and state.n_done > 0)
            patience = _FIRST_DECISION_OF_REPLICAS
        return is_speed_known or time.monotonic() - self._start >= patience * self._left_at_start

    def _epochs_in_time(self, training: Training, share: float) -> int:
        """Return the number of epochs that fit in a share of the remaining training time.

        The current epoch counts even if only a part of it fits.
        """
        self._measure(training)
        self._epoch_seconds = _epoch_seconds(training)
        self._validation_seconds = _validation_seconds(training)
        fitting = self._fitting(training, share)
        if fitting < 1:  # measure again, because one bad measurement should not end the training
            self._measure(training, _CONFIRMING_SHARE)
            fitting = self._fitting(training, share)
        return min(training.n_epochs, training.state.epoch + max(1, int(fitting)))

    def _fitting(self, training: Training, share: float) -> float:
        """Return how many epochs fit, counted from the start of the current epoch."""
        left = self._ends_by - time.time() - self._reserve
        return epochs_that_fit(share * left + training.state.seconds, self._epoch_seconds)

    def _measure(self, training: Training, share: float = _MEASURING_SHARE) -> None:
        """Measure the encoding for the first time, or again if that takes at most this share of the time left."""
        is_cheap = self._seconds_measuring <= share * (self._ends_by - time.time())
        if self._measured and not is_cheap:
            return
        self._seconds_measuring, seconds = measure_seconds(
            lambda: _encoding_seconds(self._prepared, self._context, self._scan, training.autoencoder)
        )
        self._measured.append(seconds)
        # A single disturbance, for example by first reads from a cold disk, does not count.
        self._reserve = reserved_seconds(min(self._measured[-2:]))

    def _is_time_over(self, step_seconds: float) -> bool:
        """Return whether too little time would be left after another step as long as the last one."""
        return time.time() + step_seconds + self._validation_seconds + self._reserve > self._ends_by

    def _must_end(self, training: Training, step_seconds: float) -> bool:
        """Return whether the training must end now, according to a new measurement of the encoding."""
        if not self._is_time_over(step_seconds):
            return False
        if not self._is_end_confirmed:
            self._is_end_confirmed = True
            self._measure(training, _CONFIRMING_SHARE)
            if not self._is_time_over(step_seconds):
                return False
        if training.epoch_part < 1:
            log.info(
                "deadline: stopping the training after %.3g %% of epoch %d, to finish by %s",
                100 * training.epoch_part,
                training.state.epoch + 1,
                in_words(self._ends_by),
            )
        return True

    def _log_decision(self, training: Training, n_epochs: int) -> None:
        is_partial = n_epochs == training.state.epoch + 1 and self._fitting(training, 1.0) < 1
        log.log(
            logging.WARNING if is_partial else logging.INFO,
            "deadline: %s of %s fit before %s, at %s per epoch; %s are reserved for the encoding",
            f"only a part of epoch {n_epochs}" if is_partial else n_epochs,
            quantity(self._prepared.config.training.epochs, "epoch"),
            in_words(self._ends_by),
            duration(self._epoch_seconds),
            duration(self._reserve),
        )


def gave_up(training: Mapping[str, Any]) -> str:
    """Return a sentence about the epochs that a deadline prevented, or an empty string, from facts for the report."""
    facts = training.get("deadline")
    if not facts or facts["n_epochs"] is None:
        return ""
    part = facts["last_epoch_part"]
    n_trained = len(training["history"]) - 1 + part if part < 1 else len(training["history"])
    if n_trained >= facts["of"]:
        return ""
    if len(training["history"]) < facts["n_epochs"]:  # stopped early, because the validation cost did not improve
        return ""
    ends_by = in_words(datetime.fromisoformat(facts["ends_by"]).timestamp())
    return f"Trained {n_trained:.3g} of {facts['of']} epochs to finish by {ends_by}."


def warn_if_late(ends_by: float | None) -> None:
    if ends_by is not None and time.time() > ends_by:
        log.warning(
            "deadline: the run ends %s after the deadline (%s)", duration(time.time() - ends_by), in_words(ends_by)
        )


def _epoch_seconds(training: Training) -> float:
    """Return the duration of an epoch in seconds.

    This is the duration of the last epoch. In the first epoch, it is estimated from the steps so far.
    """
    state = training.state
    n_alone = 1 if training.replicas else 0  # one replica trains the first epoch alone
    if state.epoch > n_alone:
        return state.history[-1].seconds
    n_steps = training.steps_per_epoch
    n_done = training.n_steps_done - state.epoch * n_steps
    return state.seconds / max(1, n_done) * n_steps + _validation_seconds(training)


def _validation_seconds(training: Training) -> float:
    """Return the seconds that the evaluation at the end of an epoch takes."""
    start = time.monotonic()
    if len(training.validation):
        training.autoencoder.cost(training.validation)
    return time.monotonic() - start


def _encoding_seconds(prepared: Prepared, context: RunContext, scan: Scan, autoencoder: Autoencoder) -> float:
    """Return the seconds that encoding all rows would take, measured on some of them.

    The first stretch of rows is encoded before the measurement, so that the costs of starting threads, allocating
    buffers and first reads are not counted for every row.
    """
    model = Model(scan.scaler, autoencoder.network, autoencoder.parameters(), {})
    stage = EncodingStage(prepared, model, scan.unreadable)
    readable = [stretch for stretch in stretches(prepared) if stretch.number not in scan.unreadable]
    disk = AnonymousDisk(context.journal.directory)

    def seconds(rows: Sequence[Stretch]) -> float:
        return stage.sample(autoencoder, rows, disk).seconds_for(prepared.n_rows)

    seconds(readable[:1])
    return seconds(readable)
