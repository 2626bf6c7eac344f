"""The stages in order, and how an interrupted run goes on: the only file that knows them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex

from pipeline.cluster.checks import Question
from pipeline.cluster.crew import crew_of
from pipeline.device import autoencoder_of, is_compiling, n_device_calls, start_device, theanos_errors
from pipeline.output.disk import Disk
from pipeline.output.ledger import Ledger
from pipeline.output.lock import locked
from pipeline.run.contents import check_contents, compare_contents, record_contents
from pipeline.run.earlier import take_up
from pipeline.run.encoding_stage import encode
from pipeline.run.finish import Summary, again, finish
from pipeline.run.job import Clock, Job, Prepared, prepare
from pipeline.run.scan_stage import scanned, with_offset_in
from pipeline.run.space import check_space
from pipeline.run.training_stage import fit
from pipeline.runlog import warnings_kept
from pipeline.scan.ranges import Scan
from pipeline.settings.config import Config
from pipeline.shards.rows import keep_chunks
from pipeline.shards.shard import row_dtype
from pipeline.watch import watching

__all__ = ["run"]


def run(
    config: Config,
    command: Sequence[str],
    disk: Disk | None = None,
    on_locked: Callable[[Path], object] = lambda directory: None,
) -> Summary:
    """Scan, train, encode; or what is left of it, when an earlier run in the same place was interrupted.

    Parameters
    ----------
    command : sequence of str
        The command line, for the outputs' attributes.
    disk : Disk, optional
        What makes every change to the file system.
    on_locked : callable
        Told the output directory once it is this run's own.

    Raises
    ------
    ShardpressError
        One of its kinds for whatever a user can mend. A note says how far the run came.
    """
    with warnings_kept() as warnings, watching(n_device_calls, is_compiling) as watch:
        return _run(Clock(warnings, watch), config, command, disk, on_locked)


def _run(
    clock: Clock, config: Config, command: Sequence[str], disk: Disk | None, on_locked: Callable[[Path], object]
) -> Summary:
    prepared = prepare(config)
    with locked(Path(config.results.output), disk) as ledger:
        on_locked(ledger.directory)
        prepared, contents = compare_contents(ledger, prepared)
        finished = take_up(ledger, prepared, clock)
        if contents:
            ledger.set_contents(contents)
        if finished is not None:
            return again(finished, config.results.output, clock.seconds)
        check_space(ledger, prepared)
        # Only now: Theano takes seconds, which a finished run is spared.
        device = start_device(config.machine.require_device)
        ask = partial(_asked, prepared, ledger)
        cluster = prepared.config.cluster
        requires_device = config.machine.require_device
        with crew_of(cluster, prepared.budget.n_writers, start_device, ask, requires_device) as crew:
            clock.lap("start")
            job = Job(
                config=prepared.config,
                shards=prepared.shards,
                bad_shards=prepared.bad_shards,
                given=prepared.given,
                budget=prepared.budget,
                request=prepared.request,
                command=command,
                ledger=ledger,
                device=device,
                clock=clock,
                crew=crew,
            )
            return _noting(job)


def _asked(prepared: Prepared, ledger: Ledger) -> Question:
    """What workers are asked. The files by which they answer go with the next sweep, like all that does not count."""
    probe = ledger.write("stages/probe", ".txt", token_hex(8).encode())
    inputs = tuple(prepared.shards[i].path for i in (0, -1))
    output = str(ledger.directory.absolute())
    return Question(os.getcwd(), output, probe.file, inputs, prepared.config.cluster.mixed_processors)


def _noting(job: Job) -> Summary:
    """All stages; an error is told how far they came."""
    try:
        with theanos_errors():
            return _stages(job)
    except BaseException as error:
        error.add_note(job.standing())
        raise


def _stages(job: Job) -> Summary:
    scan: Scan | None
    keep_chunks(job.budget.chunk_bytes)  # also where the scan, whose tasks would do that, is taken over
    if job.given is None:
        scan = scanned(job)
        job = with_offset_in(job, scan.offset)
        record_contents(job)  # after the scan, which leaves the files in memory as far as there is room
        model, autoencoder = fit(job, scan)
    else:
        # Without leave for bad data the first bad row ends it; with leave they are counted before a part is written.
        scan = scanned(job) if job.tolerates_bad_data else None
        given = job.given
        job = with_offset_in(job, given.offset)
        model = given
        autoencoder = autoencoder_of(given.scaler, given.network, row_dtype(job.shards))
        autoencoder.set_parameters(model.parameters)
    parts = encode(job, model, autoencoder, scan.unreadable if scan else {})
    record_contents(job)
    check_contents(job)
    return finish(job, model, parts, scan)
