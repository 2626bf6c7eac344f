"""A run that is over in time: it trains for as many epochs as fit before its rows have to be encoded.

How many, is decided once, by the run's own speed, and kept in its checkpoints; the learning rate falls to its end over
these. Should epochs take longer than that later on, they become fewer, and never more again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.errors import counted
from pipeline.model import Model
from pipeline.progress import duration
from pipeline.run.job import Job
from pipeline.run.plan.nameless import Nameless
from pipeline.run.plan.sample import sampled_encoding, stretches
from pipeline.scan.ranges import Scan
from pipeline.settings.config import Config
from pipeline.settings.deadline import in_words
from pipeline.training.epochs import Training

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["InTime", "epochs_that_fit", "gave_up", "reserved_seconds", "tell_if_late"]

log = logging.getLogger(__name__)

_MARGIN, _REST = 1.25, 10.0  # of the encoding, by what it takes of some rows; seconds of what stands beside the parts
_SURE = 0.9  # of the time that is left for training, when it is shared out
_SOON = 0.05  # of the time that is left: by then it is decided, even within the first epoch
_AT_LAST = 0.5  # the same of replicas, of which one alone trains the first epoch


def reserved_seconds(encoding: float, config: Config) -> float:
    """What is to be left when training ends, if encoding takes so long."""
    return _MARGIN * encoding * (2 if config.single_file else 1) + _REST


def epochs_that_fit(left: float, epoch_seconds: float) -> int:
    """Whole epochs within the seconds that are left for training."""
    return max(0, int(left / max(epoch_seconds, 1e-9)))


class InTime:
    """Limits a training so that the run is over in time: to be called after each of its steps.

    Parameters
    ----------
    scan : Scan
        Of the rows.
    ends_by : float
        When, in seconds since 1970.
    """

    def __init__(self, job: Job, scan: Scan, ends_by: float) -> None:
        self._job, self._scan, self._ends_by = job, scan, ends_by
        self._left, self._begun = ends_by - time.time(), time.monotonic()
        self._reserve, self._epoch_seconds, self._checked = 0.0, 0.0, -1

    def __call__(self, training: Training) -> None:
        """Decide how many epochs it makes, once enough is known; later look, once an epoch, whether they still fit."""
        now, patience = training.standing, _AT_LAST if training.replicas else _SOON
        is_known = now.epoch > 0 and (now.epoch > 1 or training.replicas is None or now.n_done > 0)
        if now.n_epochs is None and (is_known or time.monotonic() - self._begun >= patience * self._left):
            self._decide(training, _SURE)
            self._tell(training)
        elif now.n_epochs is not None and now.epoch != self._checked:
            limit = now.n_epochs
            self._decide(training, 1.0)
            if training.config.epochs < limit:
                log.warning("deadline: epochs take longer than those before, so that %d fit", training.config.epochs)
        else:
            return
        self._checked = now.epoch

    def facts(self, training: Training) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "ends_by": datetime.fromtimestamp(self._ends_by).astimezone().isoformat(timespec="seconds"),
            "n_epochs": training.standing.n_epochs,
            "of": self._job.config.epochs,
            "epoch_seconds": self._epoch_seconds,
            "reserved_seconds": self._reserve,
            "note": "how many epochs fit depends on the machine's speed: the same command may make another model",
        }

    def _decide(self, training: Training, share: float) -> None:
        """Limit the training to the epochs that fit into a share of the time that is left for it."""
        now = training.standing
        if not self._reserve:
            encoding = _encoding_seconds(self._job, self._scan, training.autoencoder)
            self._reserve = reserved_seconds(encoding, self._job.config)
        self._epoch_seconds = _epoch_seconds(training)
        left = share * (self._ends_by - time.time() - self._reserve) + now.seconds  # of the epoch under way
        n_epochs = min(training.config.epochs, now.epoch + epochs_that_fit(left, self._epoch_seconds))
        if n_epochs != now.n_epochs:
            training.limit(n_epochs)

    def _tell(self, training: Training) -> None:
        log.info(
            "deadline: %d of %s fit until %s, at %s an epoch; %s of it are for the encoding",
            *(training.config.epochs, counted(self._job.config.epochs, "epoch"), in_words(self._ends_by)),
            *(duration(self._epoch_seconds), duration(self._reserve)),
        )
        if not training.config.epochs:
            log.warning("deadline: no epoch fits, so that the features are those of the start")


def gave_up(training: Mapping[str, Any]) -> str:
    """What a training, by what reports say of it, has left undone to be over in time; nothing where that is nothing."""
    told = training.get("deadline")
    if not told or told["n_epochs"] is None or told["n_epochs"] >= told["of"]:
        return ""
    if len(training["history"]) < told["n_epochs"]:  # it has stopped early
        return ""
    ends_by = in_words(datetime.fromisoformat(told["ends_by"]).timestamp())
    return f"Trained {len(training['history'])} of {told['of']} epochs to end by {ends_by}."


def tell_if_late(ends_by: float | None) -> None:
    """Warn of a run that is over only now."""
    if ends_by is not None and time.time() > ends_by:
        log.warning("deadline: over %s later than %s", duration(time.time() - ends_by), in_words(ends_by))


def _epoch_seconds(training: Training) -> float:
    """What an epoch takes: the last one, or in the first one of its kind as many steps like those that are done."""
    now, n_steps = training.standing, training.steps_per_epoch
    if now.epoch > (1 if training.replicas else 0):  # as many replicas as from here on
        return now.history[-1].seconds
    start, n_done = time.monotonic(), training.n_steps_done - now.epoch * n_steps
    if len(training.validation):
        training.autoencoder.cost(training.validation)
    return now.seconds / max(1, n_done) * n_steps + time.monotonic() - start


def _encoding_seconds(job: Job, scan: Scan, autoencoder: Autoencoder) -> float:
    """What encoding all rows would take, by some of them."""
    model = Model(scan.scaler, autoencoder.network, autoencoder.parameters(), {})
    some = [each for each in stretches(job) if each.number not in scan.unreadable]
    return sampled_encoding(job, model, autoencoder, some, Nameless(job.ledger.directory)).seconds_for(job.n_rows)
