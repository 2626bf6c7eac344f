"""Settings with nothing left open: what depends on the data, on a given model or on each other is filled in."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.settings.config import LEARNING_RATES, Config

__all__ = ["Settings", "resolve"]


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """All settings of a run that has looked at its inputs: those that may be left open have values here."""

    n_features: int
    batch_size: int
    learning_rate: float


def resolve(config: Config, n_rows: int, n_inputs: int, n_features: int | None = None) -> Settings:
    """Fill in every default that depends on others, on the data or on the model.

    Parameters
    ----------
    config : Config
    n_rows, n_inputs : int
        The shards' rows and columns.
    n_features : int, optional
        Of a given model.
    """
    n_features = config.n_features or n_features or min(64, max(1, n_inputs // 2))
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    # A fiftieth, so that few rows still make some fifty steps an epoch; never more rows than there are.
    batch_size = config.batch_size if config.batch_size is not None else min(128, max(16, n_rows // 50), n_rows)
    return Settings(**{**vars(config), "n_features": n_features, "batch_size": batch_size, "learning_rate": rate})
