"""Rows that are an array, to a fitted model: by the very functions that a run has for its shards, so to the same bits.

They are the same bits for the same rows, settings and processor as of a run on one shard; of more rows than are
shuffled together (``shuffle_window``), where that is stored contiguously.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.cluster.threads import threads
from pipeline.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from pipeline.errors import ConfigError, DataError
from pipeline.interop.applying import keep
from pipeline.interop.callbacks import Stop
from pipeline.model import Model
from pipeline.run.budget import Budget, make_budget
from pipeline.scan.blocks import ScanSettings
from pipeline.scan.ranges import Scan, check_usable, describe_bad_rows, scan
from pipeline.scan.scaler import Scaler
from pipeline.settings.config import Config, problems
from pipeline.settings.resolve import Settings, misfits, network_of, resolve
from pipeline.shards.shard import Shard, array_shard, row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import Training, train
from pipeline.training.fit import prepared
from pipeline.training.verdict import complaints, measured

__all__ = ["Fit", "begin", "go_on"]


@dataclass(frozen=True)
class Fit:
    """A training on an array, and what becomes of it."""

    training: Training
    config: Settings
    scaler: Scaler
    dtype: np.dtype
    device: str

    def run(self, advance: Callable[[int, object], object]) -> Model:
        """Train, telling `advance` as `train` does, which may raise `Stop`, and return the model."""
        with theanos_errors():
            try:
                train(self.training, advance=advance)
            except Stop:
                self.training.autoencoder.set_parameters(self.training.best)
            model = self.model(measured(self.training))
        keep(model, self.dtype, self.training.autoencoder)
        return model

    def model(self, about: dict[str, Any] | None = None) -> Model:
        """The best one so far."""
        training = self.training
        told = {"training": {**training.standing.summary(), **(about or {})}}
        settings = {"config": self.config.flat(), "device": self.device}
        return Model(self.scaler, training.autoencoder.network, training.best, {**told, **settings})

    def complaints(self, model: Model) -> list[str]:
        """What a run would warn of."""
        return list(complaints(model.about["training"], self.config.training, model.network))


def begin(rows: np.ndarray, config: Config) -> Fit:
    """All of a training but its steps.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_inputs)

    Raises
    ------
    ConfigError
        For settings that cannot work, in themselves or with these rows.
    DataError
        For rows that are not finite, or of which nothing can be learnt.
    """
    shards = (array_shard(rows),)
    n_rows, n_inputs = shards[0].shape
    _refuse(problems(config))
    settings = resolve(config, n_rows, n_inputs)
    _refuse([*misfits(settings, n_rows, n_inputs)])
    budget = _budget(settings, shards)
    found = _scanned(shards, settings, budget)
    check_usable(shards, found)
    return _fit(shards, found, settings, budget)


def go_on(rows: np.ndarray, config: Config, given: Model | None, checkpoint: Checkpoint | None) -> Fit:
    """One more pass, over these rows, of a training at a constant rate.

    Parameters
    ----------
    given : Model or None
        What it has come to; with None it begins.
    checkpoint : Checkpoint or None
        Where it stands; a given model without one has been trained otherwise, and its states begin anew.
    """
    n_epochs = checkpoint.standing.epoch if checkpoint else 0
    config = config.changed(
        epochs=n_epochs + 1,
        schedule="constant",
        validation_fraction=0.0,
        patience=0,
        replicas=1,
        baseline=False,
    )
    if given is None:
        return begin(rows, config)
    _refuse(problems(config))
    fit = _again(rows, config, given)
    if checkpoint is not None:
        fit.training.go_on_from(checkpoint)
    return fit


def _again(rows: np.ndarray, config: Config, given: Model) -> Fit:
    """A training that begins with a model's parameters, and scales as it does."""
    shards, network, scaler = (array_shard(rows),), given.network, given.scaler
    batch_size = config.training.batch_size
    if batch_size is not None:
        batch_size = min(batch_size, len(rows))
    # What the parameters would otherwise start with is not looked for.
    config = config.changed(
        n_features=network.n_features,
        hidden=network.widths[1:-1],
        batch_size=batch_size,
        start="random",
        biases="zero",
    )
    settings = resolve(config, len(rows), network.n_inputs, network)
    budget = _budget(settings, shards)
    found = _scanned(shards, settings, budget, scaler)
    fit = _fit(shards, found, settings, budget)
    fit.training.autoencoder.set_parameters(given.parameters)
    fit.training.best = fit.training.autoencoder.parameters()
    return fit


def _fit(shards: tuple[Shard, ...], found: Scan, settings: Settings, budget: Budget) -> Fit:
    device, dtype = start_device(), row_dtype(shards)
    with theanos_errors():
        autoencoder = autoencoder_of(found.scaler, network_of(settings.network, len(found.minimum)), dtype)
        training = prepared(
            autoencoder,
            shards,
            found,
            settings.training,
            settings.validation,
            settings.bad_data.missing_value,
            budget.sizes(device),
        )
    return Fit(training, settings, found.scaler, dtype, str(device))


def _scanned(shards: tuple[Shard, ...], settings: Settings, budget: Budget, given: Scaler | None = None) -> Scan:
    """What one pass over the rows tells, all of which have to be good ones; the ranges are those of a given scaler."""
    impute = settings.bad_data.impute if given is None else None if given.fill is None else "median"
    how = ScanSettings(
        budget.block_rows, clip_quantile=settings.bad_data.clip_quantile, impute=impute, chunk_bytes=budget.chunk_bytes
    )
    with threads(budget.n_threads) as pool:
        found = scan(shards, how, pool, budget.n_threads)
    if len(found.bad_rows):
        raise DataError(f"{describe_bad_rows(shards, found)}, expected finite numbers. Leave such rows out, or impute.")
    if given is None:
        return found
    return replace(found, minimum=given.minimum, maximum=given.maximum, fill=given.fill, clips=given.clips)


def _budget(settings: Settings, shards: tuple[Shard, ...]) -> Budget:
    network = network_of(settings.network, shards[0].n_inputs)
    return make_budget(settings.machine, settings.storage, network, settings.training.replicas, shards, TILE_ROWS)


def _refuse(complaints: list[str]) -> None:
    if complaints:
        raise ConfigError("; ".join(complaints))
