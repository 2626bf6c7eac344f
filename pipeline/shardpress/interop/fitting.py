"""Training on an array of rows, with the same functions as in a run on shards.

For the same rows, settings and processor, the result has the same bits as a run on one shard. If the rows do not fit
into one shuffle window, this holds only for a shard that is stored contiguously.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardpress.cluster.threads import threads
from shardpress.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from shardpress.errors import ConfigError, DataError
from shardpress.interop.applying import keep_compiled
from shardpress.model import Model
from shardpress.preparation import Preparation, preparation_of
from shardpress.run.budget import Budget, make_budget
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import Scan, check_usable, describe_bad_rows, scan
from shardpress.scan.scaler import Scaler
from shardpress.settings.config import Config, problems
from shardpress.settings.resolve import Settings, max_network_inputs, network_of, resolve, unsuitable_settings
from shardpress.shards.shard import Shard, array_shard, read_dtype, row_dtype, with_preparation
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Training
from shardpress.training.fit import prepare_training
from shardpress.training.loop import training_loop
from shardpress.training.targets import Targets, targets_of
from shardpress.training.verdict import complaints, measured


@dataclass(frozen=True)
class _Fit:
    """Training run on an array."""

    training: Training
    config: Settings
    scaler: Scaler
    preparation: Preparation | None
    dtype: np.dtype
    device: str

    def run(self, stops_after_epoch: Callable[[], bool]) -> Model:
        """Train and return the model. Training stops early if `stops_after_epoch` returns True after an epoch."""
        with theanos_errors():
            with training_loop(self.training) as steps:
                for step in steps:
                    if step.epoch is not None and stops_after_epoch():
                        break
            model = self.model(measured(self.training))
        keep_compiled(model, self.dtype, self.training.autoencoder)
        return model

    def model(self, about: dict[str, Any] | None = None) -> Model:
        """Return the best model so far.

        Parameters
        ----------
        about : dict, optional
            Facts about the training, in addition to the summary of the training state.
        """
        training = self.training
        target = {}
        if training.supervision is not None:
            target = {"target": {**training.supervision.targets.facts(), "fit_on": None}}
        facts = {
            "training": {**training.state.summary(), **(about or {}), **target},
            "config": self.config.flat(),
            "device": self.device,
        }
        network = training.autoencoder.network.encoder
        parameters = {name: training.best[name] for name in network.shapes}
        return Model(self.scaler, network, parameters, facts, preparation=self.preparation)

    def complaints(self, model: Model) -> list[str]:
        """Return the warnings that a run would log about this model."""
        return list(complaints(model.about["training"], self.config.training, model.network))


class Epochs:
    """Training of an estimator with calls of its callbacks, for the whole fit and for each epoch.

    Parameters
    ----------
    estimator : TiedAutoencoder
    fit : Fit
    data : dict
        Arguments ``X`` and ``y`` of the user's call.
    """

    def __init__(self, estimator: Any, fit: _Fit, data: dict[str, Any]) -> None:
        self._estimator = estimator
        self._fit = fit
        self._data = data
        n_epochs = fit.training.n_epochs - fit.training.state.epoch
        self._context = estimator._init_callback_context(max_subtasks=n_epochs)
        self._epoch: Any = None  # context of the current epoch

    def run(self) -> Any:
        """Train and return the model."""
        self._context.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        self._begin_epoch()
        model = self._fit.run(self._end_epoch)
        self._end(self._context)
        return model

    def _end_epoch(self) -> bool:
        """End an epoch and begin the next one. Return whether a callback requests to stop."""
        if self._end(self._epoch):
            return True
        if not self._fit.training.is_over:
            self._begin_epoch()
        return False

    def _begin_epoch(self) -> None:
        self._epoch = self._context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def _end(self, context: Any) -> bool:
        """End a task. Return whether a callback requests to stop."""

        def attributes() -> Any:  # called only if a callback needs it
            return self._estimator._fitted_attributes(self._fit.model())

        must_stop = context.call_on_fit_task_end(
            estimator=self._estimator, **self._data, reconstruction_attributes=attributes
        )
        return bool(must_stop)


def prepare_fit(rows: Any, config: Config, y: Any = None) -> _Fit:
    """Prepare the training of a new model.

    Parameters
    ----------
    rows : ndarray or CSR matrix of shape (n_rows, n_inputs)
        Rows to train on.
    config : Config
        Settings that the user has chosen.
    y : array-like of shape (n_rows,), optional
        Targets of a head. NaN, None, `pandas.NA`, an empty string and -1 mean that a row has no
        target.

    Raises
    ------
    ConfigError
        If settings are invalid, in general or for these rows.
    DataError
        If rows are not finite, or if no model can be trained on them.
    """
    targets = None
    if y is not None:
        targets = _targets(y)
        config = config.changed(target=targets.name)
    _refuse(problems(config))
    preparation = preparation_of(config.scaling.row_scale, config.scaling.transform)
    shards = (with_preparation(array_shard(rows), preparation),)
    n_rows, n_inputs = shards[0].shape
    settings = resolve(config, n_rows, n_inputs)
    _refuse([*unsuitable_settings(settings, n_rows, n_inputs)])
    budget = _budget(settings, shards)
    bad_data = settings.bad_data
    scan_settings = _scan_settings(budget, bad_data.clip_quantile, bad_data.impute, settings.scaling.scale)
    scan_settings = replace(
        scan_settings,
        missing_indicator=bad_data.missing_indicator,
        ranks=settings.scaling.transform == "rank",
    )
    ranges = _scan(shards, scan_settings, budget)
    check_usable(shards, ranges)
    return _fit(shards, ranges, settings, budget, targets)


def _targets(y: Any) -> Targets:
    """Return the targets of an array (n_rows,)."""
    values = np.asarray(y)
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        known = np.isfinite(values)
    elif values.dtype.kind in "iub":
        values = values.astype(np.int64)
        known = values != -1
    else:
        values = np.array(["" if _is_missing(value) else str(value) for value in values], dtype=object)
        known = np.asarray(values != "")
    return targets_of("y", [values], [known], len(values))


def _is_missing(value: object) -> bool:
    """Return whether a value is None, NaN or `pandas.NA`, which does not compare with itself."""
    pandas = sys.modules.get("pandas")  # if it has not been imported, no value is pandas.NA
    if value is None or (pandas is not None and value is pandas.NA):
        return True
    return bool(value != value)


def prepare_partial_fit(rows: Any, config: Config, model: Model | None, checkpoint: Checkpoint | None) -> _Fit:
    """Prepare one more pass over these rows with a constant learning rate.

    Parameters
    ----------
    model : Model or None
        Current model. If None, a new model is trained.
    checkpoint : Checkpoint or None
        State of the training. None if the model was trained in another way. In that case the optimizer starts without
        state.
    """
    n_epochs = 0
    if checkpoint is not None:
        n_epochs = checkpoint.state.epoch
    config = config.changed(
        epochs=n_epochs + 1,
        schedule="constant",
        validation_fraction=0.0,
        patience=0,
        replicas=1,
    )
    if model is None:
        return prepare_fit(rows, config)
    _refuse(problems(config))
    fit = _fit_from(model, rows, config)
    if checkpoint is not None:
        fit.training.resume(checkpoint)
    return fit


def _fit_from(model: Model, rows: Any, config: Config) -> _Fit:
    """Prepare training that starts with the parameters and the scaling of a model."""
    # The training keeps cleaned rows in the dtype of the rows.
    dtype = model.scaler.dtype_of_cleaned(np.dtype(read_dtype(rows.dtype)))
    rows = rows.astype(dtype, copy=False)
    shards = (with_preparation(array_shard(rows), model.preparation),)
    n_rows, _ = rows.shape
    config = _like_model(config, model, n_rows)
    settings = resolve(config, n_rows, model.n_columns, model.network)
    budget = _budget(settings, shards)
    fit = _fit(shards, _scan_with(model.scaler, shards, settings, budget), settings, budget)
    fit.training.autoencoder.set_parameters(model.parameters)
    fit.training.best = fit.training.autoencoder.parameters()
    return fit


def _like_model(config: Config, model: Model, n_rows: int) -> Config:
    """Return settings with the network of a model.

    The initial parameters are set to the cheapest choice, because the caller replaces them.
    """
    batch_size = config.training.batch_size
    if batch_size is not None:
        batch_size = min(batch_size, n_rows)
    return config.changed(
        n_features=model.network.n_features,
        hidden=model.network.widths[1:-1],
        output_layer=model.network.output_layer,
        batch_size=batch_size,
        start="random",
        biases="zero",
    )


def _fit(
    shards: tuple[Shard, ...], ranges: Scan, settings: Settings, budget: Budget, targets: Targets | None = None
) -> _Fit:
    device = start_device()
    dtype = row_dtype(shards)
    with theanos_errors():
        network = network_of(settings.network, ranges.scaler.n_inputs, has_huge_rows=ranges.has_huge_rows)
        if targets is not None:
            network = replace(network, head=targets.head)
        autoencoder = autoencoder_of(ranges.scaler, network, dtype)
        training = prepare_training(
            autoencoder,
            shards,
            ranges,
            settings,
            budget.sizes(device),
            targets,
        )
    return _Fit(training, settings, ranges.scaler, shards[0].preparation, dtype, str(device))


def _scan_with(scaler: Scaler, shards: tuple[Shard, ...], settings: Settings, budget: Budget) -> Scan:
    """Scan the rows, and replace the ranges and fill values in the result with the values of a given scaler."""
    impute = None if scaler.fill is None else "median"
    result = _scan(shards, _scan_settings(budget, settings.bad_data.clip_quantile, impute), budget)
    columns = scaler.without_indicators()
    return replace(
        result,
        minimum=columns.minimum,
        maximum=columns.maximum,
        fill=columns.fill,
        clips=columns.clips,
        center=columns.center,
        factor=columns.factor,
        indicators=scaler.indicators,
        knots=None if scaler.tables is None else scaler.tables.knots,
        ranks=None if scaler.tables is None else scaler.tables.ranks,
    )


def _scan_settings(budget: Budget, clip_quantile: float, impute: str | None, scale: str = "range") -> ScanSettings:
    return ScanSettings(
        budget.block_rows,
        clip_quantile=clip_quantile,
        impute=impute,
        scale=scale,
        chunk_bytes=budget.chunk_bytes,
    )


def _scan(shards: tuple[Shard, ...], scan_settings: ScanSettings, budget: Budget) -> Scan:
    """Scan the rows. Raise `DataError` if a row is bad."""
    with threads(budget.n_threads) as pool:
        result = scan(shards, scan_settings, pool, budget.n_threads)
    if len(result.bad_rows):
        raise DataError(
            f"{describe_bad_rows(shards, result)}, expected finite numbers. Remove such rows, or set impute."
        )
    return result


def _budget(settings: Settings, shards: tuple[Shard, ...]) -> Budget:
    network = network_of(settings.network, max_network_inputs(settings, shards[0].n_inputs))
    return make_budget(
        settings.machine,
        settings.storage,
        network,
        settings.training.replicas,
        shards,
        TILE_ROWS,
        settings.validation.validation_fraction,
    )


def _refuse(complaints: list[str]) -> None:
    if complaints:
        raise ConfigError("; ".join(complaints))
