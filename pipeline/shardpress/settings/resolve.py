"""Defaults that depend on the inputs and on other settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec

from shardpress.settings.config import Config, NetworkSettings, TrainingSettings
from shardpress.settings.defaults import (
    COPIES_IN_TRAINING,
    EPOCHS,
    LEARNING_RATES,
    LEAST_STEPS,
    MANY_INPUTS,
    MASKED,
    MOST_UNITS,
    NETWORK_BYTES,
    RATED_INPUTS,
    ROWS_PER_UNIT,
    SHUFFLE_WINDOW,
    TARGET_RATE,
    TARGET_WEIGHT,
    UNITS_PER_INPUT,
)
from shardpress.settings.replicas import TrainingSizes, fitting_replicas, usual_replicas
from shardpress_kernels.activations import ACTIVATIONS, HIDDEN
from shardpress_kernels.network import Head, Network
from shardpress_kernels.rules import RULES


@dataclass(frozen=True, kw_only=True)
class _ResolvedNetwork(NetworkSettings):
    """Layers of the autoencoder, with all defaults resolved."""

    n_features: int
    hidden: tuple[int, ...]
    code_activation: str
    decoder_gain: bool
    output_layer: str

    @property
    def n_outputs(self) -> int:
        """Number of features that are written."""
        return self.hidden[-1] if self.output_layer == "hidden" else self.n_features


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(TrainingSettings):
    """Settings of the training, with all defaults resolved."""

    epochs: int
    batch_size: int
    learning_rate: float
    corruption: float
    replicas: int

    @property
    def hides_much(self) -> bool:
        """Whether training hides a large share of the entries, so that other features can have a smaller error."""
        return self.corruption > MASKED


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """All settings of a run after its inputs were opened. Some defaults depend on the inputs."""

    network: _ResolvedNetwork
    training: ResolvedTraining


def resolve(config: Config, n_rows: int, n_inputs: int, trained_network: Network | None = None) -> Settings:
    """Return the settings with all defaults that depend on the inputs and on other settings.

    `trained_network` is that of the model that the run uses instead of training one.
    """
    if trained_network is None:
        layers = _with_default_layers(config.network, n_rows, n_inputs)
    else:
        layers = _with_layers_of_model(config.network, trained_network)
    network = msgspec.convert(layers, _ResolvedNetwork, from_attributes=True)
    resolved = replace(config, network=network, training=_with_default_steps(config, network, n_rows, n_inputs))
    return msgspec.convert(resolved, Settings, from_attributes=True)


def _with_default_layers(requested: NetworkSettings, n_rows: int, n_inputs: int) -> NetworkSettings:
    """Return the network of a run that trains a model."""
    n_features = requested.n_features or min(64, max(1, n_inputs // 2))
    hidden = requested.hidden
    output_layer = requested.output_layer or "code"
    if hidden is None:
        # Wide features of narrow rows are useful, although a code needs few units per input.
        units_per_input = UNITS_PER_INPUT if output_layer == "code" else MOST_UNITS
        hidden = _default_hidden(n_rows, n_inputs, n_features, units_per_input)
    code_activation = requested.code_activation
    if code_activation is None:
        is_linear = hidden or n_inputs < MANY_INPUTS or requested.nested
        code_activation = "linear" if is_linear else "sigmoid"
    decoder_gain = requested.decoder_gain
    if decoder_gain is None:
        # With a gain in the decoder, the units of bounded features need not saturate.
        decoder_gain = ACTIVATIONS[code_activation].limits is not None
    return replace(
        requested,
        n_features=n_features,
        hidden=hidden,
        code_activation=code_activation,
        decoder_gain=decoder_gain,
        output_layer=output_layer,
    )


def _with_layers_of_model(requested: NetworkSettings, trained: Network) -> NetworkSettings:
    """Return the network of an existing model; contradicting settings are kept, and reported later."""
    hidden = requested.hidden
    if hidden is None:
        hidden = trained.widths[1:-1]
    return replace(
        requested,
        n_features=requested.n_features or trained.n_features,
        hidden=hidden,
        activation=trained.activation,
        code_activation=requested.code_activation or trained.code,
        decoder_gain=trained.gain,
        output_layer=requested.output_layer or trained.output_layer,
    )


def _with_default_steps(config: Config, network: _ResolvedNetwork, n_rows: int, n_inputs: int) -> TrainingSettings:
    requested = config.training
    n_trained = n_rows - round(config.validation.validation_fraction * n_rows)
    batch_size = requested.batch_size or _default_batch_size(n_rows)
    epochs = requested.epochs or _default_epochs(n_rows, n_trained)
    corruption = requested.corruption
    if corruption is None:
        corruption = MASKED if network.hidden and n_inputs >= MANY_INPUTS else 0.0
    window_rows = SHUFFLE_WINDOW // (8 * n_inputs)  # for the widest dtype: the actual one is unknown here
    sizes = TrainingSizes(n_trained, epochs, window_rows)
    return replace(
        requested,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=requested.learning_rate or _default_learning_rate(requested, n_inputs),
        corruption=corruption,
        target_weight=requested.target_weight or (TARGET_WEIGHT if requested.target else None),
        replicas=_replicas(requested.replicas, network, n_inputs, batch_size, sizes),
    )


def _default_learning_rate(requested: TrainingSettings, n_inputs: int) -> float:
    rate = LEARNING_RATES[requested.optimizer] * min(1.0, RATED_INPUTS / n_inputs)
    if requested.target is not None and n_inputs < MANY_INPUTS and RULES[requested.optimizer].is_scale_free:
        return TARGET_RATE * rate
    return rate


def _default_batch_size(n_rows: int) -> int:
    """Return a fiftieth of the rows, within limits, so that small data still give about fifty steps per epoch."""
    return min(128, max(16, n_rows // 50), n_rows)


def _default_epochs(n_rows: int, n_trained: int) -> int:
    """Return the epochs for the default batch size, so that a larger batch size does not lengthen the training."""
    steps_per_epoch = math.ceil(n_trained / _default_batch_size(n_rows))
    return max(EPOCHS, math.ceil(LEAST_STEPS / max(1, steps_per_epoch)))


def _replicas(
    requested: int | None, network: _ResolvedNetwork, n_inputs: int, batch_size: int, sizes: TrainingSizes
) -> int:
    if not requested:
        n_weights = Network((n_inputs, *network.hidden, network.n_features)).n_weights
        requested = usual_replicas(n_weights, sizes)
    return fitting_replicas(requested, batch_size, sizes)


def _default_hidden(n_rows: int, n_inputs: int, n_features: int, units_per_input: int) -> tuple[int, ...]:
    """Return one hidden layer, or none if rows or memory do not suffice for a layer that starts from components."""
    fits_in_memory = NETWORK_BYTES // (4 * COPIES_IN_TRAINING * (n_inputs + n_features))
    largest = min(units_per_input * n_inputs, n_rows // ROWS_PER_UNIT, fits_in_memory)
    smallest = 2 * n_features
    if largest < smallest:
        return ()
    return (min(largest, max(MOST_UNITS, smallest)),)


def largest_network(settings: Settings, n_columns: int, head: Head | None = None) -> Network:
    """Return the largest network that may be trained on rows of `n_columns` columns.

    Only the scan finds out which columns get a missing indicator.
    """
    n_inputs = 2 * n_columns if settings.bad_data.missing_indicator else n_columns
    return network_of(settings.network, n_inputs, head)


def network_of(settings: _ResolvedNetwork, n_inputs: int, head: Head | None = None) -> Network:
    """Return the network that is trained on rows of `n_inputs` columns and missing indicators."""
    widths = (n_inputs, *settings.hidden, settings.n_features)
    activation = settings.activation
    if not settings.hidden:
        activation = HIDDEN[0]  # the activation of hidden layers makes no difference without them
    return Network(
        widths,
        activation,
        settings.code_activation,
        settings.decoder_gain,
        head=head,
        nested=settings.nested,
        output_layer=settings.output_layer,
    )
