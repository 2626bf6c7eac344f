"""Settings without a flag, and sizes that are constants, for tests that start the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shardpress import cli
from shardpress.output.disk import Disk
from shardpress.run import budget, training_stage
from shardpress.settings import flags, resolve
from shardpress.settings.config import Config


def set_fields(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Set fields of all settings that are read from now on, in this process."""
    merge = flags._merge

    def merge_and_set(given: dict[str, Any], variables: dict[str, str]) -> Config:
        return merge(given, variables).changed(**values)

    monkeypatch.setattr(flags, "_merge", merge_and_set)


def set_sizes(
    monkeypatch: pytest.MonkeyPatch,
    *,
    block_rows: int | None = None,
    shuffle_window: int | None = None,
    sample_bytes: int | None = None,
    checkpoint_seconds: float | None = None,
) -> None:
    """Set the rows of a block, the bytes of windows and samples, and the time between checkpoints, in this process."""
    if block_rows is not None:
        monkeypatch.setattr(budget, "_wanted_block_rows", lambda thread_bytes, row_bytes: block_rows)
    if shuffle_window is not None:
        monkeypatch.setattr(budget, "SHUFFLE_WINDOW", shuffle_window)
        monkeypatch.setattr(resolve, "SHUFFLE_WINDOW", shuffle_window)
    if sample_bytes is not None:
        monkeypatch.setattr(budget, "_SAMPLE_BYTES", sample_bytes)
        monkeypatch.setattr(budget, "_VALIDATION_BYTES", sample_bytes)
    if checkpoint_seconds is not None:
        monkeypatch.setattr(training_stage, "_CHECKPOINT_SECONDS", checkpoint_seconds)


def run_with_sizes(arguments: Sequence[str], disk: Disk | None = None) -> int:
    """Run the program; arguments of the form ``block_rows=8`` are passed to `set_sizes`."""
    sizes = [argument.split("=") for argument in arguments if is_size(argument)]
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, **{name: int(value) for name, value in sizes})
        return cli.main("", [argument for argument in arguments if not is_size(argument)], disk)


def is_size(argument: str) -> bool:
    """Return whether an argument has the form ``block_rows=8``."""
    return argument.split("=")[0] in ("block_rows", "shuffle_window", "sample_bytes", "checkpoint_seconds")
