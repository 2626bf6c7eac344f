"""The steps from settings and shards to a trained model, which a run and an estimator have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import structs

from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import Shard
from shardpress.model.about import About, TargetFacts
from shardpress.model.encoder import Model
from shardpress.model.preparation import preparation_of
from shardpress.model.scaler import Scaler
from shardpress.run.budget import Budget
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.look import follow
from shardpress.scan.ranges import n_fitted_rows
from shardpress.settings.config import Config
from shardpress.settings.resolve import Settings, resolve
from shardpress.shards.conversion import Conversion
from shardpress.training.complaints import measured
from shardpress.training.epochs import Training
from shardpress.training.targets import Targets


def resolve_for(
    config: Config,
    shards: Sequence[Shard],
    model: Model | None,
    fitted: np.ndarray | None = None,
) -> tuple[Settings, Conversion]:
    """Return the settings with all defaults, and the conversion with the preparation of rows.

    Parameters
    ----------
    model : Model, optional
        Existing model, whose preparation and network are used.
    fitted : ndarray of shape (n_rows,), bool, optional
        Mask of the rows that a model is fitted to. By default, it is fitted to all rows.
    """
    network = None
    if model is None:
        config = follow(config, shards, fitted)
        preparation = preparation_of(config.scaling.row_scale, config.scaling.transform)
    else:
        network = model.network
        preparation = model.preparation
    settings = resolve(config, n_fitted_rows(shards, fitted), shards[0].n_inputs, network)
    return settings, Conversion(preparation=preparation)


def scan_settings(settings: Settings, budget: Budget, scaler: Scaler | None, conversion: Conversion) -> ScanSettings:
    """Return the settings of a scan. Given the scaling of an existing model, the scan only finds bad rows."""
    trains = scaler is None
    impute = settings.bad_data.impute
    if scaler is not None:  # it has stored values instead, or none
        impute = None if scaler.fill is None else "median"
    return ScanSettings(
        block_rows=budget.block_rows,
        missing=settings.bad_data.missing_value,
        clip_quantile=settings.bad_data.clip_quantile,
        impute=impute,
        scale=settings.scaling.scale,
        chunk_bytes=budget.chunk_bytes,
        missing_indicator=trains and settings.bad_data.missing_indicator,
        for_training=trains,
        conversion=conversion,
    )


def about_training(training: Training, settings: Settings, device: object, targets: Targets | None) -> About:
    """Return facts about a finished training.

    The `targets` are those that were given; the training also has estimated ones.
    """
    facts = measured(training)
    if targets is not None:
        target = TargetFacts(
            targets.name, targets.head.kind, len(targets.classes), targets.share, settings.training.fit_on
        )
        facts = structs.replace(facts, target=target)
    return About(settings.flat(), facts, str(device))


def trained_model(training: Training, scaler: Scaler, columns: Columns, conversion: Conversion, about: About) -> Model:
    """Return the best model of a training run, without its head."""
    network = training.autoencoder.network.encoder
    parameters = {name: training.best[name] for name in network.shapes}
    return Model(scaler, network, parameters, about, conversion.offset, columns, conversion.preparation)
