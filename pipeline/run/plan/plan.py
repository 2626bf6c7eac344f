"""The dry run: how long each stage would take, what memory and disk, what is there already, and what is in the way."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.device import TILE_ROWS, autoencoder_of, seconds_compiling, start_device, theanos_errors
from pipeline.run.deadline import deadline_of, epochs_that_fit, in_words, reserved_seconds
from pipeline.run.job import Prepared
from pipeline.run.plan.kept import Kept
from pipeline.run.plan.look import (
    Problems,
    free_bytes,
    heard,
    looked_at_inputs,
    looked_at_output,
    looked_at_rows,
    nearest,
)
from pipeline.run.plan.memory import available_bytes, device_bytes, stage_bytes, taken_bytes
from pipeline.run.plan.nameless import Nameless
from pipeline.run.plan.sample import (
    Pace,
    TrainingPace,
    sampled_encoding,
    sampled_scan,
    sampled_training,
    stretches,
)
from pipeline.run.space import bytes_needed
from pipeline.settings.config import Config
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype

if TYPE_CHECKING:
    from kernels.backend import Device
    from kernels.network import Network

__all__ = ["Plan", "Stage", "make_plan"]

log = logging.getLogger(__name__)


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
class Plan:
    """What a run would do; plain values.

    Attributes
    ----------
    input : dict
        ``n_shards``, ``n_rows``, ``n_inputs``, ``dtype``, ``n_bytes``; empty where the inputs cannot be used.
    model : dict
        ``widths`` of the network, ``epochs``, ``steps_per_epoch``, ``batch_size``.
    device : str
        Where the products would run; empty where nothing has to be computed, or no device can be started.
    stages : list of Stage
        In their order; without those that could not be tried out.
    memory : dict
        ``host_bytes`` and ``device_bytes`` at their peak, the ``budget`` that is set, and what is ``available`` now.
    disk : dict
        ``n_bytes`` that are going to be written for good, ``free`` and ``left`` afterwards.
    earlier : dict of str to str
        What of an earlier run is used by each stage, or why not.
    problems : list of dict
        What would stop the run: ``kind``, ``exit_code``, ``words``.
    warnings : list of str
        What it would warn of.
    """

    input: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    stages: list[Stage] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)
    disk: dict[str, int | None] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """That all stages would take."""
        return sum(stage.seconds for stage in self.stages)

    def summary(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True)
class _Sampled:
    """What was tried out."""

    scan: Pace | None
    training: TrainingPace | None
    encoding: Pace


def make_plan(config: Config, tell: Any = log.info) -> Plan:
    """Look at the inputs, the output and the device, and try each stage for a moment; nothing is written.

    Parameters
    ----------
    tell : callable
        Told what is being looked at, a few words at a time.
    """
    problems, found = Problems(), {}
    with heard() as warnings:
        start = time.monotonic()
        tell("looking at the inputs and the output")
        prepared = looked_at_inputs(config, problems, warnings)
        if prepared is not None:
            kept = looked_at_output(prepared, problems)
            found = _of_what_is_there(prepared, kept)
            if not kept.is_complete:
                found |= _of_what_is_tried(prepared, kept, (problems, warnings), start, tell)
    return Plan(
        **found,
        problems=[{"kind": type(each).__name__, "exit_code": each.exit_code, "words": str(each)} for each in problems],
        warnings=list(dict.fromkeys(warnings)),
    )


def _of_what_is_there(prepared: Prepared, kept: Kept) -> dict[str, Any]:
    shards, config = prepared.shards, prepared.config
    n_train = prepared.n_rows - round(config.validation_fraction * prepared.n_rows)
    n_bytes = sum(shard.n_rows * shard.row_bytes for shard in shards)
    network = network_of(config, shards[0].n_inputs)
    needed = 0 if kept.is_complete else max(0, bytes_needed(prepared) - kept.n_bytes) + _model_bytes(prepared, network)
    free = free_bytes(Path(config.output))
    return {
        "input": {
            "n_shards": len(shards),
            "n_rows": prepared.n_rows,
            "n_inputs": shards[0].n_inputs,
            "dtype": str(row_dtype(shards)),
            "n_bytes": n_bytes,
        },
        "model": {
            "widths": list(network.widths),
            "epochs": 0 if prepared.given else config.epochs,
            "steps_per_epoch": -(-n_train // config.batch_size),
            "batch_size": config.batch_size,
        },
        "disk": {"n_bytes": needed, "free": free, "left": None if free is None else free - needed},
        "earlier": kept.why,
    }


def _model_bytes(prepared: Prepared, network: Network) -> int:
    """Of ``encoder.npz``, in float64, and of ``model.h5``, which stands there twice where it is trained."""
    return network.n_weights * (8 + 4 * (2 if prepared.given is None else 1))


def _of_what_is_tried(
    prepared: Prepared, kept: Kept, said: tuple[Problems, list[str]], start: float, tell: Any
) -> dict[str, Any]:
    problems, _ = said
    tell("starting Theano and its device")
    device = problems.caught(lambda: start_device(prepared.config.require_device))
    if device is None:
        return {}
    seconds, taken = time.monotonic() - start - seconds_compiling(), taken_bytes()
    budget, on_host = prepared.budget, device.used == "cpu"
    resident = budget.resident if on_host else budget.resident_on_device
    held = stage_bytes(prepared, resident and on_host)
    found = {
        "device": str(device),
        "memory": {
            "host_bytes": taken + max(held.values()),
            "device_bytes": None if on_host else device_bytes(prepared, resident, TILE_ROWS),
            "budget": prepared.config.memory_budget,
            "available": available_bytes(),
        },
    }
    with theanos_errors():
        sampled = problems.caught(lambda: _sampled(prepared, resident, said, tell))
    if sampled is None:
        return found
    stages = [Stage("start", seconds, "Theano, the device and a look at the inputs")]
    return {**found, "stages": stages + _stages(prepared, kept, sampled, resident, device)}


def _sampled(prepared: Prepared, resident: bool, said: tuple[Problems, list[str]], tell: Any) -> _Sampled | None:
    """How fast each stage is; None where there are no rows to try it with."""
    tell("scanning some rows")
    pace, scan, some = sampled_scan(prepared, stretches(prepared))
    if not looked_at_rows(prepared, scan, *said):
        return None
    training = None
    if prepared.given is None:
        tell("compiling, and training on some rows")
        training, model, autoencoder = sampled_training(prepared, scan, resident)
    else:
        model = prepared.given
        autoencoder = autoencoder_of(model.scaler, model.network, row_dtype(prepared.shards))
        autoencoder.set_parameters(model.parameters)
    tell("encoding some rows")
    # On a disk that is nearly full, not even for a moment.
    folder = None if said[0] else nearest(Path(prepared.config.output))
    return _Sampled(pace, training, sampled_encoding(prepared, model, autoencoder, some, Nameless(folder)))


def _stages(prepared: Prepared, kept: Kept, sampled: _Sampled, resident: bool, device: Device) -> list[Stage]:
    n_rows, found = prepared.n_rows, list[Stage]()
    if sampled.scan and (prepared.given is None or prepared.tolerates_bad_data):
        seconds = 0.0 if kept.scan else sampled.scan.seconds_for(n_rows)
        found.append(Stage("scan", seconds, _rate(sampled.scan) if seconds else kept.why["scan"]))
    seconds = sampled.encoding.seconds_for(n_rows - kept.n_encoded)
    encoding = Stage("encoding", seconds, _rate(sampled.encoding) if seconds else kept.why["encoding"])
    if sampled.training and kept.model is not None:
        found.append(Stage("training", 0.0, kept.why["training"]))
    elif sampled.training:
        on_host, n_epochs = device.used == "cpu", prepared.config.epochs
        n_left = max(0.0, n_epochs - kept.n_steps * prepared.config.batch_size / sampled.training.n_rows)
        once = _once(prepared, sampled.training, resident)
        epoch = _epoch_seconds(sampled.training, n_rows, resident, on_host)
        left = _seconds_left(prepared.config, sum(stage.seconds for stage in found) + once, encoding.seconds)
        n_fitting = n_left if left is None else min(n_left, epochs_that_fit(left, epoch))
        what = _trained(prepared, sampled.training, n_fitting, epoch)
        found.append(Stage("training", once + n_fitting * epoch, what))
    return [*found, encoding]


def _seconds_left(config: Config, before: float, encoding: float) -> float | None:
    """For epochs, if the run were begun now; None where it may take its time."""
    now = time.time()
    ends_by = deadline_of(config, now)
    return None if ends_by is None else ends_by - now - before - reserved_seconds(encoding, config)


def _rate(pace: Pace) -> str:
    return f"{pace.n_rows / max(pace.seconds, 1e-9):,.0f} rows/s"


def _once(prepared: Prepared, pace: TrainingPace, resident: bool) -> float:
    """Seconds of a training beside its epochs."""
    reading = pace.reading.seconds_for(prepared.n_rows)
    sample = pace.reading.seconds_for(pace.n_validated + prepared.budget.max_sample_rows)
    baseline = pace.baseline.seconds_for(pace.n_validated) if pace.baseline else 0.0
    watching = 2 * pace.validation.seconds_for(pace.n_validated)  # at the start, and beside the components at the end
    return pace.compiling + pace.beginning + (reading if resident else min(sample, reading)) + baseline + watching


def _trained(prepared: Prepared, pace: TrainingPace, n_epochs: float, epoch: float) -> str:
    ends_by = deadline_of(prepared.config, time.time())
    what = f"{n_epochs:.3g} of {prepared.config.epochs} epochs, {epoch:.3g} s each at {_rate(pace.steps)}"
    what += "" if ends_by is None else f", to end by {in_words(ends_by)}"
    return what + ("; may stop early" if prepared.config.patience and pace.n_validated else "")


def _epoch_seconds(pace: TrainingPace, n_rows: int, resident: bool, on_host: bool) -> float:
    steps, watching = pace.steps.seconds_for(pace.n_rows), pace.validation.seconds_for(pace.n_validated)
    if resident:
        return steps + watching
    # The next rows are read while a device trains; where the processor does both, each takes from the other.
    reading = pace.reading.seconds_for(n_rows)
    return watching + (steps + reading if on_host else max(steps, reading))
