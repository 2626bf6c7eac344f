"""The stages in order, and how an interrupted run goes on: the only file that knows them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from pipeline.errors import DataError, shown
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.lock import locked
from pipeline.run.budget import make_plan
from pipeline.run.earlier import earlier
from pipeline.run.encoding_stage import encode, policy_of, tell_outside
from pipeline.run.fingerprints import request_of
from pipeline.run.finish import Summary, finish, standing
from pipeline.run.job import Clock, Job
from pipeline.run.prepare import check_space, misfits, open_inputs, own_inputs, own_model, refuse, resolved
from pipeline.run.scan_stage import scanned
from pipeline.run.training_stage import fit
from pipeline.scan.ranges import Scan
from pipeline.settings.config import Config, problems
from pipeline.shards.shard import row_dtype

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(
    config: Config,
    command: Sequence[str],
    disk: Disk | None = None,
    on_claim: Callable[[Path], object] = lambda directory: None,
) -> Summary:
    """Scan, train, encode; or what is left of it, when an earlier run in the same place was interrupted.

    Parameters
    ----------
    config : Config
    command : sequence of str
        The command line, for the outputs' attributes.
    disk : Disk, optional
        What makes every change to the file system.
    on_claim : callable
        Told the output directory once it is this run's own.

    Raises
    ------
    ShardpressError
        One of its kinds for whatever a user can mend. A note says how far the run came.
    """
    clock = Clock()
    refuse(problems(config))
    shards, bad_shards = open_inputs(config)
    n_rows, n_inputs = sum(shard.n_rows for shard in shards), shards[0].n_inputs
    if n_inputs == 1:
        raise DataError(
            f"file={shown(shards[0].path)} dataset={shown(shards[0].dataset)}: shape {shards[0].shape} has a single "
            "column, expected two or more: there is nothing to press together. Name another dataset with --dataset."
        )
    model = load_model(config.model) if config.model else None
    config = resolved(config, n_rows, n_inputs, model)
    refuse(problems(config, n_rows, n_inputs) if model is None else misfits(config, model, shards[0]))
    directory = Path(config.output)
    refuse(own_inputs(directory, shards) + own_model(directory, config.model))
    assert config.n_features is not None
    make = partial(make_plan, config, shards, config.n_features, TILE_ROWS)
    request = request_of(config, shards, model, make(on_device=False))
    with locked(directory, disk) as ledger:
        on_claim(directory)
        manifest = earlier(ledger, request, config, bad_shards, clock)
        if manifest is not None:
            return Summary(**{**manifest["summary"], "output": config.output, "seconds": clock.seconds, "before": True})
        check_space(ledger, config, shards, request)
        device = start_device(config.require_device)
        plan = make(on_device=device.used != "cpu")
        log.debug("plan: %s", plan)
        job = Job(config, command, shards, bad_shards, request, plan, ledger, device, clock)
        try:
            with theanos_errors():
                return _extract(job, model)
        except BaseException as error:
            error.add_note(standing(job))
            raise


def _extract(job: Job, given: Model | None) -> Summary:
    found: Scan | None
    if given is None:
        model, autoencoder, found = fit(job)
    else:
        # Which rows are bad must be known before the first part is written.
        found = scanned(job) if job.tolerates_bad_data else None
        if found is not None:
            job.clock.lap("scan")
        model, autoencoder = given, autoencoder_of(given.scaler, job.n_features, row_dtype(job.shards))
        autoencoder.set_parameters(given.parameters)
    records = encode(job, model, autoencoder, policy_of(job, given, found), job.of_features(model, found))
    tell_outside(records)
    job.clock.lap("encoding")
    return finish(job, model, records, given is None, found)
