"""What is looked at before a run begins: the inputs, the settings, the room on the disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import ConfigError, DataError, WriteFailed, shown
from pipeline.model import Model
from pipeline.output.ledger import Ledger
from pipeline.run.fingerprints import Request
from pipeline.settings.config import LEARNING_RATES, Config, allowed, plain
from pipeline.shards.open import open_shards
from pipeline.shards.shard import Shard

__all__ = ["check_space", "misfits", "open_inputs", "own_inputs", "own_model", "refuse", "resolved"]

log = logging.getLogger(__name__)


def open_inputs(config: Config) -> tuple[tuple[Shard, ...], list[dict[str, str]]]:
    """The shards, and those that were refused and may be left out."""
    if config.on_bad_data == "raise":
        return open_shards(
            config.input, config.dataset, followed=config.follow, orientation=config.orientation, carry=config.carry
        ), []
    refused: list[dict[str, str]] = []

    def refuse(path: Path, error: DataError) -> None:
        log.warning("%s This shard is left out.", error)
        refused.append({"file": str(path), "reason": str(error)})

    shards = open_shards(config.input, config.dataset, refuse, config.follow, config.orientation, config.carry)
    limit = allowed(config.max_bad_shards, len(shards) + len(refused))
    if len(refused) > limit:
        raise DataError(
            f"{len(refused)} of {len(shards) + len(refused)} shards are bad, expected {limit} at most "
            f"(--max-bad-shards {config.max_bad_shards}). The first: {refused[0]['reason']}"
        )
    return shards, refused


def refuse(found: Sequence[str]) -> None:
    """Stop when something was found that speaks against the settings."""
    if found:
        raise ConfigError("; ".join(found))


def misfits(config: Config, model: Model, shard: Shard) -> list[str]:
    """What does not fit together about an old model and new shards."""
    where = f"model={shown(config.model)}"
    found = []
    if model.n_inputs != shard.n_inputs:
        found.append(f"{where}: made for {model.n_inputs} columns, found {shard.n_inputs} in file={shown(shard.path)}")
    if model.n_features != config.n_features:
        found.append(f"{where}: gives {model.n_features} features, found n_features {config.n_features}: leave it out")
    return found


def own_inputs(directory: Path, shards: Sequence[Shard]) -> list[str]:
    """Shards that writing to `directory` would remove."""
    inside = [shard.path for shard in shards if directory.resolve() in Path(shard.path).resolve().parents]
    return [
        f"output={shown(directory)}: holds the input file={shown(path)}, expected another --output"
        for path in inside[:1]
    ]


def own_model(directory: Path, model: str | None) -> list[str]:
    """A model that writing to `directory` would remove."""
    if model is None or directory.resolve() not in (Path(model).resolve(), Path(model).resolve().parent):
        return []
    return [f"output={shown(directory)}: holds the model itself and what it was trained on, expected another --output"]


def check_space(ledger: Ledger, config: Config, shards: Sequence[Shard], request: Request) -> None:
    """A full disk is better met in the evening."""
    assert config.n_features is not None
    row_bytes = 4 * config.n_features + 1 + 8 * len(shards[0].riders)
    needed = sum(shard.n_rows for shard in shards) * row_bytes * (2 if config.single_file else 1)
    try:
        free = ledger.disk.free_bytes(ledger.directory)
    except OSError as error:
        log.debug("output=%s: how much is free there cannot be told: %s", shown(ledger.directory), error)
        return
    # Parts of this very model that are there already; which one it is, only the training tells.
    there = sum(record.entry.n_bytes for record in ledger.all_records("part"))
    if needed - there > free:
        raise WriteFailed(
            f"output={shown(ledger.directory)}: {free} bytes are free there, expected {needed - there} at least for "
            "the features. Free some space, or choose another --output."
        )


def resolved(config: Config, n_rows: int, n_inputs: int, model: Model | None) -> Config:
    """The settings with every default that depends on others or on the data filled in."""
    n_features = config.n_features or (model.n_features if model else min(64, max(1, n_inputs // 2)))
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    batch_size = config.batch_size if config.batch_size is not None else min(128, max(16, n_rows // 50), n_rows)
    found = dataclasses.replace(config, n_features=n_features, learning_rate=rate, batch_size=batch_size)
    for name, value in asdict(found).items():
        log.info("  %-22s %s", name, plain(value))
    return found
