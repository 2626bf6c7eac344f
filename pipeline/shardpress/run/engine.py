"""A run: what is left to do, and then the stages in order. Each is loaded from an earlier run or computed.

First, resumed and repeated runs, appends and new generations differ only in their `Change`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec import structs

from shardpress.base.errors import TryAgain, printable
from shardpress.base.progress import activity
from shardpress.base.runlog import collect_warnings
from shardpress.cluster.pool import open_pool
from shardpress.cluster.probe import Probe
from shardpress.model.device import is_compiling, n_device_calls, start_device, theanos_errors
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal
from shardpress.output.lock import locked
from shardpress.report.summary import report_of
from shardpress.run.before import base_of, open_readonly
from shardpress.run.context import RunContext, RunState
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.finish import check_same_rows, finish, write_derived
from shardpress.run.outcome import Outcome
from shardpress.run.prepare import prepare
from shardpress.run.refusal import check_change, log_change
from shardpress.run.resume import EarlierResults, is_complete, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_space
from shardpress.run.task import Fit, Task
from shardpress.run.training_stage import TrainingStage
from shardpress.run.watch import watching
from shardpress.settings.config import Config
from shardpress.shards.rows import keep_chunks
from shardpress.training.complaints import complaints

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Stage(Protocol[T]):
    """One stage of a run, created with the results of the stages before it."""

    @property
    def name(self) -> str: ...

    def load(self, earlier: EarlierResults) -> T | None:
        """Return the complete result of an earlier run with the same key, or None. Nothing new is written."""
        ...

    def make(self, context: RunContext) -> T:
        """Compute the result, or the missing part of it, and name its files in the journal."""
        ...

    def check(self, result: T) -> None:
        """Log warnings about a result; raise an error if the settings do not allow it."""
        ...


def run(
    config: Config,
    command: Sequence[str],
    disk: Disk | None = None,
    on_locked: Callable[[Path], object] = lambda directory: None,
) -> Outcome:
    """Scan, train and encode, or resume an interrupted run in the same directory.

    Parameters
    ----------
    command : sequence of str
        The command line, for the result.
    on_locked : callable
        Function that is called with the output directory once it is locked.

    Raises
    ------
    ShardpressError
        One of its subclasses, for everything that a user can fix. A note describes the progress of the run.
    """
    with collect_warnings() as warnings, watching(n_device_calls, is_compiling) as watch:
        state = RunState(warnings, watch)
        results = config.results
        before = open_readonly(config)
        task = prepare(config, before)
        output = Path(results.output)
        earlier = None if before is None else before.published
        with locked(output, disk, results.restart, results.append or results.retrain, earlier) as journal:
            on_locked(journal.directory)
            return _run_in(journal, task, state, command)


def _run_in(journal: Journal, task: Task, state: RunState, command: Sequence[str]) -> Outcome:
    config = task.settings
    base = base_of(journal)
    if base != task.base:
        raise TryAgain(
            f"output={printable(journal.directory)}: another run has published results in this directory meanwhile. "
            "Run the same command again."
        )
    if config.results.restart:
        log.info(
            "output=%s: starting over; earlier results stay until this run is finished. To resume it after an "
            "interruption, repeat the command without --restart.",
            printable(journal.directory),
        )
    journal.sweep()  # removes files of a killed run before new files need the space
    task, earlier = compared(journal, task)
    check_change(journal, task)
    result = task.result
    if result is not None and is_complete(result, task):
        if base is not None and task.request.shards != base.request.shards:
            journal.set_request(task.request)  # with the current times of the files, which no later run compares
        write_derived(journal, result, task.inputs.descriptions)
        state.end_stage("verification")
        report = report_of(result)
        summary = structs.replace(report.summary, seconds=state.seconds, compiling=0.0)
        generation = result.facts.model.generation
        return Outcome(config.results.output, summary, report.judgment.remark, generation, is_repetition=True)
    log_change(task)
    # The request comes before the first result, so that results can be attributed to it.
    deadline = stored_deadline(journal, config, task.request, state.began)
    journal.set_request(task.request, deadline)
    state.ends_by = None if deadline is None else deadline.ends_by
    return _compute(journal, task, earlier, state, command)


def compared(journal: Journal, task: Task, is_readonly: bool = False) -> tuple[Task, EarlierResults]:
    """Return the task with the intact parts of the result that stay, and all intact results of the directory.

    If it `is_readonly`, files are compared by their sizes only.
    """
    config = task.settings
    n_threads = task.budget.n_threads
    compares_digests = config.results.verify == "digests" and not is_readonly
    earlier = EarlierResults(journal, n_threads, compares_digests, is_readonly)
    # An append would take long to read all parts of the result, which can be far larger than its files.
    reads_parts = compares_digests and not config.results.append
    published = EarlierResults(journal, n_threads, reads_parts, is_readonly)
    return task.keeping(published.published_parts()), earlier


def _compute(journal: Journal, task: Task, earlier: EarlierResults, state: RunState, command: Sequence[str]) -> Outcome:
    """Start the device and the workers, and run the stages."""
    config = task.settings
    check_space(journal, task)
    # Theano takes seconds to start, and a finished run does not need it.
    with activity("device: loading Theano", "a few seconds"):
        device = start_device(config.machine.require_device)
    if config.machine.require_device and device.requested == "cpu" and not config.cluster.has_workers:
        log.warning("--require-device checks nothing on the CPU. Name a device: THEANO_FLAGS=device=cuda.")
    output = str(journal.directory.absolute())
    inputs = (task.inputs.shards[0].path, task.inputs.shards[-1].path)
    probe = Probe(os.getcwd(), output, inputs, config.cluster.mixed_processors)
    n_writers = task.budget.n_writers
    with open_pool(config.cluster, n_writers, start_device, probe, config.machine.require_device) as pool:
        state.end_stage("start")
        context = RunContext(journal, earlier, device, pool, state, command)
        try:
            with theanos_errors():
                return _run_stages(task, context)
        except BaseException as error:
            error.add_note(context.progress_in_words(task.inputs.n_rows))
            raise


def _run_stages(task: Task, context: RunContext) -> Outcome:
    keep_chunks(task.budget.chunk_bytes)  # needed if the scan is reused; otherwise its tasks do the same
    fit = _fit(task, context)
    stage = EncodingStage(fit)
    encoding = _load_or_make(stage, context)
    context.state.features_key = stage.key  # for the message of a run that fails later
    check_same_rows(context.journal, encoding)
    return finish(encoding, context)


def _fit(task: Task, context: RunContext) -> Fit:
    """Scan the rows, and train the model unless it is given or stays."""
    if task.model is None:
        scan = _load_or_make(ScanStage(task), context)
        return Fit(task, scan, _load_or_make(TrainingStage(task, scan), context))
    counted = _load_or_make(ScanStage(task), context) if task.is_scanned else None
    if task.kept is not None:
        context.state.reused[TrainingStage.name] = "the model"
        if task.kept.facts.model.source == "trained" and not task.appends:
            # The page of this run replaces the one with these warnings.
            for complaint in complaints(task.model.about, task.settings.training, task.model.network):
                log.warning("%s", complaint)
    return Fit(task, counted, task.model)


def _load_or_make(stage: _Stage[T], context: RunContext) -> T:
    """Return the result of a stage: from an earlier run if possible, otherwise computed now."""
    result = stage.load(context.earlier)
    if result is None:
        result = stage.make(context)
    else:
        log.info("%s: reusing the result of an earlier run", stage.name)
        context.state.reused[stage.name] = f"the {stage.name}"
    # The check comes after `make`, so that a run with more tolerant settings can reuse the result.
    stage.check(result)
    context.state.end_stage(stage.name)
    return result
