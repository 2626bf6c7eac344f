"""From how fast some rows went to how long all of them take, stage by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.run.deadline import epochs_that_fit, reserved_seconds
from pipeline.run.job import Prepared
from pipeline.run.plan.kept import Kept
from pipeline.run.plan.sample import Pace, TrainingPace
from pipeline.settings.deadline import deadline_of, in_words

__all__ = ["Sampled", "Stage", "stages"]


_REPORT = 0.5  # seconds: of a bounded number of rows


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes
    ----------
    seconds : float
        That it would take.
    what : str
        What it does in them.
    """

    name: str
    seconds: float
    what: str


@dataclass(frozen=True)
class Sampled:
    """What was tried out.

    Attributes
    ----------
    training : TrainingPace or None
        None with a given model.
    resident : bool
        Whether training keeps all rows in memory.
    on_host : bool
        Whether the processor computes, which also reads.
    """

    scan: Pace
    training: TrainingPace | None
    encoding: Pace
    resident: bool
    on_host: bool


def stages(prepared: Prepared, kept: Kept, sampled: Sampled) -> list[Stage]:
    """Scan, training and encoding, as far as an earlier run has not done them."""
    found = list[Stage]()
    if prepared.given is None or prepared.tolerates_bad_data:
        found.append(_paced("scan", sampled.scan, 0 if kept.scan else prepared.n_rows, kept))
    encoding = _paced("encoding", sampled.encoding, prepared.n_rows - kept.n_encoded, kept)
    if sampled.training and kept.model is not None:
        found.append(Stage("training", 0.0, kept.why["training"]))
    elif sampled.training:
        reserved = reserved_seconds(encoding.seconds, prepared.config.results.single_file)
        beside = sum(stage.seconds for stage in found) + reserved
        found.append(_training(prepared, kept, sampled, beside))
    return [
        *found,
        encoding,
        Stage("report", _REPORT, "some rows are verified and looked at for the page, in about as long"),
    ]


def _paced(name: str, pace: Pace, n_rows: int, kept: Kept) -> Stage:
    return Stage(name, pace.seconds_for(n_rows), _rate(pace)) if n_rows else Stage(name, 0.0, kept.why[name])


def _rate(pace: Pace) -> str:
    return f"{pace.n_rows / max(pace.seconds, 1e-9):,.0f} rows/s"


def _training(prepared: Prepared, kept: Kept, sampled: Sampled, beside: float) -> Stage:
    """Return the training of as many epochs as fit, if there is a deadline: `beside` seconds go to other stages."""
    config, pace, now = prepared.config, sampled.training, time.time()
    assert pace is not None
    once, epoch = _once(prepared, pace, sampled.resident), _epoch_seconds(pace, prepared.n_rows, sampled)
    n_done = kept.n_steps * config.training.batch_size / pace.n_rows
    n_epochs = max(0.0, (kept.n_epochs or config.training.epochs) - n_done)
    ends_by = kept.ends_by or deadline_of(config.timing, now)
    if ends_by is not None:
        n_epochs = min(n_epochs, epochs_that_fit(ends_by - now - once - beside, epoch))
    what = f"{n_epochs:.3g} of {config.training.epochs} epochs, {epoch:.3g} s each at {_rate(pace.steps)}"
    what += "" if sampled.resident else ", streamed"
    what += "" if ends_by is None else f", to end by {in_words(ends_by)}"
    what += "; may stop early" if config.validation.patience and pace.n_validated else ""
    return Stage("training", once + n_epochs * epoch, what)


def _once(prepared: Prepared, pace: TrainingPace, resident: bool) -> float:
    """Seconds of a training beside its epochs."""
    reading = pace.reading.seconds_for(prepared.n_rows)
    sample = pace.reading.seconds_for(pace.n_validated + prepared.budget.max_sample_rows)
    baseline = pace.baseline.seconds_for(pace.n_validated) if pace.baseline else 0.0
    watching = 2 * pace.validation.seconds_for(pace.n_validated)  # at the start, and beside the components at the end
    return pace.compiling + pace.beginning + (reading if resident else min(sample, reading)) + baseline + watching


def _epoch_seconds(pace: TrainingPace, n_rows: int, sampled: Sampled) -> float:
    steps, watching = pace.steps.seconds_for(pace.n_rows), pace.validation.seconds_for(pace.n_validated)
    if sampled.resident:
        return steps + watching
    # The next rows are read while a device trains; where the processor does both, each takes from the other.
    reading = pace.reading.seconds_for(n_rows)
    return watching + (steps + reading if sampled.on_host else max(steps, reading))
