"""A run: what is left to do, and then the stages in order. Each is loaded from an earlier run or computed.

First, resumed and repeated runs, appends and new generations differ only in their `Change`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from shardpress.base.errors import TryAgain, printable
from shardpress.base.progress import activity
from shardpress.base.runlog import collect_warnings
from shardpress.cluster.executor import compute
from shardpress.cluster.pool import open_pool
from shardpress.cluster.probe import Probe
from shardpress.cluster.threads import threads
from shardpress.model.device import is_compiling, n_device_calls, start_device, theanos_errors
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal
from shardpress.output.lock import locked
from shardpress.run.before import base_of, open_readonly
from shardpress.run.contents import with_content
from shardpress.run.context import RunContext, RunState
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.finish import StageResults, check_same_rows, finish, write_derived
from shardpress.run.prepare import Prepared, prepare
from shardpress.run.refusal import check_change, log_change
from shardpress.run.resume import EarlierResults, is_complete, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_space
from shardpress.run.stage import load_or_make
from shardpress.run.summary import Summary
from shardpress.run.training_stage import TrainingStage
from shardpress.run.watch import watching
from shardpress.scan.ranges import Scan
from shardpress.settings.config import Config
from shardpress.shards.rows import keep_chunks

log = logging.getLogger(__name__)


def run(
    config: Config,
    command: Sequence[str],
    disk: Disk | None = None,
    on_locked: Callable[[Path], object] = lambda directory: None,
) -> Summary:
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
        prepared = prepare(config, open_readonly(config))
        output = Path(results.output)
        with locked(output, disk, results.restart, results.append or results.retrain) as journal:
            on_locked(journal.directory)
            return _run_in(journal, prepared, state, command)


def _run_in(journal: Journal, prepared: Prepared, state: RunState, command: Sequence[str]) -> Summary:
    config = prepared.config
    base = base_of(journal)
    if base != prepared.base:
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
    prepared, earlier = compared(journal, prepared)
    check_change(journal, prepared)
    if is_complete(journal, prepared):
        result = journal.published
        assert result is not None
        if base is not None and prepared.request.shards != base.request.shards:
            journal.set_request(prepared.request)  # with the current times of the files, which no later run compares
        write_derived(journal)
        state.end_stage("verification")
        return Summary.of_result(result, config.results.output, state.seconds)
    log_change(prepared)
    # The request comes before the first result, so that results can be attributed to it.
    deadline = stored_deadline(journal, config, prepared.request, state.began)
    journal.set_request(prepared.request, deadline)
    state.ends_by = None if deadline is None else float(deadline["ends_by"])
    return _compute(journal, prepared, earlier, state, command)


def compared(journal: Journal, prepared: Prepared, is_readonly: bool = False) -> tuple[Prepared, EarlierResults]:
    """Return the run with the change that the intact results of the directory leave to it, and these results.

    If it `is_readonly`, files are compared by their sizes only.
    """
    config = prepared.config
    n_threads = prepared.budget.n_threads
    compares_digests = config.results.verify == "digests" and not is_readonly
    earlier = EarlierResults(journal, n_threads, compares_digests, is_readonly)
    base = base_of(journal)
    if base is not None:
        # An append would take long to read all parts of the result, which can be far larger than its files.
        reads_parts = compares_digests and not config.results.append
        published = EarlierResults(journal, n_threads, reads_parts, is_readonly)
        base = replace(base, parts=published.published_parts())
    prepared = prepared.with_change(base, journal.base)
    if prepared.change.n_rewritten:
        prepared = prepared.with_change(base, journal.base, _spared_shards(prepared))
    return prepared, earlier


def _compute(
    journal: Journal, prepared: Prepared, earlier: EarlierResults, state: RunState, command: Sequence[str]
) -> Summary:
    """Start the device and the workers, and run the stages."""
    config = prepared.config
    check_space(journal, prepared)
    # Theano takes seconds to start, and a finished run does not need it.
    with activity("device: loading Theano", "a few seconds"):
        device = start_device(config.machine.require_device)
    has_workers = config.cluster.workers or config.cluster.devices or config.cluster.scheduler
    if config.machine.require_device and device.requested == "cpu" and not has_workers:
        log.warning("--require-device checks nothing on the CPU. Name a device: THEANO_FLAGS=device=cuda.")
    output = str(journal.directory.absolute())
    inputs = (prepared.shards[0].path, prepared.shards[-1].path)
    probe = Probe(os.getcwd(), output, inputs, config.cluster.mixed_processors)
    n_writers = prepared.budget.n_writers
    with open_pool(config.cluster, n_writers, start_device, probe, config.machine.require_device) as pool:
        state.end_stage("start")
        context = RunContext(journal, earlier, device, pool, state, command)
        try:
            with theanos_errors():
                return _run_stages(prepared, context)
        except BaseException as error:
            error.add_note(context.progress_in_words(prepared.n_rows))
            raise


def _run_stages(prepared: Prepared, context: RunContext) -> Summary:
    keep_chunks(prepared.budget.chunk_bytes)  # needed if the scan is reused; otherwise its tasks do the same

    scan: Scan | None = None
    facts: dict[str, Any] = {}
    unreadable: dict[int, str] = {}
    if prepared.is_scanned:
        scanning = ScanStage(prepared)
        scan = load_or_make(scanning, context)
        facts.update(scanning.facts(scan))
        prepared = prepared.with_digests(scan.digests)
        unreadable = {prepared.scanned[i]: reason for i, reason in scan.unreadable.items()}

    if prepared.given_model is None:
        assert scan is not None
        prepared = prepared.with_offset(scan.offset)
        training = TrainingStage(prepared, scan)
        model = load_or_make(training, context)
        facts.update(training.facts(model))
    else:
        model = prepared.given_model
        prepared = prepared.with_offset(model.offset)
        # The report suggests other scalings, and the rows alone do not show which one the model has.
        facts["scan"] = {**facts.get("scan", {}), "scale": model.scaler.scale_setting}
        if prepared.keeps_model:
            assert context.journal.base is not None
            facts["scan"] |= context.journal.base.facts.report["scan"]
            context.state.reused[TrainingStage.name] = "the model"

    encoding = EncodingStage(prepared, model, unreadable)
    encoded = load_or_make(encoding, context)
    context.state.features_key = encoding.key  # for the message of a run that fails later
    facts.update(encoding.facts(encoded))
    check_same_rows(context.journal, prepared, encoded.parts)
    return finish(prepared, StageResults(scan, model, encoded, facts), context)


def _spared_shards(prepared: Prepared) -> list[int]:
    """Return the positions of shards whose rows stay, but whose files no longer have the content of the result.

    A file can be damaged without new times. Its rows then stay where they are, so that a merge neither loses them nor
    ends the run.
    """
    positions = [i for i in prepared.encoded if prepared.change.places[i].is_same]

    def is_lost(i: int) -> bool:
        shard = prepared.shards[i]
        known = prepared.request.shards[i]
        names = {extra.name for extra in shard.extras}
        found = with_content(structs.replace(known, rows=None, extras=None), shard, prepared.conversion, names)
        return None in (found.rows, found.extras) or found != known

    n_threads = prepared.budget.n_threads
    with threads(n_threads) as pool:
        are_lost = compute([(is_lost, i) for i in positions], pool, n_threads)
    return [i for i, is_so in zip(positions, are_lost, strict=True) if is_so]
