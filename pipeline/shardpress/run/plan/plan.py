"""The dry run: time, memory and disk space of a run, results that it would reuse, and problems that would stop it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardpress.device import TILE_ROWS, seconds_compiling, start_device, theanos_errors
from shardpress.encoding.worker import Encoders
from shardpress.run.deadline import reserved_seconds
from shardpress.run.encoding_stage import EncodingStage, encoding_bytes
from shardpress.run.finish import finish_bytes
from shardpress.run.memory import LIBRARY_BYTES, available_bytes, device_bytes, taken_bytes
from shardpress.run.plan.checks import (
    Findings,
    Reusable,
    captured_warnings,
    check_inputs,
    check_output,
    check_rows,
    free_bytes,
    nearest_directory,
)
from shardpress.run.prepare import Prepared
from shardpress.run.sample import AnonymousDisk, Sample, StageEstimate, stretches
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import bytes_missing
from shardpress.run.training_sample import sample_training
from shardpress.run.training_stage import TrainingStage
from shardpress.settings.config import Config
from shardpress.settings.deadline import deadline_of
from shardpress.shards.shard import row_dtype

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.backend import Device

# Estimates for the report, which measures a bounded number of rows. Its classifiers and components take longer on wide
# rows.
_REPORT_SECONDS = 0.5
_REPORT_SECONDS_PER_COLUMN = 0.0025


@dataclass(frozen=True)
class Plan:
    """Plain values that describe what a run would do."""

    input: dict[str, Any] = field(default_factory=dict)  # empty if the inputs cannot be used
    model: dict[str, Any] = field(default_factory=dict)
    device: str = ""  # empty if nothing has to be computed, or no device can be started
    # Numbers of principal components, and the mean squared error of sampled rows when reconstructed from them.
    components: list[list[float]] = field(default_factory=list)
    stages: list[StageEstimate] = field(default_factory=list)  # without stages that could not be tried
    memory: dict[str, int | None] = field(default_factory=dict)
    disk: dict[str, int | None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # how they differ from those of the published result, in words
    earlier: dict[str, str] = field(default_factory=dict)  # results of an earlier run that each stage reuses
    problems: list[dict[str, Any]] = field(default_factory=list)  # ``kind``, ``exit_code``, ``words``
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain values, for JSON."""
        return {**asdict(self), "seconds": self.seconds}


def make_plan(config: Config, report_step: Callable[[str], object]) -> Plan:
    """Check the inputs, the output and the device, and run each stage for a moment. Nothing is written.

    `report_step` is called with a few words before each step.
    """
    facts: dict[str, Any] = {}
    with captured_warnings() as findings:
        start = time.monotonic()
        report_step("checking the inputs and the output")
        prepared = check_inputs(config, findings)
        if prepared is not None:
            reusable = check_output(prepared, findings)
            facts = _facts_without_sample(prepared, reusable)
            if not reusable.is_complete:
                report_step("starting Theano and the device")
                device = findings.attempt(lambda: start_device(config.machine.require_device))
                seconds = time.monotonic() - start - seconds_compiling()
                if device is not None:
                    facts |= _facts_of_sample(prepared, reusable, device, findings, report_step)
                if facts.get("stages"):
                    what = "checks of the inputs, Theano and the device"
                    facts["stages"].insert(0, StageEstimate("start", seconds, what))
    problems = [
        {"kind": type(error).__name__, "exit_code": error.exit_code, "words": str(error)} for error in findings.problems
    ]
    return Plan(**facts, problems=problems, warnings=list(dict.fromkeys(findings.warnings)))


def _facts_without_sample(prepared: Prepared, reusable: Reusable) -> dict[str, Any]:
    """Return the fields of a plan that need no computation."""
    shards = prepared.shards
    config = prepared.config
    n_train = prepared.n_fitted - round(config.validation.validation_fraction * prepared.n_fitted)
    return {
        "input": {
            "n_shards": len(shards),
            "n_rows": prepared.n_rows,
            "n_inputs": prepared.n_inputs,
            "dtype": str(row_dtype(shards)),
            "n_bytes": sum(shard.n_rows * shard.row_bytes for shard in shards),
            "columns": str(prepared.columns),
            "preparation": "" if shards[0].preparation is None else str(shards[0].preparation),
        },
        "model": {
            "widths": list(prepared.max_network.widths),
            "n_features": config.network.n_outputs,
            "epochs": 0 if prepared.given_model else config.training.epochs,
            "steps_per_epoch": -(-n_train // config.training.batch_size),
            "batch_size": config.training.batch_size,
            "replicas": config.training.replicas,
        },
        "disk": _disk(prepared, reusable),
        "files": reusable.files,
        "earlier": reusable.words,
    }


def _disk(prepared: Prepared, reusable: Reusable) -> dict[str, int | None]:
    """Return the bytes that the run would write, the free bytes now, and the free bytes afterwards."""
    n_bytes = 0
    if not reusable.is_complete:
        # The model is written twice: before the encoding, and in the index.
        n_copies = 2 if reusable.n_written < prepared.n_rows else 1
        n_bytes = bytes_missing(prepared, reusable.n_written) + prepared.max_network.n_weights * 4 * n_copies
    free = free_bytes(Path(prepared.config.results.output))
    return {"n_bytes": n_bytes, "free": free, "left": None if free is None else free - n_bytes}


def _facts_of_sample(
    prepared: Prepared, reusable: Reusable, device: Device, findings: Findings, report_step: Callable[[str], object]
) -> dict[str, Any]:
    """Return the fields of a plan that need the device or a sample of the work."""
    resident = prepared.budget.keeps_rows(device)
    facts: dict[str, Any] = {"device": str(device), "memory": _memory(prepared, device, findings)}
    with theanos_errors():
        sample = findings.attempt(
            lambda: _sample_stages(prepared, resident, device.used == "cpu", findings, report_step)
        )
    if sample is None:
        return facts
    if sample.training is not None:
        facts["components"] = [[n, error] for n, error in sample.training.components]
    return {**facts, "stages": _estimate_stages(prepared, reusable, sample)}


def _memory(prepared: Prepared, device: Device, findings: Findings) -> dict[str, int | None]:
    """Return the memory that the run would need at its peak; warn if less is available."""
    in_use = taken_bytes()
    on_host = device.used == "cpu"
    resident = prepared.budget.keeps_rows(device)
    stages = [ScanStage(prepared).memory_bytes(), encoding_bytes(prepared), finish_bytes(prepared)]
    if prepared.given_model is None:
        stages.append(TrainingStage(prepared).memory_bytes(resident and on_host))
    needed = in_use + LIBRARY_BYTES + max(stages)
    available = available_bytes()
    if 0 < available < needed:
        sizes = f"{needed / 1e6:.0f} MB of memory are needed at the peak, but {available / 1e6:.0f} MB are available"
        findings.warnings.append(f"{sizes}: lower --memory-budget")
    return {
        "host_bytes": needed,
        "device_bytes": None if on_host else device_bytes(prepared, resident, TILE_ROWS),
        "budget": prepared.config.machine.memory_budget,
        "available": available,
    }


def _sample_stages(
    prepared: Prepared, resident: bool, on_host: bool, findings: Findings, report_step: Callable[[str], object]
) -> Sample | None:
    """Run each stage on some rows; return None if no model can be trained on them."""
    report_step("scanning a sample")
    scanning = ScanStage(prepared)
    scanned = scanning.sample(stretches(prepared))
    pace = scanned.pace  # speed of the first pass over the rows
    offset = scanning.offset_of(scanned.scan) if prepared.given_model is None else prepared.given_model.offset
    if offset is not None:
        prepared = prepared.with_offset(offset)
        scanning = ScanStage(prepared)
        scanned = scanning.sample(stretches(prepared))
    if not check_rows(scanning, scanned.scan, findings):
        return None

    training = None
    encoder: Encoders | Autoencoder
    if prepared.given_model is None:
        report_step("compiling, and training on a sample")
        training, model, encoder = sample_training(prepared, scanned.scan, resident)
    else:
        model = prepared.given_model
        encoder = Encoders(model)

    report_step("encoding a sample")
    folder = None  # nothing is written to a disk that is nearly full, not even for a moment
    if not findings.problems:
        folder = nearest_directory(Path(prepared.config.results.output))
    encoding = EncodingStage(prepared, model, {})
    encoded = encoding.sample(encoder, scanned.stretches, AnonymousDisk(folder))
    return Sample(pace, training, encoded, resident, on_host)


def _estimate_stages(prepared: Prepared, reusable: Reusable, sample: Sample) -> list[StageEstimate]:
    """Return the time of each stage: 0 if its result is reused, otherwise an estimate from the sample."""
    estimates = []
    if prepared.is_scanned:
        seconds = sample.scan.seconds_for(sum(prepared.shards[i].n_rows for i in prepared.scanned))
        scan = StageEstimate(ScanStage.name, seconds, sample.scan.in_words())
        estimates.append(_reused(scan, reusable) if reusable.has_scan else scan)
    seconds = sample.encoding.seconds_for(prepared.n_rows - reusable.n_written)
    encoding = StageEstimate(EncodingStage.name, seconds, sample.encoding.in_words())
    if reusable.n_written == prepared.n_rows:
        encoding = _reused(encoding, reusable)
    if sample.training is not None:
        reserved = reserved_seconds(encoding.seconds)
        reserved += sum(estimate.seconds for estimate in estimates)
        ends_by = reusable.ends_by or deadline_of(prepared.config.timing, time.time())
        training = TrainingStage(prepared).estimate(sample, reusable.checkpoint, ends_by, reserved)
        estimates.append(_reused(training, reusable) if reusable.model is not None else training)
    what = "verification of some rows, and a sample for the report"
    report_seconds = _REPORT_SECONDS + _REPORT_SECONDS_PER_COLUMN * prepared.n_inputs
    return [*estimates, encoding, StageEstimate("report", report_seconds, what)]


def _reused(estimate: StageEstimate, reusable: Reusable) -> StageEstimate:
    """Return the estimate of a stage whose result is reused."""
    return StageEstimate(estimate.name, 0.0, reusable.words[estimate.name])
