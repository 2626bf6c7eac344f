"""Training that leaves enough time to encode all rows before a deadline.

The number of epochs is decided once, from the measured speed of this run, and is kept in its checkpoints. The learning
rate falls to its end over these epochs. If epochs take longer later on, their number is reduced; it is never raised.
Only whole epochs are planned. If not even one more fits, or if the deadline comes within an epoch, training ends at a
step of the epoch under way, and the parameters are evaluated as at the end of an epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.device import seconds_compiling
from pipeline.errors import counted
from pipeline.model import Model
from pipeline.run.context import RunContext
from pipeline.run.encoding_stage import EncodingStage
from pipeline.run.prepare import Prepared
from pipeline.run.sample import AnonymousDisk, Stretch, stretches
from pipeline.scan.ranges import Scan
from pipeline.settings.deadline import in_words
from pipeline.text import duration
from pipeline.training.epochs import Training

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["InTime", "epochs_that_fit", "gave_up", "reserved_seconds", "tell_if_late"]

log = logging.getLogger(__name__)

# The measured encoding time is raised by this factor, and these seconds are added for the files written after it.
_ENCODING_MARGIN = 1.25
_SECONDS_AFTER_ENCODING = 10.0

# The share of the time left for training that the first decision hands out.
_PLANNED_SHARE = 0.9

# The share of the time left after which the first decision is made even within the first epoch. With replicas it is
# larger, because one replica trains the first epoch alone and its speed says little about the others.
_FIRST_DECISION = 0.05
_FIRST_DECISION_OF_REPLICAS = 0.5

# Another measurement of the encoding may take this share of the time left, once an epoch and before an early end.
_MEASURING_SHARE = 0.02
_CONFIRMING_SHARE = 0.1


def reserved_seconds(encoding: float, single_file: bool) -> float:
    """Return the seconds to keep for the time after training if encoding takes `encoding` seconds."""
    n_passes = 2 if single_file else 1
    return _ENCODING_MARGIN * encoding * n_passes + _SECONDS_AFTER_ENCODING


def epochs_that_fit(left: float, epoch_seconds: float) -> float:
    """Return the number of whole epochs that `left` seconds are enough for, or the part of one if it is below 1."""
    fitting = max(0.0, left) / max(epoch_seconds, 1e-9)
    return fitting if fitting < 1 else float(int(fitting))


class EncodingTime:
    """Measured time of encoding all rows.

    A measurement that is disturbed once, for example by first reads from a cold disk, does not count if the next one is
    shorter: the estimate is the smaller one of the last two.

    Attributes
    ----------
    cost : float
        Seconds that the last measurement itself took, without those of the compiler.
    """

    def __init__(self, prepared: Prepared, context: RunContext, scan: Scan) -> None:
        self._prepared = prepared
        self._context = context
        self._scan = scan
        self._measured: list[float] = []
        self.cost = 0.0

    @property
    def seconds(self) -> float:
        """The estimate; 0 before the first measurement."""
        return min(self._measured[-2:], default=0.0)

    @property
    def is_measured(self) -> bool:
        """Whether there is a measurement."""
        return bool(self._measured)

    def measure(self, autoencoder: Autoencoder) -> None:
        """Measure once more."""
        start = time.monotonic()
        compiled_before = seconds_compiling()
        self._measured.append(_encoding_seconds(self._prepared, self._context, self._scan, autoencoder))
        self.cost = time.monotonic() - start - (seconds_compiling() - compiled_before)


class InTime:
    """Limits a training so that the run ends in time. It is called after each training step.

    Parameters
    ----------
    scan : Scan
        Scan of the rows.
    ends_by : float
        End of the run, in seconds since 1970.
    """

    def __init__(self, prepared: Prepared, context: RunContext, scan: Scan, ends_by: float) -> None:
        self._config = prepared.config
        self._ends_by = ends_by
        self._encoding = EncodingTime(prepared, context, scan)
        self._start = time.monotonic()
        self._left_at_start = ends_by - time.time()
        self._last_call = self._start
        self._checked_epoch = -1
        self._is_end_confirmed = False
        self._reserve = 0.0
        self._epoch_seconds = 0.0
        self._validation_seconds = 0.0

    def __call__(self, training: Training) -> None:
        """Decide the number of epochs once enough is known; check it once an epoch; end the training in time."""
        now = training.standing
        step_seconds = time.monotonic() - self._last_call
        if now.n_epochs is None:
            if self._can_decide(training):
                self._decide(training, _PLANNED_SHARE)
                self._log_decision(training)
                self._checked_epoch = now.epoch
        elif now.epoch != self._checked_epoch:
            limit = now.n_epochs
            self._decide(training, 1.0)
            if training.settings.epochs < limit:
                log.warning("deadline: epochs take longer than before, so that %d fit", training.settings.epochs)
            self._checked_epoch = now.epoch
        if now.n_epochs is not None and self._is_time_over(step_seconds):
            self._end(training, step_seconds)
        self._last_call = time.monotonic()

    def facts(self, training: Training) -> dict[str, Any]:
        """Return plain values for reports."""
        return {
            "ends_by": datetime.fromtimestamp(self._ends_by).astimezone().isoformat(timespec="seconds"),
            "n_epochs": training.standing.n_epochs,
            "last_epoch_part": training.last_epoch_part,
            "of": self._config.training.epochs,
            "epoch_seconds": self._epoch_seconds,
            "reserved_seconds": self._reserve,
            "note": "how many epochs fit depends on the machine's speed: the same command may make another model",
        }

    def _can_decide(self, training: Training) -> bool:
        """Return whether the speed of an epoch is known, or waiting for it would take too long."""
        now = training.standing
        if training.replicas is None:
            is_speed_known = now.epoch > 0
            patience = _FIRST_DECISION
        else:
            is_speed_known = now.epoch > 1 or (now.epoch == 1 and now.n_done > 0)
            patience = _FIRST_DECISION_OF_REPLICAS
        return is_speed_known or time.monotonic() - self._start >= patience * self._left_at_start

    def _decide(self, training: Training, share: float) -> None:
        """Limit the training to the epochs that fit into a share of the time that is left for it.

        The epoch under way counts if it fits only in part.
        """
        now = training.standing
        self._measure(training)
        self._epoch_seconds = _epoch_seconds(training)
        self._validation_seconds = _validation_seconds(training)
        fitting = self._fitting(training, share)
        if fitting < 1:  # such a consequence should not follow from one bad measurement
            self._measure(training, _CONFIRMING_SHARE)
            fitting = self._fitting(training, share)
        n_epochs = min(training.settings.epochs, now.epoch + max(1, int(fitting)))
        if n_epochs != now.n_epochs:
            training.limit(n_epochs)

    def _fitting(self, training: Training, share: float) -> float:
        """Return how many epochs fit, counted from the start of the epoch under way."""
        left = self._ends_by - time.time() - self._reserve
        return epochs_that_fit(share * left + training.standing.seconds, self._epoch_seconds)

    def _measure(self, training: Training, share: float = _MEASURING_SHARE) -> None:
        """Measure the encoding if there is no measurement yet, or if another one takes this share of the time left."""
        is_cheap = self._encoding.cost <= share * (self._ends_by - time.time())
        if not self._encoding.is_measured or is_cheap:
            self._encoding.measure(training.autoencoder)
            self._reserve = reserved_seconds(self._encoding.seconds, self._config.results.single_file)

    def _is_time_over(self, step_seconds: float) -> bool:
        """Return whether another step, as long as the last one, would leave too little time."""
        return time.time() + step_seconds + self._validation_seconds + self._reserve > self._ends_by

    def _end(self, training: Training, step_seconds: float) -> None:
        """End the training at this step, unless a new measurement of the encoding shows that there is time left."""
        if not self._is_end_confirmed:
            self._is_end_confirmed = True
            self._measure(training, _CONFIRMING_SHARE)
            if not self._is_time_over(step_seconds):
                return
        training.end_here()
        if training.last_epoch_part < 1:
            log.info(
                "deadline: training ends after %.3g %% of epoch %d, to be over by %s",
                100 * training.last_epoch_part,
                training.standing.epoch + 1,
                in_words(self._ends_by),
            )

    def _log_decision(self, training: Training) -> None:
        n_epochs = training.settings.epochs
        wanted = counted(self._config.training.epochs, "epoch")
        until = in_words(self._ends_by)
        epoch = duration(self._epoch_seconds)
        reserve = duration(self._reserve)
        if n_epochs == training.standing.epoch + 1 and self._fitting(training, 1.0) < 1:
            log.warning(
                "deadline: only a part of epoch %d of %s fits until %s, at %s an epoch; %s are reserved for the "
                "encoding",
                *(n_epochs, wanted, until, epoch, reserve),
            )
        else:
            log.info(
                "deadline: %d of %s fit until %s, at %s an epoch; %s are reserved for the encoding",
                *(n_epochs, wanted, until, epoch, reserve),
            )


def gave_up(training: Mapping[str, Any]) -> str:
    """Return a sentence about the epochs that a deadline prevented, or an empty string.

    Parameters
    ----------
    training : mapping
        The facts about a training in reports.
    """
    facts = training.get("deadline")
    if not facts or facts["n_epochs"] is None:
        return ""
    part = facts.get("last_epoch_part", 1.0)  # version 0.1.0 trained whole epochs only
    n_trained = len(training["history"]) - 1 + part if part < 1 else len(training["history"])
    if n_trained >= facts["of"]:
        return ""
    if len(training["history"]) < facts["n_epochs"]:  # stopped early, by its validation
        return ""
    ends_by = in_words(datetime.fromisoformat(facts["ends_by"]).timestamp())
    return f"Trained {n_trained:.3g} of {facts['of']} epochs to end by {ends_by}."


def tell_if_late(ends_by: float | None) -> None:
    """Warn if a run ends after its deadline."""
    if ends_by is not None and time.time() > ends_by:
        log.warning("deadline: over %s later than %s", duration(time.time() - ends_by), in_words(ends_by))


def _epoch_seconds(training: Training) -> float:
    """Return the seconds of an epoch.

    They are those of the last epoch. In the first epoch of its kind they follow from the steps taken so far.
    """
    now = training.standing
    n_alone = 1 if training.replicas else 0  # one replica trains the first epoch alone
    if now.epoch > n_alone:
        return now.history[-1].seconds
    n_steps = training.steps_per_epoch
    n_done = training.n_steps_done - now.epoch * n_steps
    return now.seconds / max(1, n_done) * n_steps + _validation_seconds(training)


def _validation_seconds(training: Training) -> float:
    """Return the seconds that the evaluation at the end of an epoch takes."""
    start = time.monotonic()
    if len(training.validation):
        training.autoencoder.cost(training.validation)
    return time.monotonic() - start


def _encoding_seconds(prepared: Prepared, context: RunContext, scan: Scan, autoencoder: Autoencoder) -> float:
    """Return the seconds that encoding all rows would take, measured on some of them.

    The first stretch of rows is encoded before the measurement: threads, buffers and the first reads of the HDF5
    library would otherwise count for every row.
    """
    model = Model(scan.scaler, autoencoder.network, autoencoder.parameters(), {})
    stage = EncodingStage(prepared, model, scan.unreadable)
    readable = [stretch for stretch in stretches(prepared) if stretch.number not in scan.unreadable]
    disk = AnonymousDisk(context.ledger.directory)

    def seconds(rows: Sequence[Stretch]) -> float:
        return stage.sample(autoencoder, rows, disk).seconds_for(prepared.n_rows)

    seconds(readable[:1])
    return seconds(readable)
