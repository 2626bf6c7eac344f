"""The dry run: how long each stage would take, what memory and disk, what is there already, and what is in the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.device import TILE_ROWS, autoencoder_of, seconds_compiling, start_device, theanos_errors
from pipeline.run.deadline import epochs_that_fit, reserved_seconds
from pipeline.run.job import Prepared
from pipeline.run.memory import available_bytes, device_bytes, stage_bytes, taken_bytes
from pipeline.run.plan.look import (
    Findings,
    Kept,
    free_bytes,
    heard,
    looked_at_inputs,
    looked_at_output,
    looked_at_rows,
    nearest,
)
from pipeline.run.sample import (
    AnonymousDisk,
    Pace,
    TrainingPace,
    sampled_encoding,
    sampled_scan,
    sampled_training,
    stretches,
)
from pipeline.run.scan_stage import offset_of, with_offset_in
from pipeline.run.space import bytes_needed
from pipeline.settings.config import Config
from pipeline.settings.deadline import deadline_of, in_words
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = ["Plan", "make_plan"]

_BUSY = 0.75  # of the cores
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


@dataclass(frozen=True)
class Plan:
    """What a run would do; plain values.

    Attributes
    ----------
    input : dict
        ``n_shards``, ``n_rows``, ``n_inputs``, ``dtype``, ``n_bytes``, ``columns`` (what names them); empty where the
        inputs cannot be used.
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


def make_plan(config: Config, tell: Callable[[str], object]) -> Plan:
    """Look at the inputs, the output and the device, and try each stage for a moment; nothing is written.

    Parameters
    ----------
    tell : callable
        Told what is being looked at, in a few words.
    """
    told: dict[str, Any] = {}
    with heard() as found:
        start = time.monotonic()
        tell("looking at the inputs and the output")
        prepared = looked_at_inputs(config, found)
        if prepared is not None:
            kept = looked_at_output(prepared, found)
            told = _of_what_is_there(prepared, kept)
            if not kept.is_complete:
                found.warnings += _busy()
                tell("starting Theano and its device")
                device = found.caught(lambda: start_device(config.machine.require_device))
                seconds = time.monotonic() - start - seconds_compiling()
                told |= {} if device is None else _of_what_is_tried(prepared, kept, device, found, tell)
                if told.get("stages"):
                    told["stages"].insert(0, Stage("start", seconds, "Theano, the device and a look at the inputs"))
    problems = [{"kind": type(e).__name__, "exit_code": e.exit_code, "words": str(e)} for e in found.problems]
    return Plan(**told, problems=problems, warnings=list(dict.fromkeys(found.warnings)))


def _busy() -> Iterator[str]:
    """Whether others are at work on the machine, whose absence tonight no sample can know of."""
    load = os.getloadavg()[0]
    n_cores = len(os.sched_getaffinity(0))
    if load > _BUSY * n_cores:
        yield f"the machine is busy (load {load:.1f} on {n_cores} cores): times are those under that load"


def _of_what_is_there(prepared: Prepared, kept: Kept) -> dict[str, Any]:
    shards = prepared.shards
    config = prepared.config
    n_train = prepared.n_rows - round(config.validation.validation_fraction * prepared.n_rows)
    n_bytes = sum(shard.n_rows * shard.row_bytes for shard in shards)
    network = network_of(config.network, shards[0].n_inputs)
    return {
        "input": {
            "n_shards": len(shards),
            "n_rows": prepared.n_rows,
            "n_inputs": shards[0].n_inputs,
            "dtype": str(row_dtype(shards)),
            "n_bytes": n_bytes,
            "columns": str(prepared.columns),
        },
        "model": {
            "widths": list(network.widths),
            "epochs": 0 if prepared.given else config.training.epochs,
            "steps_per_epoch": -(-n_train // config.training.batch_size),
            "batch_size": config.training.batch_size,
            "replicas": config.training.replicas,
        },
        "disk": _disk(prepared, kept, max(0, bytes_needed(prepared) - kept.n_bytes)),
        "earlier": kept.why,
    }


def _disk(prepared: Prepared, kept: Kept, n_bytes: int) -> dict[str, int | None]:
    """What is going to be written, so many bytes of it features, and what that leaves."""
    # encoder.npz, in float64, and model.h5, which stands there twice where it is trained.
    n_weights = network_of(prepared.config.network, prepared.shards[0].n_inputs).n_weights
    n_bytes = 0 if kept.is_complete else n_bytes + n_weights * (8 + 4 * (2 if prepared.given is None else 1))
    free = free_bytes(Path(prepared.config.results.output))
    return {"n_bytes": n_bytes, "free": free, "left": None if free is None else free - n_bytes}


def _of_what_is_tried(
    prepared: Prepared, kept: Kept, device: Device, found: Findings, tell: Callable[[str], object]
) -> dict[str, Any]:
    taken = taken_bytes()
    on_host = device.used == "cpu"
    resident = prepared.budget.keeps_rows(device)
    needed = taken + max(stage_bytes(prepared, resident and on_host).values())
    memory = {
        "host_bytes": needed,
        "device_bytes": None if on_host else device_bytes(prepared, resident, TILE_ROWS),
        "budget": prepared.config.machine.memory_budget,
        "available": (available := available_bytes()),
    }
    if 0 < available < needed:
        sizes = f"{needed / 1e6:.0f} MB of memory are taken at the peak, {available / 1e6:.0f} MB are available"
        found.warnings.append(f"{sizes}: lower --memory-budget")
    with theanos_errors():
        sampled = found.caught(lambda: _sampled(prepared, (resident, on_host), found, tell))
    found_out = {"device": str(device), "memory": memory}
    if sampled is None:
        return found_out
    if prepared.config.storage.compression != "none":  # how far features can be compressed, some of them tell
        n_bytes = sampled.encoding.n_bytes * (prepared.n_rows - kept.n_encoded) // max(1, sampled.encoding.n_rows)
        found_out["disk"] = _disk(prepared, kept, n_bytes)
    return {**found_out, "stages": stages(prepared, kept, sampled)}


def _sampled(
    prepared: Prepared, where: tuple[bool, bool], found: Findings, tell: Callable[[str], object]
) -> Sampled | None:
    """How fast each stage is; None where there are no rows to try it with."""
    tell("scanning some rows")
    pace, scan, some = sampled_scan(prepared, stretches(prepared))
    offset = offset_of(prepared, scan) if prepared.given is None else prepared.given.offset
    if offset is not None:
        prepared = with_offset_in(prepared, offset)
        _, scan, some = sampled_scan(prepared, stretches(prepared))
    if not looked_at_rows(prepared, scan, found):
        return None
    training = None
    if prepared.given is None:
        tell("compiling, and training on some rows")
        training, model, autoencoder = sampled_training(prepared, scan, where[0])
    else:
        model = prepared.given
        autoencoder = autoencoder_of(model.scaler, model.network, row_dtype(prepared.shards))
        autoencoder.set_parameters(model.parameters)
    tell("encoding some rows")
    # On a disk that is nearly full, not even for a moment.
    disk = AnonymousDisk(None if found.problems else nearest(Path(prepared.config.results.output)))
    return Sampled(pace, training, sampled_encoding(prepared, model, autoencoder, some, disk), *where)


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
    config = prepared.config
    pace = sampled.training
    now = time.time()
    assert pace is not None
    once = _once(prepared, pace, sampled.resident)
    epoch = _epoch_seconds(pace, prepared.n_rows, sampled)
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
    steps = pace.steps.seconds_for(pace.n_rows)
    watching = pace.validation.seconds_for(pace.n_validated)
    if sampled.resident:
        return steps + watching
    # The next rows are read while a device trains; where the processor does both, each takes from the other.
    reading = pace.reading.seconds_for(n_rows)
    return watching + (steps + reading if sampled.on_host else max(steps, reading))
