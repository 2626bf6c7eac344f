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
from shardpress.run.prepare import Prepared, prepare
from shardpress.run.refusal import changed_files, check_change
from shardpress.run.resume import EarlierResults, checkpoint_in_words, is_complete, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_space
from shardpress.run.training_stage import TrainingStage
from shardpress.scan.blocks import Piece
from shardpress.settings.config import Config
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.damaged import UnusableFiles

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

T = TypeVar("T")


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
    problems: list[dict[str, Any]] = field(default_factory=list)  # ``kind``, ``exit_code``, ``words``
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def attempt(self, check: Callable[..., T], *arguments: Any, where: str = "") -> T | None:
        """Return the result of `check`; None if it raises an error, which is added to the problems."""
        try:
            return check(*arguments)
        except ShardpressError as error:
            words = f"{where}{error}"
            self.problems.append({"kind": type(error).__name__, "exit_code": error.exit_code, "words": words})
            return None


def make_plan(config: Config) -> Plan:
    """Check the inputs, the output and the device, and run each stage for a moment. Nothing is written."""
    plan = Plan()
    with collect_warnings() as warnings, theanos_errors():
        start = time.monotonic()
        compiled = seconds_compiling()  # by earlier work of this process
        prepared = plan.attempt(_prepared, config, plan)
        if prepared is not None:
            run = _PlannedRun(prepared, plan)
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
    problems = [problem["words"] for problem in plan.problems]
    known = {*plan.warnings, *problems, *(f"{words}{LEFT_OUT}" for words in problems)}
    plan.warnings += [words for words in warnings.first if words not in known]
    return plan


def _prepared(config: Config, plan: Plan) -> Prepared | None:
    """Return the prepared run without bad shards, which are problems unless the settings allow them.

    If no shard is left, return None.
    """

    def refuse(words: str) -> None:
        raise DataError(words)

    journal = open_readonly(config)
    try:
        prepared = prepare(config.changed(on_bad_data="skip", max_bad="100%"), journal)
    except UnusableFiles as error:
        if not error.reasons:
            raise
        for words in error.reasons.values():
            plan.attempt(refuse, words)
        return None
    if config.results.append and journal is not None and journal.base is not None:
        config = with_settings_of(config, journal.base)
    if config.bad_data.on_bad_data == "raise":
        for bad in prepared.refused:
            plan.attempt(refuse, bad["reason"])
    else:
        plan.warnings += [f"{bad['reason']}{LEFT_OUT}" for bad in prepared.refused]
        n_shards = len(prepared.shards) + len(prepared.bad_shards)
        plan.attempt(check_bad_shards, config, prepared.bad_shards, n_shards)
    return replace(prepared, config=replace(prepared.config, bad_data=config.bad_data))


class _PlannedRun:
    """A run, and the earlier results that it would use. The methods add what they find to a plan."""

    def __init__(self, prepared: Prepared, plan: Plan) -> None:
        self._prepared = prepared
        self._plan = plan
        self._output = Path(prepared.config.results.output)
        self._journal: Journal | None = None  # None if the run would refuse the output directory
        self._left: float | None = None  # seconds before the deadline
        self.is_complete = False
        self._has_scan = False
        self._model: Model | None = prepared.given_model
        self._checkpoint: Record | None = None
        self._n_encoded = 0

    def load(self) -> None:
        """Load earlier results as the run does, except that parts are not read. Check that the run can change them."""
        config = self._prepared.config
        check_directory(self._output)
        self._journal = open_readonly(config) or Journal(self._output, UnchangingDisk())
        prepared, earlier = compared(self._journal, self._prepared, is_readonly=True)
        self._prepared = prepared
        self._model = prepared.given_model
        self._plan.attempt(check_change, self._journal, prepared)
        now = time.time()
        deadline = stored_deadline(self._journal, config, prepared.request, now)
        self._left = None if deadline is None else deadline["ends_by"] - now
        self.is_complete = is_complete(self._journal, prepared)
        if self.is_complete:
            self._n_encoded = prepared.n_rows
        else:
            self._load_stages(earlier)

    def _load_stages(self, earlier: EarlierResults) -> None:
        prepared = self._prepared
        scanning = ScanStage(prepared)
        self._has_scan = scanning.load(earlier) is not None
        scan = scanning.existing(earlier)  # even if it will be repeated, because it lists the unreadable shards
        unreadable: dict[int, str] = {}
        if scan is not None:
            prepared = prepared.with_digests(scan.digests)
            unreadable = {prepared.scanned[i]: reason for i, reason in scan.unreadable.items()}
            if self._model is None:
                self._model = TrainingStage(prepared).load(earlier)
                self._checkpoint = TrainingStage(prepared).last_checkpoint(earlier)
        if self._model is not None:
            self._n_encoded = EncodingStage(prepared, self._model, unreadable).existing(earlier).n_rows

    def describe(self) -> None:
        """Describe the input, the model and the change."""
        prepared = self._prepared
        shards = prepared.shards
        n_bytes = size(sum(shard.n_rows * shard.row_bytes for shard in shards))
        rows = f"{quantity(prepared.n_rows, 'row')} x {prepared.n_inputs} columns {AS_STORED.dtype(shards)} ({n_bytes})"
        before = [] if prepared.base is None else prepared.base.request.shards
        same = {place.base for place in prepared.change.places if place.is_same}
        n_new = prepared.n_rows - self._n_encoded
        n_removed = sum(shard.shape[0] for i, shard in enumerate(before) if i not in same)
        files = changed_files(prepared)
        self._plan.change = {"n_kept": self._n_encoded, "n_encoded": n_new, "n_removed": n_removed, "files": files}
        facts = self._plan.facts
        facts["input"] = f"{quantity(len(shards), 'shard')}, {rows}"
        facts["columns"] = str(prepared.columns)
        if prepared.conversion.preparation is not None:
            facts["rows"] = f"are prepared with {prepared.conversion.preparation}"
        if files:
            facts["files"] = "; ".join(files)
        facts["model"] = f"{' x '.join(map(str, prepared.max_network.widths))}, {self._model_in_words()}"
        facts["features"] = (
            f"{prepared.config.network.n_outputs} in {printable(self._output)}: {self._n_encoded} rows stay, "
            f"{n_new} are encoded, {n_removed} are removed"
        )

    def _model_in_words(self) -> str:
        prepared = self._prepared
        if prepared.keeps_model:
            return "stays"
        if prepared.given_model is not None:
            return "is given (--model)"
        if self._model is not None:
            return "was trained by an earlier run"
        training = prepared.config.training
        n_train = prepared.n_fitted - round(prepared.config.validation.validation_fraction * prepared.n_fitted)
        n_steps = quantity(-(-n_train // training.batch_size), "step")
        start = "" if self._checkpoint is None else f", from {checkpoint_in_words(self._checkpoint)}"
        return f"is trained for {training.epochs} epochs of {n_steps}{start}"

    def check_space(self, row_bytes: float | None = None) -> None:
        if self._journal is not None:
            self._plan.disk = self._plan.attempt(check_space, self._journal, self._prepared, row_bytes) or {}

    def estimate_memory(self, device: Device) -> None:
        """Estimate the memory of the run at its peak; warn if less is available."""
        prepared = self._prepared
        on_host = device.used == "cpu"
        resident = prepared.budget.keeps_rows(device)
        stages = [ScanStage(prepared).memory_bytes(), encoding_bytes(prepared), finish_bytes(prepared)]
        if prepared.given_model is None:
            stages.append(TrainingStage(prepared).memory_bytes(resident and on_host))
        needed = taken_bytes() + LIBRARY_BYTES + max(stages)
        if prepared.config.cluster.workers or prepared.config.cluster.scheduler:
            needed += CLUSTER_BYTES
        available = available_bytes()
        if 0 < available < needed:
            words = f"{size(needed)} of memory are needed at the peak, but {size(available)} are available"
            self._plan.warnings.append(f"{words}: lower --memory-budget")
        self._plan.memory = {"n_bytes": needed, "available": available}
        on_device = "" if on_host else f", {size(device_bytes(prepared, resident, TILE_ROWS))} of its memory"
        self._plan.facts["device"] = f"{device}{on_device}"

    def try_stages(self, device: Device) -> None:
        """Run each stage on some rows, and add the estimates of their times."""
        if not self._prepared.scanned:
            return
        stages = self._plan.stages
        sample = ScanStage(self._prepared).sample()
        scanning = sample.stage
        prepared = scanning.prepared
        n_scanned = sum(shard.n_rows for shard in scanning.shards)
        where = f"in a sample of {sample.scan.n_rows} of {n_scanned} rows: " if sample.scan.n_rows < n_scanned else ""
        self._plan.attempt(scanning.check, sample.scan, where=where)
        if self._model is None and (sample.scan.n_fitted < 2 or sample.scan.constant.all()):
            return
        if prepared.is_scanned:
            seconds = 0.0 if self._has_scan else sample.pace.seconds_for(n_scanned)
            stages.append(StageEstimate(scanning.name, seconds, str(sample.pace)))
        model = self._model
        training = None
        if model is None:
            stage = TrainingStage(prepared, sample.scan)
            training = stage.sample(prepared.budget.sizes(device), sample.stretches, sample.pace)
            self._plan.components = training.components
            model = training.model
        encoding = self._encoding(prepared, model, sample.stretches)
        if training is not None:
            reserved = self._plan.seconds + reserved_seconds(encoding.seconds, prepared.n_inputs)
            stages.append(stage.estimate(training, self._checkpoint, self._left, reserved))
        what = "verification of some rows, and a sample for the report"
        stages += [encoding, StageEstimate("report", finish_seconds(prepared.n_inputs), what)]

    def _encoding(self, prepared: Prepared, model: Model, stretches: Sequence[Piece]) -> StageEstimate:
        """Estimate the encoding from some rows. If they are compressed, they show how much space all rows need."""
        n_missing = prepared.n_rows - self._n_encoded
        # Nothing is written to a disk that is nearly full, not even for a moment.
        disk = AnonymousDisk(None if self._plan.problems else existing_folder(self._output))
        stage = EncodingStage(prepared, model, {})
        seconds, (pace, parts) = measure_seconds(lambda: stage.sample(Encoders(model), stretches, disk))
        if prepared.config.storage.compression != "none" and not self._plan.problems:
            self.check_space(sum(part.entry.n_bytes for part in parts) / max(1, pace.n_rows))
        start = seconds - pace.seconds  # for example to compile functions
        return StageEstimate(stage.name, (start + pace.seconds_for(n_missing)) * (n_missing > 0), str(pace))
