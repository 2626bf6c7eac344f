"""A run: its stages in order. Each is loaded from an earlier run or computed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shardpress.cluster.pool import open_pool
from shardpress.cluster.probe import Probe
from shardpress.device import is_compiling, n_device_calls, start_device, theanos_errors
from shardpress.errors import ConfigError, printable, quantity, short_list
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal
from shardpress.output.lock import locked
from shardpress.run.append import check_finished, open_finished
from shardpress.run.budget import n_threads_of
from shardpress.run.contents import Contents, check_contents, compare_contents, record_contents, record_times
from shardpress.run.context import RunContext, RunState
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.finish import StageResults, finish, load_finished, write_derived
from shardpress.run.finished import FinishedRun
from shardpress.run.prepare import NothingToAppend, Prepared, prepare
from shardpress.run.resume import EarlierResults, adds_extras_to, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_space
from shardpress.run.stage import load_or_make
from shardpress.run.summary import Summary
from shardpress.run.training_stage import TrainingStage
from shardpress.runlog import collect_warnings
from shardpress.scan.ranges import Scan
from shardpress.settings.config import Config
from shardpress.shards.rows import keep_chunks
from shardpress.watch import watching

log = logging.getLogger(__name__)

_NAMED = 5  # files that a message names


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
        The command line, for the attributes of output files.
    on_locked : callable
        Function that is called with the output directory once it is locked.

    Raises
    ------
    ShardpressError
        One of its subclasses, for everything that a user can fix. A note describes the progress of the run.
    """
    with collect_warnings() as warnings, watching(n_device_calls, is_compiling) as watch:
        state = RunState(warnings, watch)
        if config.results.append:
            check_finished(config)  # before the directory is locked, because that would create it
            with locked(Path(config.results.output), disk, extends=True) as journal:
                on_locked(journal.directory)
                return _append_in(journal, config, state, command)
        prepared = prepare(config)
        with locked(Path(config.results.output), disk, config.results.restart, config.results.retrain) as journal:
            on_locked(journal.directory)
            prepared, contents = compare_contents(journal, prepared)
            if adds_extras_to(journal, prepared):
                return _append_in(journal, config, state, command)
            return _run_in(journal, prepared, contents, state, command)


def _run_in(
    journal: Journal, prepared: Prepared, contents: Contents, state: RunState, command: Sequence[str]
) -> Summary:
    config = prepared.config
    if config.results.restart:
        log.info(
            "output=%s: starting over; earlier results stay until this run is finished. To resume it after an "
            "interruption, repeat the command without --restart.",
            printable(journal.directory),
        )
    journal.sweep()  # removes files of a killed run before new files need the space
    earlier = EarlierResults(journal, prepared.budget.n_threads, config.results.verify == "digests")
    finished = load_finished(prepared, earlier)
    if contents:
        journal.set_contents(contents)
    if finished is not None:
        write_derived(journal)
        state.end_stage("verification")
        return Summary.of_result(finished, config.results.output, state.seconds)
    # The request comes before the first result, so that results can be attributed to it.
    deadline = stored_deadline(journal, prepared.config, prepared.request, state.began)
    journal.set_request(prepared.request, deadline)
    state.ends_by = None if deadline is None else float(deadline["ends_by"])
    return _compute(journal, prepared, earlier, state, command)


def _append_in(journal: Journal, config: Config, state: RunState, command: Sequence[str]) -> Summary:
    """Append new files to the finished run in a locked output directory, or add extras to its results."""
    n_threads = n_threads_of(config.machine)
    # The earlier parts are compared by size only, because reading all of them could take longer than the append.
    finished = open_finished(config, journal, EarlierResults(journal, n_threads, compares_digests=False))
    journal.sweep()
    try:
        prepared = prepare(finished.config, finished) if finished.sources else None
    except NothingToAppend as error:
        log.warning("append: %s", error)
        prepared = None
    if prepared is None:
        if not finished.sources:
            log.info("append: the results contain all files of --input; there is nothing to append")
        write_derived(journal)
        state.end_stage("verification")
        return Summary.of_result(finished.result, config.results.output, state.seconds)
    if not config.results.append:
        assert prepared.finished is not None
        _check_only_extras(prepared.finished)
        log.info("output=%s: adding extras to the finished results", printable(journal.directory))
    prepared, contents = compare_contents(journal, prepared)
    if contents:
        journal.set_contents([*finished.contents, *contents])
    earlier = EarlierResults(journal, n_threads, config.results.verify == "digests")
    return _compute(journal, prepared, earlier, state, command)


def _check_only_extras(finished: FinishedRun) -> None:
    """Raise `ConfigError` if there are changed rows, because a user has only requested other extras."""
    if finished.n_changed:
        numbered = zip(finished.numbers, finished.sources, strict=True)
        names = [printable(source.path.name) for number, source in numbered if number not in finished.same_rows]
        raise ConfigError(
            f"output={printable(finished.config.results.output)}: the rows of {quantity(len(names), 'file')} have "
            f"changed, or their features are damaged ({short_list(names, _NAMED)}), expected the rows of the finished "
            "run, so that extras can be added. To encode changed rows with the same model, use --append. To train "
            "again, use --retrain."
        )


def _compute(
    journal: Journal, prepared: Prepared, earlier: EarlierResults, state: RunState, command: Sequence[str]
) -> Summary:
    """Start the device and the workers, and run the stages."""
    config = prepared.config
    check_space(journal, prepared)
    record_times(prepared, journal)
    # Theano takes seconds to start, and a finished run does not need it.
    device = start_device(config.machine.require_device)
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
    if prepared.is_scanned:
        scanning = ScanStage(prepared)
        scan = load_or_make(scanning, context)
        facts.update(scanning.facts(scan))
    unreadable = scan.unreadable if scan else {}
    if prepared.is_scanned:
        record_contents(prepared, context.journal)  # now, because the scan has left the files in the page cache

    if prepared.given_model is None:
        assert scan is not None
        prepared = prepared.with_offset(scan.offset)
        training = TrainingStage(prepared, tuple(unreadable), scan)
        model = load_or_make(training, context)
        facts.update(training.facts(model))
    else:
        model = prepared.given_model
        prepared = prepared.with_offset(model.offset)
        # The report suggests other scalings, and the rows alone do not show which one the model has.
        facts["scan"] = {**facts.get("scan", {}), "scale": model.scaler.scale_setting}

    encoding = EncodingStage(prepared, model, prepared.by_number(unreadable))
    encoded = load_or_make(encoding, context)
    context.state.features_key = encoded.key  # also set for reused features, for the message of a run that fails later
    facts.update(encoding.facts(encoded))
    if not prepared.is_scanned:
        record_contents(prepared, context.journal)  # only now: before, it would read the files in a pass of its own

    check_contents(prepared, context.journal)
    return finish(prepared, StageResults(scan, model, encoded, facts), context)
