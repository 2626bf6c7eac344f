"""The dry run: what a run would change, how long it takes, what it needs, and all problems that would stop it.

Each stage is checked and tried by the functions of the run. Errors are collected instead of raised, and nothing is
written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shardpress.base.errors import DataError, ShardpressError, printable, quantity
from shardpress.base.runlog import collect_warnings
from shardpress.base.text import size
from shardpress.encoding.worker import Encoders
from shardpress.model.device import TILE_ROWS, seconds_compiling, start_device, theanos_errors
from shardpress.model.encoder import Model
from shardpress.output.disk import AnonymousDisk
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import check_directory
from shardpress.run.before import UnchangingDisk, existing_folder, open_readonly, with_settings_of
from shardpress.run.encoding_stage import EncodingStage, encoding_bytes
from shardpress.run.engine import compared
from shardpress.run.estimate import StageEstimate, finish_seconds, measure_seconds, reserved_seconds
from shardpress.run.finish import finish_bytes
from shardpress.run.inputs import LEFT_OUT, check_bad_shards
from shardpress.run.memory import CLUSTER_BYTES, LIBRARY_BYTES, available_bytes, device_bytes, taken_bytes
from shardpress.run.prepare import prepare
from shardpress.run.refusal import changed_files, check_change
from shardpress.run.resume import EarlierResults, checkpoint_in_words, is_complete, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_space
from shardpress.run.task import Fit, Task
from shardpress.run.training_stage import TrainingStage, training_bytes
from shardpress.scan.blocks import ScanBlock
from shardpress.settings.config import Config
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.damaged import UnusableFiles

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

T = TypeVar("T")


@dataclass(frozen=True)
class _Obstacle:
    """An error that would stop the run."""

    kind: str
    exit_code: int
    words: str


@dataclass
class Plan:
    """Plain values that describe what a run would do."""

    # Words about the input, the model and others, by their labels; empty if the inputs cannot be used.
    facts: dict[str, str] = field(default_factory=dict)
    # Rows whose features stay (``n_kept``), are ``n_encoded`` or ``n_removed``, and ``files`` that differ, in words
    change: dict[str, Any] = field(default_factory=dict)
    components: list[tuple[int, float]] = field(default_factory=list)  # as `errors_of_components` returns them
    stages: list[StageEstimate] = field(default_factory=list)  # without stages that could not be tried
    # ``n_bytes`` that are needed at the peak, and the bytes that are ``available``
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    problems: list[_Obstacle] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def attempt(self, check: Callable[..., T], *arguments: Any, where: str = "") -> T | None:
        """Return the result of `check`; None if it raises an error, which is added to the problems."""
        try:
            return check(*arguments)
        except ShardpressError as error:
            self.problems.append(_Obstacle(type(error).__name__, error.exit_code, f"{where}{error}"))
            return None


def make_plan(config: Config) -> Plan:
    """Check the inputs, the output and the device, and run each stage for a moment. Nothing is written."""
    plan = Plan()
    with collect_warnings(with_bad_files=False) as warnings, theanos_errors():
        start = time.monotonic()
        compiled = seconds_compiling()  # by earlier work of this process
        task = plan.attempt(_prepared, config, plan)
        if task is not None:
            run = _PlannedRun(task, plan)
            plan.attempt(run.load)
            run.describe()
            if not run.is_complete:
                run.check_space()
                device = plan.attempt(start_device, config.machine.require_device)
                seconds = time.monotonic() - start - (seconds_compiling() - compiled)
                plan.stages.append(StageEstimate("start", seconds, "checks of the inputs, Theano and the device"))
                if device is not None:
                    run.estimate_memory(device)
                    plan.attempt(run.try_stages, device)
    plan.warnings += warnings.first
    return plan


def _prepared(config: Config, plan: Plan) -> Task | None:
    """Return the task of a run without bad shards, which are problems unless the settings allow them.

    If no shard is left, return None.
    """

    def refuse(words: str) -> None:
        raise DataError(words)

    journal = open_readonly(config)
    try:
        task = prepare(config.changed(on_bad_data="skip", max_bad="100%"), journal)
    except UnusableFiles as error:
        if not error.reasons:
            raise
        for words in error.reasons.values():
            plan.attempt(refuse, words)
        return None
    if config.results.append and journal is not None and journal.base is not None:
        config = with_settings_of(config, journal.base)
    if config.bad_data.on_bad_data == "raise":
        for bad in task.inputs.refused:
            plan.attempt(refuse, bad.reason)
    else:
        plan.warnings += [f"{bad.reason}{LEFT_OUT}" for bad in task.inputs.refused]
        plan.attempt(check_bad_shards, config, task.inputs.bad_shards, task.inputs.n_files)
    return replace(task, settings=replace(task.settings, bad_data=config.bad_data))


class _PlannedRun:
    """A run, and the earlier results that it would use. The methods add what they find to a plan."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self._task = task
        self._plan = plan
        self._output = Path(task.settings.results.output)
        self._journal: Journal | None = None  # None if the run would refuse the output directory
        self._left: float | None = None  # seconds before the deadline
        self.is_complete = False
        self._has_scan = False
        self._model: Model | None = task.model
        self._checkpoint: Record | None = None
        self._n_encoded = 0

    def load(self) -> None:
        """Load earlier results as the run does, except that parts are not read. Check that the run can change them."""
        config = self._task.settings
        check_directory(self._output)
        self._journal = open_readonly(config) or Journal(self._output, UnchangingDisk())
        task, earlier = compared(self._journal, self._task, is_readonly=True)
        self._task = task
        self._model = task.model
        self._plan.attempt(check_change, self._journal, task)
        now = time.time()
        deadline = stored_deadline(self._journal, config, task.request, now)
        self._left = None if deadline is None else deadline.ends_by - now
        self.is_complete = task.result is not None and is_complete(task.result, task)
        if self.is_complete:
            self._n_encoded = task.inputs.n_rows
        else:
            self._load_stages(earlier)

    def _load_stages(self, earlier: EarlierResults) -> None:
        task = self._task
        scanning = ScanStage(task)
        self._has_scan = scanning.load(earlier) is not None
        scan = scanning.existing(earlier)  # even if it will be repeated, because it lists the unreadable shards
        if self._model is None and scan is not None:
            training = TrainingStage(task, scan)
            self._model = training.load(earlier)
            self._checkpoint = training.last_checkpoint(earlier)
        if self._model is not None:
            self._n_encoded = EncodingStage(Fit(task, scan, self._model)).existing(earlier).n_rows

    def describe(self) -> None:
        """Describe the input, the model and the change."""
        task = self._task
        shards = task.inputs.shards
        n_bytes = size(sum(shard.n_rows * shard.row_bytes for shard in shards))
        n_rows = quantity(task.inputs.n_rows, "row")
        rows = f"{n_rows} x {task.inputs.n_inputs} columns {AS_STORED.dtype(shards)} ({n_bytes})"
        before = [] if task.base is None else task.base.request.shards
        same = {place.base for place in task.change.places if place.is_same}
        n_new = task.inputs.n_rows - self._n_encoded
        n_removed = sum(shard.shape[0] for i, shard in enumerate(before) if i not in same)
        files = changed_files(task)
        self._plan.change = {"n_kept": self._n_encoded, "n_encoded": n_new, "n_removed": n_removed, "files": files}
        facts = self._plan.facts
        facts["input"] = f"{quantity(len(shards), 'shard')}, {rows}"
        facts["columns"] = str(task.inputs.columns)
        if task.conversion.preparation is not None:
            facts["rows"] = f"are prepared with {task.conversion.preparation}"
        if files:
            facts["files"] = "; ".join(files)
        facts["model"] = f"{' x '.join(map(str, task.max_network.widths))}, {self._model_in_words()}"
        facts["features"] = (
            f"{task.settings.network.n_outputs} in {printable(self._output)}: {self._n_encoded} rows stay, "
            f"{n_new} are encoded, {n_removed} are removed"
        )

    def _model_in_words(self) -> str:
        task = self._task
        if task.source == "kept":
            return "stays"
        if task.source == "given":
            return "is given (--model)"
        if self._model is not None:
            return "was trained by an earlier run"
        training = task.settings.training
        n_train = task.n_fitted - round(task.settings.validation.validation_fraction * task.n_fitted)
        n_steps = quantity(-(-n_train // training.batch_size), "step")
        start = "" if self._checkpoint is None else f", from {checkpoint_in_words(self._checkpoint)}"
        return f"is trained for {training.epochs} epochs of {n_steps}{start}"

    def check_space(self, row_bytes: float | None = None) -> None:
        if self._journal is not None:
            self._plan.disk = self._plan.attempt(check_space, self._journal, self._task, row_bytes) or {}

    def estimate_memory(self, device: Device) -> None:
        """Estimate the memory of the run at its peak; warn if less is available."""
        task = self._task
        on_host = device.used == "cpu"
        resident = task.budget.keeps_rows(device)
        stages = [ScanStage(task).memory_bytes(), encoding_bytes(task), finish_bytes(task)]
        if task.source == "trained":
            stages.append(training_bytes(task, resident and on_host))
        needed = taken_bytes() + LIBRARY_BYTES + max(stages)
        if task.settings.cluster.has_workers:
            needed += CLUSTER_BYTES
        available = available_bytes()
        if 0 < available < needed:
            words = f"{size(needed)} of memory are needed at the peak, but {size(available)} are available"
            self._plan.warnings.append(f"{words}: lower --memory-budget")
        self._plan.memory = {"n_bytes": needed, "available": available}
        on_device = "" if on_host else f", {size(device_bytes(task, resident, TILE_ROWS))} of its memory"
        self._plan.facts["device"] = f"{device}{on_device}"

    def try_stages(self, device: Device) -> None:
        """Run each stage on some rows, and add the estimates of their times."""
        task = self._task
        if not task.scanned:
            return
        stages = self._plan.stages
        scanning = ScanStage(task)
        sample = scanning.sample()
        scan = sample.scan
        n_scanned = sum(shard.n_rows for shard in scanning.shards)
        where = f"in a sample of {scan.n_rows} of {n_scanned} rows: " if scan.n_rows < n_scanned else ""
        self._plan.attempt(scanning.check, scan, where=where)
        if self._model is None and (scan.n_fitted < 2 or scan.constant.all()):
            return
        if task.is_scanned:
            seconds = 0.0 if self._has_scan else sample.pace.seconds_for(n_scanned)
            stages.append(StageEstimate(scanning.name, seconds, str(sample.pace)))
        if self._model is not None:
            stages.append(self._encoding(Fit(task, None, self._model), sample.stretches))
        else:
            training = TrainingStage(task, scan)
            trained = training.sample(task.budget.sizes(device), sample.stretches, sample.pace)
            self._plan.components = trained.components
            encoding = self._encoding(Fit(task, None, trained.model), sample.stretches)
            reserved = self._plan.seconds + reserved_seconds(encoding.seconds, task.inputs.n_inputs)
            stages += [training.estimate(trained, self._checkpoint, self._left, reserved), encoding]
        what = "verification of some rows, and a sample for the report"
        stages.append(StageEstimate("report", finish_seconds(task.inputs.n_inputs), what))

    def _encoding(self, fit: Fit, stretches: Sequence[ScanBlock]) -> StageEstimate:
        """Estimate the encoding from some rows. If they are compressed, they show how much space all rows need."""
        n_missing = fit.task.inputs.n_rows - self._n_encoded
        # Nothing is written to a disk that is nearly full, not even for a moment.
        disk = AnonymousDisk(None if self._plan.problems else existing_folder(self._output))
        stage = EncodingStage(fit)
        seconds, (pace, parts) = measure_seconds(lambda: stage.sample(Encoders(fit.model), stretches, disk))
        if fit.task.settings.storage.compression != "none" and not self._plan.problems:
            self.check_space(sum(part.entry.n_bytes for part in parts) / max(1, pace.n_rows))
        start = seconds - pace.seconds  # for example to compile functions
        return StageEstimate(stage.name, (start + pace.seconds_for(n_missing)) * (n_missing > 0), str(pace))
