"""The dry run: how long each stage would take, what memory and disk, what is there already, and what is in the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.device import TILE_ROWS, autoencoder_of, seconds_compiling, start_device, theanos_errors
from pipeline.run.job import Prepared
from pipeline.run.plan.kept import Kept
from pipeline.run.plan.look import (
    Findings,
    free_bytes,
    heard,
    looked_at_inputs,
    looked_at_output,
    looked_at_rows,
    nearest,
)
from pipeline.run.plan.memory import available_bytes, device_bytes, stage_bytes, taken_bytes
from pipeline.run.plan.nameless import Nameless
from pipeline.run.plan.sample import sampled_encoding, sampled_scan, sampled_training, stretches
from pipeline.run.plan.times import Sampled, Stage, stages
from pipeline.run.scan_stage import offset_of, with_offset_in
from pipeline.run.space import bytes_needed
from pipeline.settings.config import Config
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = ["Plan", "make_plan"]

_BUSY = 0.75  # of the cores


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
    load, n_cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > _BUSY * n_cores:
        yield f"the machine is busy (load {load:.1f} on {n_cores} cores): times are those under that load"


def _of_what_is_there(prepared: Prepared, kept: Kept) -> dict[str, Any]:
    shards, config = prepared.shards, prepared.config
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
    taken, on_host = taken_bytes(), device.used == "cpu"
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
    disk = Nameless(None if found.problems else nearest(Path(prepared.config.results.output)))
    return Sampled(pace, training, sampled_encoding(prepared, model, autoencoder, some, disk), *where)
