"""What follows from the inputs and from other settings, where a setting was left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernels.network import ACTIVATIONS, Network
from pipeline.settings.config import Config
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

__all__ = ["Settings", "misfits", "network_of", "resolve"]


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """All settings of a run that has looked at its inputs: nothing is left open of what follows from them."""

    n_features: int
    hidden: tuple[int, ...]
    code_activation: str
    decoder_gain: bool
    epochs: int
    batch_size: int
    learning_rate: float
    corruption: float
    compression: str
    replicas: int

    @property
    def hides_much(self) -> bool:
        """Whether training hides so much that its features are to be other ones than those of the least error."""
        return self.corruption > MASKED


def resolve(config: Config, n_rows: int, n_inputs: int, given: Network | None = None) -> Settings:
    """Fill in what follows from the shards' rows and columns, a given model's network and other settings."""
    # A fiftieth, so that few rows still make some fifty steps an epoch; never more rows than there are.
    batch_size = min(128, max(16, n_rows // 50), n_rows)
    # Of such minibatches, whichever are asked for: larger ones must not make a training longer.
    n_steps = -(-(n_rows - round(config.validation_fraction * n_rows)) // batch_size)
    n_features = config.n_features or (given.n_features if given else min(64, max(1, n_inputs // 2)))
    hidden = given.widths[1:-1] if given else _hidden_of(config, n_rows, n_inputs, n_features)
    hidden = hidden if config.hidden is None else config.hidden
    code = config.code_activation or ("sigmoid" if n_inputs >= MANY_INPUTS else "linear")
    follows: dict[str, Any] = {
        "n_features": n_features,
        "hidden": hidden,
        "code_activation": code,
        "decoder_gain": code == "sigmoid",
        "epochs": max(EPOCHS, -(-LEAST_STEPS // max(1, n_steps))),
        "batch_size": batch_size,
        "learning_rate": LEARNING_RATES[config.optimizer] * min(1.0, RATED_INPUTS / n_inputs),
        "storage_dtype": "float32" if config.max_feature_error is None else None,  # the features themselves tell
        "compression": "none" if config.max_feature_error is None else "gzip",
        "corruption": MASKED if hidden and n_inputs >= MANY_INPUTS else 0.0,
    }
    if given:  # what contradicts it is told where both are at hand
        follows |= {"code_activation": given.code, "decoder_gain": given.gain}
    found = {name: value for name, value in follows.items() if getattr(config, name) is None}
    if given:
        found["activation"] = given.activation  # which is never left open
    n_weights = Network((n_inputs, *hidden, n_features)).n_weights
    # Of the widest numbers that rows can have, since their dtype is not known here.
    window_rows = min(config.shuffle_window, config.memory_budget // 8) // (8 * n_inputs)
    n_trained = n_rows - round(config.validation_fraction * n_rows)
    sizes = TrainingSizes(n_trained, config.epochs or follows["epochs"], window_rows)
    asked = config.replicas or usual_replicas(n_weights, sizes)
    found["replicas"] = fitting_replicas(asked, config.batch_size or batch_size, sizes)
    return Settings(**{**vars(config), **found})


def _hidden_of(config: Config, n_rows: int, n_inputs: int, n_features: int) -> tuple[int, ...]:
    """One hidden layer, or none where rows or memory are too few for one that can start as the principal components."""
    held = config.memory_budget // 2 // (4 * COPIES_IN_TRAINING * (n_inputs + n_features))
    room, least = min(UNITS_PER_INPUT * n_inputs, n_rows // ROWS_PER_UNIT, held), 2 * n_features
    return (min(room, max(MOST_UNITS, least)),) if room >= least else ()


def misfits(settings: Settings, n_rows: int, n_inputs: int) -> Iterator[str]:
    """What of the settings cannot be of a training on so many rows and columns, one sentence each."""
    if settings.n_features >= n_inputs:
        yield f"n_features: {settings.n_features}, expected 1 to {n_inputs - 1} for these rows"
    if settings.batch_size > n_rows:
        yield f"batch_size: {settings.batch_size}, expected 1 to {n_rows} for these rows"


def network_of(settings: Settings, n_inputs: int) -> Network:
    """The network that is trained on rows of so many columns."""
    widths = (n_inputs, *settings.hidden, settings.n_features)
    # Without hidden layers theirs is no difference.
    activation = settings.activation if settings.hidden else ACTIVATIONS[0]
    return Network(widths, activation, settings.code_activation, settings.decoder_gain)
