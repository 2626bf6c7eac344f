"""Training on an array of rows, with the same functions as in a run on shards.

For the same rows, settings and processor, the result has the same bits as a run on one shard. If the rows do not fit
into one shuffle window, this holds only for a shard that is stored contiguously.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardpress.base.errors import DataError, Problem
from shardpress.cluster.threads import threads
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import Shard, array_shard
from shardpress.model.device import start_device, theanos_errors
from shardpress.model.encoder import Model
from shardpress.model.labels import has_label
from shardpress.model.scaler import Cleaning
from shardpress.run.budget import make_budget
from shardpress.run.modeling import about_training, resolve_for, scan_settings, trained_model
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import Scan, check_usable, describe_bad_rows, scan
from shardpress.settings.config import Config
from shardpress.settings.conflicts import conflicts, conflicts_with_rows, refuse
from shardpress.settings.resolve import Settings
from shardpress.shards.conversion import Conversion
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Training
from shardpress.training.fit import prepare_training
from shardpress.training.loop import training_loop
from shardpress.training.targets import Targets, numbers_or_texts, targets_of


@dataclass(frozen=True)
class _Fit:
    """Training run on an array."""

    training: Training
    config: Settings
    scan: Scan
    columns: Columns
    conversion: Conversion
    device: str
    targets: Targets | None

    def run(self) -> Model:
        """Train, and return the best model."""
        with theanos_errors():
            with training_loop(self.training) as steps:
                for _ in steps:
                    pass
            about = about_training(self.training, self.config, self.device, self.targets)
        return trained_model(self.training, self.scan.scaler, self.columns, self.conversion, about)


def prepare_fit(
    rows: Any, config: Config, y: Any = None, row_shape: tuple[int, ...] = (), model: Model | None = None
) -> _Fit:
    """Prepare the training of a new model, or of an existing one, on an array or CSR matrix.

    Messages name columns by `row_shape`.
    """
    targets = None
    if y is not None:
        targets = _targets(y, config.inputs.missing_label)
        config = config.changed(target=targets.name)
    refuse(conflicts(config))
    columns = Columns(row_shape=row_shape)
    shard = array_shard(rows, columns)
    settings, conversion = resolve_for(config, [shard], model)
    if model is None:
        refuse(conflicts_with_rows(settings, *shard.shape))
    budget = make_budget(settings, [shard], conversion, None)
    scaler = None if model is None else model.scaler
    scanning = scan_settings(settings, budget, scaler, conversion)
    ranges = _scan([shard], scanning, budget.n_threads)
    if scaler is None:
        check_usable([shard], ranges, scanning)
    else:
        ranges = replace(ranges, scaler=scaler)
    device = start_device()
    parameters = None if model is None else model.parameters
    with theanos_errors():
        sizes = budget.sizes(device)
        training = prepare_training([shard], conversion, ranges, settings, sizes, targets, parameters)
    return _Fit(training, settings, ranges, columns, conversion, str(device), targets)


def _scan(shards: Sequence[Shard], settings: ScanSettings, n_threads: int) -> Scan:
    with threads(n_threads) as pool:
        ranges = scan(shards, settings, pool, n_threads)
    if len(ranges.bad_rows):
        words = f"{describe_bad_rows(shards, ranges, settings)}, expected finite numbers"
        raise DataError(Problem("", words, "Remove such rows, or set {impute}"))
    return ranges


def _targets(y: Any, missing: str | None) -> Targets:
    values = np.asarray(y)
    if values.dtype.kind not in "fiub":
        values = np.array(["" if _is_missing(value) else str(value) for value in values], dtype=object)
    known = has_label(values, missing) & ~np.ma.getmaskarray(y)
    return targets_of("y", [numbers_or_texts(values)], [known], len(values))


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
    config = config.changed(epochs=n_epochs + 1, schedule="constant", validation_fraction=0.0, patience=0, replicas=1)
    if model is None:
        return prepare_fit(rows, config)
    # The training keeps cleaned rows in the dtype of the rows.
    dtype = Cleaning(model.scaler).dtype_of(array_shard(rows).dtype)
    rows = rows.astype(dtype, copy=False)
    fit = prepare_fit(rows, _like_model(config, model, rows.shape[0]), model=model)
    if checkpoint is not None:
        fit.training.resume(checkpoint)
    return fit


def _like_model(config: Config, model: Model, n_rows: int) -> Config:
    """Return settings with the network of a model, and with batches that are not larger than the rows."""
    batch_size = config.training.batch_size
    if batch_size is not None:
        batch_size = min(batch_size, n_rows)
    return config.changed(
        n_features=model.network.n_features,
        hidden=model.network.widths[1:-1],
        code_activation=model.network.code,
        output_layer=model.network.output_layer,
        batch_size=batch_size,
    )
