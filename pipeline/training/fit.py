"""What a training begins with: which rows it sees, what is kept of them, and where the parameters start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernels.network import Network
from pipeline.device import training_step_of
from pipeline.errors import DataError, counted
from pipeline.scan.ranges import Scan, readable
from pipeline.scan.scaler import Cleaning, Scaler
from pipeline.settings.config import ValidationSettings
from pipeline.settings.resolve import ResolvedTraining
from pipeline.shards.shard import Shard, row_dtype
from pipeline.training.components import Components, baseline_of, principal_components, sampled
from pipeline.training.epochs import Training
from pipeline.training.order import Order, slab_starts, spread_rows
from pipeline.training.replica import Replica, Replicas, ReplicaSettings
from pipeline.training.rounds import rounds_of
from pipeline.training.rows import DeviceRows, ResidentRows, Rows, StreamedRows
from pipeline.training.start import has_room, start_of

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["Sizes", "prepared"]

log = logging.getLogger(__name__)

_COMPONENTS = 5  # a generator of their own, beside those of `pipeline.training.order`
_MEAN_BYTES = 2**22  # of rows in float64, whose mean the biases start with


@dataclass(frozen=True)
class Sizes:
    """What keeps a training within its memory.

    Attributes
    ----------
    resident : bool
        Whether all rows are kept in the host's memory.
    window_rows : int
        Rows shuffled together, of which streaming holds two windows.
    on_device : bool
        Whether all rows are kept in a device's own memory, and not in the host's.
    """

    resident: bool
    window_rows: int
    max_validation_rows: int
    max_sample_rows: int
    n_threads: int
    on_device: bool = False

    def where(self) -> str:
        """Where the rows of the training come from, in words."""
        return "on the device" if self.on_device else "in memory" if self.resident else "streamed"


def prepared(
    autoencoder: Autoencoder,
    shards: Sequence[Shard],
    scan: Scan,
    settings: ResolvedTraining,
    validation_settings: ValidationSettings,
    missing_value: float | None,
    sizes: Sizes,
) -> Training:
    """Choose the rows, read what is kept of them, set the parameters that it starts with, and compile the step.

    Raises
    ------
    DataError
        When no row is left to train on, or rows cannot be read.
    """
    shards, scan = readable(shards, scan)
    n_wanted = round(validation_settings.validation_fraction * scan.n_rows)  # of all rows: bad ones are dropped
    watched = _watched(scan, n_wanted, sizes.max_validation_rows, settings.seed)
    left_out = np.union1d(scan.bad_rows, watched)  # sorted, as Order needs it
    # A window takes whole slabs: with four or more of them it mixes rows from all over the data set.
    order = Order(slab_starts(shards, sizes.window_rows // 4), left_out, sizes.window_rows, settings.seed)
    if not order.n_rows:
        counts = f"{scan.n_rows} rows, {len(scan.bad_rows)} bad, {len(watched)} for validation"
        raise DataError(f"no rows to train on: {counts}. Lower --validation-fraction.")
    cleaning = Cleaning(scan.scaler, missing_value)
    rows = _rows(shards, cleaning, sizes)
    validation = rows.take(watched)
    log.info(
        "training: %s %s, %d for validation, minibatches of %d",
        *(counted(order.n_rows, "row"), sizes.where()),
        *(len(watched), settings.batch_size),
    )
    is_compared = validation_settings.baseline and len(validation) > 0
    is_start = _starts_from_components(autoencoder.network, settings)
    most = sizes.max_sample_rows
    found = None
    if is_start or is_compared:
        found = _components(rows, order, scan.scaler, autoencoder.network.n_features, most)
    if found is not None and is_start:
        mean: np.ndarray | None = found.mean
        start: Components | None = found
    else:
        mean = _mean(rows, scan, settings)
        start = None
    autoencoder.set_parameters(start_of(autoencoder.network, np.random.default_rng(settings.seed), mean, start))
    step = training_step_of(autoencoder, settings, row_dtype(shards), rows.resident)
    autoencoder.errors(validation[:0])  # compiles it, before the training's time begins
    baseline = baseline_of(found, validation, scan.scaler) if found and is_compared else None
    replicas = None
    if settings.replicas > 1:
        common = ReplicaSettings(settings, autoencoder.network, cleaning, row_dtype(shards).str, sizes.n_threads)
        replicas = _replicas(Replica(autoencoder, step, rows.resident is not None), order, shards, common)
    return Training(
        autoencoder=autoencoder,
        step=step,
        rows=rows,
        order=order,
        validation=validation,
        settings=settings,
        patience=validation_settings.patience,
        baseline=baseline,
        replicas=replicas,
    )


def _rows(shards: Sequence[Shard], cleaning: Cleaning, sizes: Sizes) -> Rows:
    if sizes.on_device:
        return DeviceRows(shards, sizes.n_threads, cleaning, sizes.window_rows)
    return (ResidentRows.of if sizes.resident else StreamedRows)(shards, sizes.n_threads, cleaning)


def _replicas(here: Replica, order: Order, shards: Sequence[Shard], common: ReplicaSettings) -> Replicas:
    """Return how several replicas share the rows."""
    rounds = rounds_of(order, shards, common.training)
    log.info(
        "training: one replica in the first epoch, then %d that meet %s an epoch",
        common.training.replicas,
        counted(rounds.n_rounds, "time"),
    )
    return Replicas.of(rounds, shards, common, here)


def _components(rows: Rows, order: Order, scaler: Scaler, k: int, max_rows: int) -> Components:
    """The first principal components of the rows that are trained on."""
    sample = sampled(rows, order, scaler, max_rows)
    return principal_components(sample, k, np.random.default_rng((order.seed, _COMPONENTS)))


def _starts_from_components(network: Network, settings: ResolvedTraining) -> bool:
    if settings.start != "components":
        return False
    if not has_room(network):
        least = 2 * network.n_features
        log.info(
            "training: hidden layers of fewer than %d units have no room for components, and start at random", least
        )
        return False
    return True


def _watched(scan: Scan, n_wanted: int, most: int, seed: int) -> np.ndarray:
    """Return the numbers of the validation rows."""
    if n_wanted > most:
        log.info("validation: %s instead of %d, to stay in the memory budget", counted(most, "row"), n_wanted)
    return spread_rows(scan.n_rows, scan.bad_rows, min(n_wanted, most), seed)


def _mean(rows: Rows, scan: Scan, settings: ResolvedTraining) -> np.ndarray | None:
    """Return the mean of the scaled rows, with which the biases start.

    It is that of rows that do not depend on blocks, threads or budgets.
    """
    if settings.biases == "zero":
        return None  # as in the reference
    scaler = scan.scaler
    n_wanted = min(scan.n_rows, max(1, _MEAN_BYTES // (8 * len(scaler.minimum))))
    sample = rows.take(spread_rows(scan.n_rows, scan.bad_rows, n_wanted, settings.seed))
    if not len(sample):
        return None
    return np.asarray(scaler.transform(sample).mean(axis=0, dtype=np.float64))
