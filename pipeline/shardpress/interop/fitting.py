"""Training on an array of rows, with the same functions as in a run on shards.

For the same rows, settings and processor, the result has the same bits as a run on one shard. If the rows do not fit
into one shuffle window, this holds only for a shard that is stored contiguously.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardpress.cluster.threads import threads
from shardpress.columns import Columns
from shardpress.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from shardpress.errors import ConfigError, DataError
from shardpress.interop.applying import keep_compiled
from shardpress.model import Model
from shardpress.preparation import Preparation, preparation_of
from shardpress.run.budget import Budget, make_budget
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.look import follow
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
from shardpress.training.verdict import measured


@dataclass(frozen=True)
class _Fit:
    """Training run on an array."""

    training: Training
    config: Settings
    scaler: Scaler
    preparation: Preparation | None
    columns: Columns
    dtype: np.dtype
    device: str

    def run(self) -> Model:
        """Train, and return the best model."""
        training = self.training
        with theanos_errors():
            with training_loop(training) as steps:
                for _ in steps:
                    pass
            about = {**training.state.summary(), **measured(training)}
        if training.supervision is not None:
            about["target"] = {**training.supervision.targets.facts(), "fit_on": None}
        facts = {"training": about, "config": self.config.flat(), "device": self.device}
        network = training.autoencoder.network.encoder
        parameters = {name: training.best[name] for name in network.shapes}
        model = Model(self.scaler, network, parameters, facts, None, self.columns, self.preparation)
        keep_compiled(model, self.dtype, training.autoencoder)
        return model


def prepare_fit(rows: Any, config: Config, y: Any = None, row_shape: tuple[int, ...] = ()) -> _Fit:
    """Prepare the training of a new model on an array or CSR matrix. Messages name columns by `row_shape`.

    NaN, None, `pandas.NA`, an empty string and -1 in `y` mean that a row has no target.
    """
    targets = None
    if y is not None:
        targets = _targets(y)
        config = config.changed(target=targets.name)
    _refuse(problems(config))
    shard = replace(array_shard(rows), columns=Columns(row_shape=row_shape))
    config = follow(config, [shard])
    preparation = preparation_of(config.scaling.row_scale, config.scaling.transform)
    shards = (with_preparation(shard, preparation),)
    n_rows, n_inputs = shard.shape
    settings = resolve(config, n_rows, n_inputs)
    _refuse([*unsuitable_settings(settings, n_rows, n_inputs)])
    budget = _budget(settings, shards)
    bad_data = settings.bad_data
    scan_settings = ScanSettings(
        budget.block_rows,
        clip_quantile=bad_data.clip_quantile,
        impute=bad_data.impute,
        scale=settings.scaling.scale,
        chunk_bytes=budget.chunk_bytes,
        missing_indicator=bad_data.missing_indicator,
    )
    ranges = _scan(shards, scan_settings, budget)
    check_usable(shards, ranges)
    return _fit(shards, ranges, settings, budget, targets)


def _targets(y: Any) -> Targets:
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
    """Prepare one more pass over these rows with a constant learning rate. Without a model, train a new one.

    If the model was trained in another way, there is no checkpoint, and the optimizer starts without state.
    """
    n_epochs = 0 if checkpoint is None else checkpoint.state.epoch
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
    """Return settings with the network of a model, and the cheapest initial parameters, which the caller replaces."""
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
        network = network_of(settings.network, ranges.scaler.n_inputs)
        if targets is not None:
            network = replace(network, head=targets.head)
        autoencoder = autoencoder_of(ranges.scaler, network, dtype)
        training = prepare_training(autoencoder, shards, ranges, settings, budget.sizes(device), targets)
    return _Fit(training, settings, ranges.scaler, shards[0].preparation, shards[0].columns, dtype, str(device))


def _scan_with(scaler: Scaler, shards: tuple[Shard, ...], settings: Settings, budget: Budget) -> Scan:
    """Scan the rows, and replace the ranges and fill values in the result with the values of a given scaler."""
    impute = None if scaler.fill is None else "median"
    scan_settings = ScanSettings(
        budget.block_rows,
        clip_quantile=settings.bad_data.clip_quantile,
        impute=impute,
        chunk_bytes=budget.chunk_bytes,
    )
    result = _scan(shards, scan_settings, budget)
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
    )


def _scan(shards: tuple[Shard, ...], scan_settings: ScanSettings, budget: Budget) -> Scan:
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
