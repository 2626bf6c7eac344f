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
from pipeline.settings.resolve import Settings
from pipeline.shards.shard import Shard, row_dtype
from pipeline.training.baseline import baseline_of
from pipeline.training.components import Components, principal_components, sampled
from pipeline.training.epochs import Training
from pipeline.training.order import Order, slab_starts, spread_rows
from pipeline.training.replicas.replica import Replica, Replicas, ReplicaSettings
from pipeline.training.replicas.rounds import rounds_of
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


def prepared(autoencoder: Autoencoder, shards: Sequence[Shard], scan: Scan, config: Settings, sizes: Sizes) -> Training:
    """Choose the rows, read what is kept of them, set the parameters that it starts with, and compile the step.

    Raises
    ------
    DataError
        When no row is left to train on, or rows cannot be read.
    """
    shards, scan = readable(shards, scan)
    watched = _watched(scan, config, sizes.max_validation_rows)
    left_out = np.union1d(scan.bad_rows, watched)  # sorted, as Order needs it
    # A window takes whole slabs: with four or more of them it mixes rows from all over the data set.
    order = Order(slab_starts(shards, sizes.window_rows // 4), left_out, sizes.window_rows, config.seed)
    if not order.n_rows:
        counts = f"{scan.n_rows} rows, {len(scan.bad_rows)} bad, {len(watched)} for validation"
        raise DataError(f"no rows to train on: {counts}. Lower --validation-fraction.")
    cleaning = Cleaning(scan.scaler, config.missing_value)
    rows = _rows(shards, cleaning, sizes)
    validation = rows.take(watched)
    log.info(
        "training: %s %s, %d for validation, minibatches of %d",
        *(counted(order.n_rows, "row"), sizes.where()),
        *(len(watched), config.batch_size),
    )
    is_compared = config.baseline and len(validation) > 0
    is_start = _starts_from_components(autoencoder.network, config)
    most = sizes.max_sample_rows
    found = _components(rows, order, scan.scaler, config.n_features, most) if is_start or is_compared else None
    mean, start = (found.mean, found) if found and is_start else (_mean(rows, scan, config), None)
    autoencoder.set_parameters(start_of(autoencoder.network, np.random.default_rng(config.seed), mean, start))
    step = training_step_of(autoencoder, config, row_dtype(shards), rows.resident)
    autoencoder.errors(validation[:0])  # compiles it, before the training's time begins
    baseline = baseline_of(found, validation, scan.scaler) if found and is_compared else None
    replicas = _replicas(Replica(autoencoder, step, rows.resident is not None), order, shards, cleaning, config, sizes)
    return Training(autoencoder, step, rows, order, validation, config, baseline, replicas)


def _rows(shards: Sequence[Shard], cleaning: Cleaning, sizes: Sizes) -> Rows:
    if sizes.on_device:
        return DeviceRows(shards, sizes.n_threads, cleaning, sizes.window_rows)
    return (ResidentRows.of if sizes.resident else StreamedRows)(shards, sizes.n_threads, cleaning)


def _replicas(
    here: Replica, order: Order, shards: Sequence[Shard], cleaning: Cleaning, config: Settings, sizes: Sizes
) -> Replicas | None:
    """How several of them share the rows; None where there is one."""
    if config.replicas == 1:
        return None
    rounds = rounds_of(order, shards, config)
    log.info(
        "training: one replica in the first epoch, then %d that meet %s an epoch",
        *(config.replicas, counted(rounds.n_rounds, "time")),
    )
    settings = ReplicaSettings(config, cleaning, row_dtype(shards).str, sizes.n_threads)
    return Replicas.of(rounds, shards, settings, here)


def _components(rows: Rows, order: Order, scaler: Scaler, k: int, max_rows: int) -> Components:
    """The first principal components of the rows that are trained on."""
    sample = sampled(rows, order, scaler, max_rows)
    return principal_components(sample, k, np.random.default_rng((order.seed, _COMPONENTS)))


def _starts_from_components(network: Network, config: Settings) -> bool:
    if config.start == "components" and not has_room(network):
        least = 2 * network.n_features
        log.info(
            "training: hidden layers of fewer than %d units have no room for components, and start at random", least
        )
    return config.start == "components" and has_room(network)


def _watched(scan: Scan, config: Settings, most: int) -> np.ndarray:
    """Numbers of the rows that training is watched with."""
    n_wanted = round(config.validation_fraction * scan.n_rows)  # of all rows: bad ones among them are dropped
    if n_wanted > most:
        log.info("validation: %s instead of %d, to stay in the memory budget", counted(most, "row"), n_wanted)
    return spread_rows(scan.n_rows, scan.bad_rows, min(n_wanted, most), config.seed)


def _mean(rows: Rows, scan: Scan, config: Settings) -> np.ndarray | None:
    """The scaled rows' mean, for the start of the biases, over rows that depend on no block, thread or budget."""
    if config.biases == "zero":
        return None  # as in the reference
    scaler = scan.scaler
    n_wanted = min(scan.n_rows, max(1, _MEAN_BYTES // (8 * len(scaler.minimum))))
    sample = rows.take(spread_rows(scan.n_rows, scan.bad_rows, n_wanted, config.seed))
    return np.asarray(scaler.transform(sample).mean(axis=0, dtype=np.float64)) if len(sample) else None
