"""Rows that are an array, to a fitted model: by the very functions that a run has for its shards, so to the same bits.

They are the same bits for the same rows, settings and processor as of a run on one shard; of more rows than are
shuffled together (``shuffle_window``), where that is stored contiguously.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.cluster.threads import threads
from pipeline.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from pipeline.errors import ConfigError, DataError
from pipeline.interop.applying import keep
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

__all__ = ["Epochs", "Fit", "begin", "go_on"]


class Stop(Exception):
    """Somebody who was told of an epoch wants no more of them."""


@dataclass(frozen=True)
class Fit:
    """A training on an array, and what becomes of it."""

    training: Training
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
        settings = {"config": asdict(training.config), "device": self.device}
        return Model(self.scaler, training.autoencoder.network, training.best, {**told, **settings})

    def complaints(self, model: Model) -> list[str]:
        """What a run would warn of."""
        return list(complaints(model.about["training"], self.training.config))


class Epochs:
    """Tells an estimator's callbacks of the training that its `fit` does.

    Parameters
    ----------
    data : dict
        ``X`` and ``y`` as the user gave them.
    """

    def __init__(self, estimator: Any, fit: Fit, data: dict[str, Any]) -> None:
        self._estimator, self._fit, self._data = estimator, fit, data
        n_epochs = fit.training.config.epochs - fit.training.standing.epoch
        self._context = estimator._init_callback_context(max_subtasks=n_epochs)
        self._epoch: Any = None  # the context of the one under way

    def run(self) -> Any:
        """Train, and return the model."""
        self._context.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        self._begin_epoch()
        model = self._fit.run(self._advance)
        self._end(self._context)
        return model

    def _advance(self, n_rows: int, standing: object) -> None:
        if n_rows:  # else no step, but an epoch has ended
            return
        if self._end(self._epoch):
            raise Stop
        if not self._fit.training.is_over:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch = self._context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def _end(self, context: Any) -> bool:
        """Whether a callback wants to stop."""

        def fitted() -> Any:  # made only for a callback that looks at it
            return self._estimator._learned(self._fit.model())

        ended = context.call_on_fit_task_end(estimator=self._estimator, **self._data, reconstruction_attributes=fitted)
        return bool(ended)


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
    budget = make_budget(settings, shards, TILE_ROWS)
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
    config = replace(config, epochs=n_epochs + 1, schedule="constant", validation_fraction=0.0, patience=0, replicas=1)
    config = replace(config, baseline=False)
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
    batch_size = min(config.batch_size, len(rows)) if config.batch_size else None
    # What the parameters would otherwise start with is not looked for.
    config = replace(
        config,
        n_features=network.n_features,
        hidden=network.widths[1:-1],
        batch_size=batch_size,
        start="random",
        biases="zero",
    )
    settings = resolve(config, len(rows), network.n_inputs, network)
    budget = make_budget(settings, shards, TILE_ROWS)
    found = _scanned(shards, settings, budget, scaler)
    fit = _fit(shards, found, settings, budget)
    fit.training.autoencoder.set_parameters(given.parameters)
    fit.training.best = fit.training.autoencoder.parameters()
    return fit


def _fit(shards: tuple[Shard, ...], found: Scan, settings: Settings, budget: Budget) -> Fit:
    device, dtype = start_device(), row_dtype(shards)
    with theanos_errors():
        autoencoder = autoencoder_of(found.scaler, network_of(settings, len(found.minimum)), dtype)
        training = prepared(autoencoder, shards, found, settings, budget.sizes(device))
    return Fit(training, found.scaler, dtype, str(device))


def _scanned(shards: tuple[Shard, ...], settings: Settings, budget: Budget, given: Scaler | None = None) -> Scan:
    """What one pass over the rows tells, all of which have to be good ones; the ranges are those of a given scaler."""
    impute = settings.impute if given is None else None if given.fill is None else "median"
    how = ScanSettings(
        budget.block_rows, clip_quantile=settings.clip_quantile, impute=impute, chunk_bytes=budget.chunk_bytes
    )
    with threads(budget.n_threads) as pool:
        found = scan(shards, how, pool, budget.n_threads)
    if len(found.bad_rows):
        raise DataError(f"{describe_bad_rows(shards, found)}, expected finite numbers. Leave such rows out, or impute.")
    if given is None:
        return found
    return replace(found, minimum=given.minimum, maximum=given.maximum, fill=given.fill, clips=given.clips)


def _refuse(complaints: list[str]) -> None:
    if complaints:
        raise ConfigError("; ".join(complaints))
