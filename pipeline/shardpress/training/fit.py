"""Preparation of a training run: choice and reading of its rows, initial parameters, and the compiled step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardpress.base.errors import DataError, Problem, quantity
from shardpress.base.progress import activity
from shardpress.hdf5.shard import Shard
from shardpress.model.device import DeviceAutoencoder, DeviceStep, autoencoder_of, training_step_of
from shardpress.model.scaler import Cleaning
from shardpress.scan.ranges import Scan, readable
from shardpress.settings.defaults import TARGET_WEIGHT
from shardpress.settings.resolve import ResolvedTraining, Settings, network_of
from shardpress.shards.conversion import Conversion
from shardpress.training.components import Components, baseline_of, principal_components, sampled
from shardpress.training.epochs import Training
from shardpress.training.feed import DeviceRows, Reader, ResidentRows, Rows, StreamedRows
from shardpress.training.order import Order, slab_starts, spread_rows
from shardpress.training.pseudolabels import with_pseudo_labels
from shardpress.training.replica import Replica, Replicas, ReplicaSettings
from shardpress.training.rounds import rounds_of
from shardpress.training.start import has_room, start_of
from shardpress.training.targets import Supervision, Targets
from shardpress_kernels.network import Network, TargetLoss
from shardpress_kernels.rules import RULES

log = logging.getLogger(__name__)

_COMPONENTS = 5  # random stream for components; it differs from all streams in `shardpress.training.order`
_SPREAD = 16.0  # deviation of the outputs of a head; with 4, most classifiers on the features are less accurate
_MEAN_BYTES = 2**22  # size, as float64, of the sample of rows whose mean sets the initial biases


@dataclass(frozen=True)
class Sizes:
    """Sizes that keep a training run within its memory."""

    resident: bool  # all rows are kept in the host's memory
    window_rows: int  # rows that are shuffled together; streaming holds two such windows
    max_validation_rows: int
    max_sample_rows: int  # rows for the computation of principal components
    n_threads: int  # threads that read rows
    on_device: bool = False  # all rows are kept in a device's own memory, and not in the host's memory

    def where(self) -> str:
        """Return the source of the training rows in words."""
        if self.on_device:
            return "on the device"
        return "in memory" if self.resident else "streamed"


@dataclass(frozen=True)
class _Data:
    """Rows of a training run."""

    reader: Reader  # of the shards that can be read
    scan: Scan  # scan of these shards alone
    cleaning: Cleaning
    order: Order  # rows that the model is trained on
    rows: Rows
    validation: np.ndarray  # (n_validation, n_inputs), rows that the model is not trained on
    validation_numbers: np.ndarray  # (n_validation,), int64


def prepare_training(
    shards: Sequence[Shard],
    conversion: Conversion,
    scan: Scan,
    config: Settings,
    sizes: Sizes,
    targets: Targets | None = None,
    parameters: Mapping[str, np.ndarray] | None = None,
) -> Training:
    """Choose the rows, read the rows that stay in memory, initialize the parameters, and compile the step.

    `parameters` are those of a model whose training continues; by default, they are initialized. Raise `DataError` if
    no row is left to train on, or rows cannot be read.
    """
    settings = config.training
    network = network_of(config.network, scan.scaler.n_inputs, None if targets is None else targets.head)
    autoencoder = autoencoder_of(scan.scaler, network, conversion.dtype(shards))
    readable_shards, readable_scan = readable(shards, scan)
    data = _read_data(readable_shards, conversion, readable_scan, config, sizes)
    log.info(
        "training: %s %s, %d for validation, minibatches of %d",
        quantity(data.order.n_rows, "row"),
        sizes.where(),
        len(data.validation),
        settings.batch_size,
    )
    starts_from_components = parameters is None and _starts_from_components(network, settings)
    components = None
    if starts_from_components or len(data.validation):
        with activity("training: computing principal components", "a few seconds"):
            components = _components(data, network.n_features, sizes.max_sample_rows)
    baseline = None
    if components is not None and len(data.validation):
        baseline = baseline_of(components, data.validation, data.scan.scaler)
    if parameters is None:
        parameters = _initial_parameters(network, data, settings, components if starts_from_components else None)
    autoencoder.set_parameters(parameters)
    supervision = None
    if targets is not None:
        readable_targets = targets.of_shards(shards, list(scan.unreadable))
        with activity("training: preparing targets", "a second"):
            supervision = _supervision(autoencoder, data, readable_targets, settings, sizes.max_sample_rows)
    loss = None if supervision is None else supervision.loss
    with activity("training: loading or compiling kernels", "a minute once, later a second"):
        step = training_step_of(autoencoder, settings, data.reader.dtype, data.rows.resident, loss)
        autoencoder.errors(data.validation[:0])  # compile now, before the training time is measured
    return Training(
        autoencoder=autoencoder,
        step=step,
        rows=data.rows,
        order=data.order,
        validation=data.validation,
        settings=settings,
        patience=config.validation.patience,
        baseline=baseline,
        replicas=_replicas(autoencoder, step, data, settings, supervision),
        supervision=supervision,
        validation_numbers=data.validation_numbers,
    )


# -- rows ----------------------------------------------------------------------------------------------------------


def _read_data(
    shards: tuple[Shard, ...],
    conversion: Conversion,
    scan: Scan,
    config: Settings,
    sizes: Sizes,
) -> _Data:
    """Choose the rows of a training run and of its validation, and read the rows that stay in memory."""
    seed = config.training.seed
    validation_numbers = validation_rows(scan, config.validation.validation_fraction, sizes.max_validation_rows, seed)
    n_wanted = round(config.validation.validation_fraction * scan.n_rows)
    if n_wanted > sizes.max_validation_rows:
        n_used = quantity(sizes.max_validation_rows, "row")
        log.info("validation: using %s instead of %d, which suffice to measure the error", n_used, n_wanted)
    left_out = np.union1d(scan.bad_rows, validation_numbers)  # sorted, as `Order` requires
    # A window takes whole slabs. With four or more slabs, it mixes rows from different parts of the data set.
    starts = slab_starts(shards, conversion, sizes.window_rows // 4)
    order = Order(starts, left_out, sizes.window_rows, seed)
    if not order.n_rows:
        counts = f"{scan.n_rows} rows, {len(scan.bad_rows)} bad, {len(validation_numbers)} for validation"
        raise DataError(Problem("no rows to train on", counts, "Lower {validation_fraction}"))
    cleaning = Cleaning(scan.scaler, config.bad_data.missing_value)
    reader = Reader(shards, conversion, sizes.n_threads, cleaning)
    rows = _rows(reader, sizes)
    with activity("training: reading validation rows", "a few seconds"):
        validation = rows.take(validation_numbers)
    return _Data(reader, scan, cleaning, order, rows, validation, validation_numbers)


def validation_rows(scan: Scan, fraction: float, most: int, seed: int) -> np.ndarray:
    """Return the numbers of the validation rows."""
    n_wanted = round(fraction * scan.n_rows)  # a fraction of all rows, from which bad rows are then dropped
    return spread_rows(scan.n_rows, scan.bad_rows, min(n_wanted, most), seed)


def _rows(reader: Reader, sizes: Sizes) -> Rows:
    if sizes.on_device:
        return DeviceRows(reader, sizes.window_rows)
    if sizes.resident:
        return ResidentRows.of(reader)
    return StreamedRows(reader)


# -- initial parameters --------------------------------------------------------------------------------------------


def _starts_from_components(network: Network, settings: ResolvedTraining) -> bool:
    """Return whether the weights are initialized from principal components, which need enough units in each layer."""
    if settings.start != "components":
        return False
    if has_room(network):
        return True
    log.info(
        "training: hidden layers with fewer than %d units cannot hold the principal components; starting at random",
        2 * network.n_features,
    )
    return False


def _components(data: _Data, k: int, max_rows: int) -> Components:
    """Return the first principal components of the rows that are trained on."""
    sample = sampled(data.rows, data.order, data.scan.scaler, max_rows)
    return principal_components(sample, k, np.random.default_rng((data.order.seed, _COMPONENTS)))


def _initial_parameters(
    network: Network, data: _Data, settings: ResolvedTraining, components: Components | None
) -> dict[str, np.ndarray]:
    """Return the initial parameters, from components if they are given."""
    mean = _mean(data, settings) if components is None else None
    return start_of(network, np.random.default_rng(settings.seed), mean, components)


def _mean(data: _Data, settings: ResolvedTraining) -> np.ndarray | None:
    """Return the mean of scaled rows that determines the initial biases; None if the biases are 0.

    The choice of the rows does not depend on blocks or threads.
    """
    if settings.biases == "zero":
        return None  # as in the reference implementation
    sample = data.scan.scaler.scaled(_sample(data, settings))
    if not len(sample):
        return None
    return np.asarray(sample.mean(axis=0, dtype=np.float64))


def _sample(data: _Data, settings: ResolvedTraining) -> np.ndarray:
    """Return some unscaled rows (n, n_inputs), spread over all rows."""
    scan = data.scan
    n_wanted = min(scan.n_rows, max(1, _MEAN_BYTES // (8 * len(scan.scaler.minimum))))
    return data.rows.take(spread_rows(scan.n_rows, scan.bad_rows, n_wanted, settings.seed))


def _supervision(
    autoencoder: DeviceAutoencoder, data: _Data, targets: Targets, settings: ResolvedTraining, max_sample_rows: int
) -> Supervision:
    """Return the training of a head, given an initialized autoencoder.

    The loss is weighted by the variance of a scaled entry, so that its weight compared with the reconstruction does not
    depend on the scaling. It is averaged over the rows with a target. The scale is such that outputs with weights of 1
    vary by about `_SPREAD`. With rules whose updates depend on the scale of gradients, it would make training diverge.
    """
    validation = targets.values[data.validation_numbers]  # known targets only
    left_out = np.union1d(data.scan.bad_rows, data.validation_numbers)
    # The classifier needs the rows in float64, and a copy of them.
    max_rows = max(2, max_sample_rows // 4)
    targets = with_pseudo_labels(targets, data.rows, data.scan.scaler, left_out, max_rows, settings.seed)
    sample = _sample(data, settings)
    variance = _mean_variance(data.scan.scaler.scaled(sample))
    weight = (settings.target_weight or TARGET_WEIGHT) * variance / targets.share
    scale = 1.0
    if RULES[settings.optimizer].is_scale_free:
        deviation = math.sqrt(_mean_variance(autoencoder.code(sample)))
        scale = 2.0 ** round(math.log2(_SPREAD / deviation))
    # Processors round features in different ways. Rounding makes the numbers equal.
    loss = TargetLoss(float(f"{weight:.3g}"), scale)
    return Supervision(targets, validation, loss)


def _mean_variance(sample: np.ndarray) -> float:
    """Return the mean variance of the columns; 1 if they do not vary."""
    if not len(sample):
        return 1.0
    return float(sample.var(axis=0, dtype=np.float64).mean()) or 1.0


# -- replicas ------------------------------------------------------------------------------------------------------


def _replicas(
    autoencoder: DeviceAutoencoder,
    step: DeviceStep,
    data: _Data,
    settings: ResolvedTraining,
    supervision: Supervision | None,
) -> Replicas | None:
    """Return the replicas that share the rows; None for a single replica."""
    if settings.replicas <= 1:
        return None
    loss = None if supervision is None else supervision.loss
    targets = None if supervision is None else supervision.targets.values
    network = autoencoder.network
    reader = data.reader
    dtype = reader.dtype.str
    common = ReplicaSettings(settings, network, reader.conversion, data.cleaning, dtype, reader.n_threads, loss)
    rounds = rounds_of(data.order, reader.shards, reader.conversion, settings)
    log.info(
        "training: one replica in the first epoch, then %d replicas that are averaged %s per epoch",
        settings.replicas,
        quantity(rounds.n_rounds, "time"),
    )
    own_replica = Replica(autoencoder, step, is_resident=data.rows.resident is not None)
    return Replicas(rounds, common, reader.shards, own_replica, targets)
