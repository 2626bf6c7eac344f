"""What follows from the inputs and from other settings, where a setting was left open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from kernels.activations import ACTIVATIONS, HIDDEN
from kernels.network import Network
from pipeline.settings.config import Config, NetworkSettings, StorageSettings, TrainingSettings
from pipeline.settings.defaults import (
    COPIES_IN_TRAINING,
    EPOCHS,
    LEARNING_RATES,
    LEAST_STEPS,
    MANY_INPUTS,
    MASKED,
    MOST_UNITS,
    RATED_INPUTS,
    ROWS_PER_UNIT,
    UNITS_PER_INPUT,
)
from pipeline.settings.replicas import TrainingSizes, fitting_replicas, usual_replicas

__all__ = [
    "ResolvedNetwork",
    "ResolvedStorage",
    "ResolvedTraining",
    "Settings",
    "misfits",
    "network_of",
    "resolve",
]


@dataclass(frozen=True, kw_only=True)
class ResolvedNetwork(NetworkSettings):
    """The layers of the autoencoder, of which none is left open."""

    n_features: int
    hidden: tuple[int, ...]
    code_activation: str
    decoder_gain: bool


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(TrainingSettings):
    """The settings of the training, none of which is left open."""

    epochs: int
    batch_size: int
    learning_rate: float
    corruption: float
    replicas: int

    @property
    def hides_much(self) -> bool:
        """True if training hides so much that its features are not meant to be those of the least error."""
        return self.corruption > MASKED


@dataclass(frozen=True, kw_only=True)
class ResolvedStorage(StorageSettings):
    """How features are stored; `storage_dtype` is None if the features decide it."""

    compression: str


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """All settings of a run that has opened its inputs, on which some defaults depend."""

    network: ResolvedNetwork
    training: ResolvedTraining
    storage: ResolvedStorage


def resolve(config: Config, n_rows: int, n_inputs: int, given: Network | None = None) -> Settings:
    """Return the settings with all defaults that depend on the inputs and on other settings.

    Parameters
    ----------
    n_rows, n_inputs : int
        Rows and columns of all shards.
    given : Network, optional
        The network of a given model.
    """
    network = _resolved_network(config, n_rows, n_inputs, given)
    training = _resolved_training(config, network, n_rows, n_inputs)
    storage = _resolved_storage(config.storage)
    return Settings(
        inputs=config.inputs,
        network=network,
        training=training,
        validation=config.validation,
        machine=config.machine,
        bad_data=config.bad_data,
        storage=storage,
        cluster=config.cluster,
        timing=config.timing,
        results=config.results,
    )


def _resolved_network(config: Config, n_rows: int, n_inputs: int, given: Network | None) -> ResolvedNetwork:
    asked = config.network
    code = asked.code_activation or ("sigmoid" if n_inputs >= MANY_INPUTS else "linear")
    if given is not None:
        # Settings that contradict the given model are reported when both are known.
        return ResolvedNetwork(
            n_features=asked.n_features or given.n_features,
            hidden=given.widths[1:-1] if asked.hidden is None else asked.hidden,
            activation=given.activation,
            code_activation=asked.code_activation or given.code,
            decoder_gain=given.gain if asked.decoder_gain is None else asked.decoder_gain,
        )
    n_features = asked.n_features or min(64, max(1, n_inputs // 2))
    hidden = asked.hidden
    if hidden is None:
        hidden = _hidden_of(config.machine.memory_budget, n_rows, n_inputs, n_features)
    decoder_gain = asked.decoder_gain
    if decoder_gain is None:
        decoder_gain = ACTIVATIONS[code].limits is not None  # so that its units need not saturate
    return ResolvedNetwork(
        n_features=n_features,
        hidden=hidden,
        activation=asked.activation,
        code_activation=code,
        decoder_gain=decoder_gain,
    )


def _resolved_training(config: Config, network: ResolvedNetwork, n_rows: int, n_inputs: int) -> ResolvedTraining:
    asked = config.training
    n_trained = n_rows - round(config.validation.validation_fraction * n_rows)
    # A fiftieth, so that few rows still make some fifty steps an epoch; never more rows than there are.
    usual_batch = min(128, max(16, n_rows // 50), n_rows)
    batch_size = usual_batch if asked.batch_size is None else asked.batch_size
    # Steps of the usual minibatches, whichever are requested: larger ones must not make a training longer.
    n_steps = math.ceil(n_trained / usual_batch)
    epochs = asked.epochs
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / max(1, n_steps)))
    learning_rate = asked.learning_rate
    if learning_rate is None:
        learning_rate = LEARNING_RATES[asked.optimizer] * min(1.0, RATED_INPUTS / n_inputs)
    corruption = asked.corruption
    if corruption is None:
        corruption = MASKED if network.hidden and n_inputs >= MANY_INPUTS else 0.0
    # For the widest numbers that rows can have, since their dtype is not known here.
    window_bytes = min(config.machine.shuffle_window, config.machine.memory_budget // 8)
    sizes = TrainingSizes(n_trained, epochs, window_bytes // (8 * n_inputs))
    n_weights = Network((n_inputs, *network.hidden, network.n_features)).n_weights
    replicas = fitting_replicas(asked.replicas or usual_replicas(n_weights, sizes), batch_size, sizes)
    return ResolvedTraining(
        start=asked.start,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=asked.optimizer,
        learning_rate=learning_rate,
        schedule=asked.schedule,
        biases=asked.biases,
        momentum=asked.momentum,
        corruption=corruption,
        weight_decay=asked.weight_decay,
        replicas=replicas,
        seed=asked.seed,
    )


def _resolved_storage(asked: StorageSettings) -> ResolvedStorage:
    dtype = asked.storage_dtype
    compression = asked.compression
    if asked.max_feature_error is None:
        dtype = dtype or "float32"
        compression = compression or "none"
    return ResolvedStorage(
        storage_dtype=dtype,
        compression=compression or "gzip",
        max_feature_error=asked.max_feature_error,
    )


def _hidden_of(memory_budget: int, n_rows: int, n_inputs: int, n_features: int) -> tuple[int, ...]:
    """Return one hidden layer, or none if rows or memory are too few for one that can start as principal components."""
    held = memory_budget // 2 // (4 * COPIES_IN_TRAINING * (n_inputs + n_features))
    most = min(UNITS_PER_INPUT * n_inputs, n_rows // ROWS_PER_UNIT, held)
    least = 2 * n_features
    if most < least:
        return ()
    return (min(most, max(MOST_UNITS, least)),)


def misfits(settings: Settings, n_rows: int, n_inputs: int) -> Iterator[str]:
    """Yield a sentence for each setting that does not suit a training on this number of rows and columns."""
    n_features = settings.network.n_features
    batch_size = settings.training.batch_size
    if n_features >= n_inputs:
        yield f"n_features: {n_features}, expected 1 to {n_inputs - 1} for these rows"
    if batch_size > n_rows:
        yield f"batch_size: {batch_size}, expected 1 to {n_rows} for these rows"


def network_of(settings: ResolvedNetwork, n_inputs: int) -> Network:
    """Return the network that is trained on rows of `n_inputs` columns."""
    widths = (n_inputs, *settings.hidden, settings.n_features)
    # Without hidden layers their activation makes no difference.
    activation = settings.activation if settings.hidden else HIDDEN[0]
    return Network(widths, activation, settings.code_activation, settings.decoder_gain)
