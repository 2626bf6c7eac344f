"""Short training run on some rows, which measures how long each part of training takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from shardpress.device import autoencoder_of, training_step_of
from shardpress.errors import DataError
from shardpress.model import Model
from shardpress.run.encoding_stage import compile_encoder
from shardpress.run.prepare import Prepared
from shardpress.run.sample import Pace, TrainingPace, measure_seconds
from shardpress.scan.ranges import Scan, readable
from shardpress.scan.scaler import Cleaning
from shardpress.shards.shard import row_dtype
from shardpress.training.components import Components, baseline_of, principal_components
from shardpress.training.epochs import Training, steps_of
from shardpress.training.order import Order, slab_starts
from shardpress.training.rows import ResidentRows, Rows, StreamedRows
from shardpress.training.start import has_room, start_of
from shardpress.training.targets import Supervision
from shardpress_kernels.network import TargetLoss

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder

_SECONDS = 1.5  # duration of the measured steps
_NO_LOSS = TargetLoss(0.0, 1.0)
_UNTIMED_STEPS = 3  # first steps, whose data are not yet in the processor's caches


class _Streamed:
    """Rows in memory with the interface of rows that are read from files."""

    resident = None

    def __init__(self, rows: ResidentRows) -> None:
        self.take = rows.take
        self._rows = rows

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        return map(self.take, self._rows.minibatches(order, epoch, batch_size, first, n_each))


def sample_training(prepared: Prepared, scan: Scan, resident: bool) -> tuple[TrainingPace, Model, Autoencoder]:
    """Train for a moment on some rows; return the measurements, the model, and the model on its device.

    Raise `DataError` if fewer than two rows are good.
    """
    config = prepared.config
    budget = prepared.budget
    network = prepared.network_for(scan)
    reading, sample = _read(prepared, scan)
    autoencoder = autoencoder_of(scan.scaler, network, row_dtype(prepared.shards))
    beginning, components = measure_seconds(lambda: _initialize(prepared, scan, sample, autoencoder))

    resident_rows = ResidentRows(sample)
    rows: Any = resident_rows if resident else _Streamed(resident_rows)
    compiling, step = measure_seconds(lambda: _compile(autoencoder, prepared, rows))

    n_validated = min(round(config.validation.validation_fraction * prepared.n_fitted), budget.max_validation_rows)
    validation = sample[: max(1, min(len(sample) // 2, n_validated))]
    seconds_validating, _ = measure_seconds(lambda: autoencoder.cost(validation))
    seconds_validating *= n_validated / len(validation)
    # Validation rows are evaluated before the first epoch, and again for the comparison with principal components.
    once = compiling + beginning + 2 * seconds_validating
    if n_validated:
        seconds_of_baseline, _ = measure_seconds(lambda: baseline_of(components, validation, scan.scaler))
        once += seconds_of_baseline * n_validated / len(validation)

    order = _order(prepared, n_validated)
    watched = validation if n_validated else validation[:0]
    supervision = _any_targets(prepared, len(sample), len(watched))
    training = Training(autoencoder, step, rows, order, watched, config.training, supervision=supervision)
    pace = TrainingPace(
        n_rows=order.n_rows,
        n_validated=n_validated,
        once=once,
        validating=seconds_validating,
        reading=reading,
        steps=_measure_steps(training, len(sample)),
        components=tuple(_errors_of_components(scan.scaler.scaled(sample[: budget.max_sample_rows]), components)),
    )
    return pace, _model(scan, autoencoder), autoencoder


def _order(prepared: Prepared, n_validated: int) -> Order:
    """Return an order of as many rows as training has. It may be of other rows: only their number matters here."""
    starts = slab_starts(prepared.shards, prepared.budget.window_rows // 4)
    left_out = np.arange(prepared.n_rows - prepared.n_fitted + n_validated)
    return Order(starts, left_out, prepared.budget.window_rows, prepared.config.training.seed)


def _any_targets(prepared: Prepared, n_rows: int, n_validated: int) -> Supervision | None:
    """Return the targets of the first rows for a sample and for its validation rows.

    They may be targets of other rows, because the values do not change the time of a step.
    """
    if prepared.targets is None:
        return None
    targets = replace(prepared.targets, values=np.resize(prepared.targets.values, n_rows))
    return Supervision(targets, targets.values[:n_validated], _NO_LOSS)


def _model(scan: Scan, autoencoder: Autoencoder) -> Model:
    network = autoencoder.network.encoder
    parameters = autoencoder.parameters()
    return Model(scan.scaler, network, {name: parameters[name] for name in network.shapes}, {})


def _read(prepared: Prepared, scan: Scan) -> tuple[Pace, np.ndarray]:
    """Return the pace of reading, and the good rows (n, n_inputs) that the search for components uses.

    Raise `DataError` if fewer than two rows are good.
    """
    config = prepared.config
    budget = prepared.budget
    shards, _ = readable(prepared.shards, scan)
    starts = slab_starts(shards, budget.window_rows // 4)
    slabs = np.random.default_rng(config.training.seed).permutation(len(starts) - 1)
    lengths = np.diff(starts)[slabs]
    n_before = np.cumsum(lengths) - lengths
    slabs = np.sort(slabs[n_before < max(budget.max_sample_rows, config.training.batch_size)])
    numbers = np.concatenate([np.arange(starts[slab], starts[slab + 1]) for slab in slabs])
    streamed = StreamedRows(shards, budget.n_threads, Cleaning(scan.scaler, config.bad_data.missing_value))
    # The first read comes from the disk, but a training run that reads rows many times finds most of them in memory.
    streamed.take(numbers)
    seconds, rows = measure_seconds(lambda: streamed.take(numbers))
    is_good = np.isfinite(rows).all(axis=1)
    if is_good.sum() < 2:
        raise DataError(
            f"{shards[0]} and the following shards: none of {len(rows)} sampled rows can be used for training."
        )
    return Pace(len(numbers), seconds), rows if is_good.all() else rows[is_good]


def _errors_of_components(scaled: np.ndarray, components: Components) -> Iterator[tuple[int, float]]:
    """Yield numbers of components, and the mean squared errors of scaled rows when reconstructed from them.

    The numbers are 0 (the mean row), powers of two from 8 on, and the number of features.
    """
    variance = float(scaled.var(axis=0, dtype=np.float64).sum())
    explained = np.cumsum([0.0, *components.deviations**2])
    n_features = len(components.deviations)
    powers = takewhile(lambda n: n < n_features, (2**i for i in range(3, 64)))
    for n in (0, *powers, n_features):
        yield n, max(0.0, variance - float(explained[n])) / scaled.shape[1]


def _initialize(prepared: Prepared, scan: Scan, sample: np.ndarray, autoencoder: Autoencoder) -> Components:
    """Set the initial parameters, and return the principal components."""
    settings = prepared.config.training
    network = autoencoder.network
    scaled = scan.scaler.scaled(sample[: prepared.budget.max_sample_rows])
    rng = np.random.default_rng(settings.seed)
    is_start = settings.start == "components" and has_room(network)
    components = principal_components(scaled, network.n_features, rng)
    start = start_of(network, rng, scaled.mean(axis=0), components if is_start else None)
    autoencoder.set_parameters(start)
    return components


def _compile(autoencoder: Autoencoder, prepared: Prepared, rows: Rows) -> Any:
    """Compile the functions that a run compiles before its first epoch; return the training step."""
    dtype = row_dtype(prepared.shards)
    step = training_step_of(autoencoder, prepared.config.training, dtype, rows.resident, _NO_LOSS)
    autoencoder.errors(np.empty((0, autoencoder.network.n_inputs), dtype))
    compile_encoder(autoencoder, prepared.shards, prepared.config.storage.row_error)
    return step


def _measure_steps(training: Training, n_rows: int) -> Pace:
    """Measure training steps in at most a few passes over the sample."""
    sample = Order(np.array([0, n_rows]), np.empty(0, np.int64), n_rows, training.settings.seed)
    passes = (steps_of(training, sample, epoch, 0) for epoch in range(_UNTIMED_STEPS + 1))
    steps = chain.from_iterable(passes)
    for _ in islice(steps, _UNTIMED_STEPS):
        pass
    n_done = 0
    start = time.monotonic()
    for step in steps:  # at least one, since each pass has one
        n_done = n_done + step.n_rows
        seconds = time.monotonic() - start
        if seconds > _SECONDS:
            break
    return Pace(n_done, seconds)
