"""Settings: one frozen dataclass, filled from defaults, a configuration file, the environment and flags.

Later ones of these win. Every setting is a flag ``--like-this``, a key ``like_this`` of the YAML file that ``--config``
names, and an environment variable ``SHARDPRESS_LIKE_THIS``. The device is Theano's business: ``THEANO_FLAGS`` and
``.theanorc`` choose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.settings.kinds import (
    BYTES,
    DATASET,
    EXACT_NUMBER,
    FILES,
    FOLDER,
    LIMIT,
    NAME,
    NUMBER,
    WHOLE,
    YES_OR_NO,
    Kind,
    one_of,
)

__all__ = ["LEARNING_RATES", "Config", "problems"]

# Each rule's own good start; see docs/training.md for the measurements.
LEARNING_RATES = {"momentum": 0.1, "nesterov": 0.1, "adam": 0.003, "rmsprop": 0.001}


def _setting(default: Any, kind: Kind, help: str) -> Any:
    """A setting.

    One whose default is a tuple takes several values, each read by itself; one whose default is None can be none.
    """
    return field(default=default, metadata={"kind": kind.or_none() if default is None else kind, "help": help})


@dataclass(frozen=True)
class Config:
    """All settings of a run; the help texts of the fields describe them."""

    input: tuple[str, ...] = _setting(("data/*.h5",), FILES, "HDF5 shards: files, directories or globs, one or more")
    follow: tuple[str, ...] = _setting(
        (), FOLDER, "folders in which the files may lie that a master file among the inputs stacks"
    )
    dataset: str | None = _setting(None, NAME, "dataset with the rows (default: X, else the only candidate)")
    orientation: str | None = _setting(
        None,
        one_of("rows", "columns"),
        "along which axis of the dataset its rows lie: rows, the first one, or columns, the last one, as of files that "
        "MATLAB, Fortran, Julia or R have written (default: rows; MATLAB's files must be told)",
    )
    carry: tuple[str, ...] = _setting(
        (),
        DATASET,
        "datasets elsewhere in the files that ride along too, as labels do: paths from the root, like obs/cell_type",
    )
    output: str = _setting("features", FOLDER, "directory for the features")
    model: str | None = _setting(None, FILES, "encode with this model.h5 or output directory, no training")
    n_features: int | None = _setting(
        None, WHOLE, "columns out (default: 64, or half the columns where there are fewer than 128)"
    )
    epochs: int = _setting(20, WHOLE, "passes over the training rows, at most")
    batch_size: int | None = _setting(
        None, WHOLE, "rows of one training step (default: 128, or a fiftieth of the rows, at least 16)"
    )
    optimizer: str = _setting("adam", one_of(*LEARNING_RATES), "update rule")
    learning_rate: float | None = _setting(
        None, NUMBER, f"step size (default: {', '.join(f'{v} for {k}' for k, v in LEARNING_RATES.items())})"
    )
    schedule: str = _setting(
        "linear",
        one_of("constant", "linear"),
        "learning rate over the steps: constant, or linear (up over the first epoch, then down to 0 at the end)",
    )
    biases: str = _setting("mean", one_of("mean", "zero"), "start of the biases: the columns' mean, or zero")
    momentum: float = _setting(0.9, NUMBER, "decay of the update rule's running average")
    seed: int = _setting(0, WHOLE, "where all randomness starts")
    validation_fraction: float = _setting(0.05, NUMBER, "share of the rows kept out of training to watch its progress")
    patience: int = _setting(5, WHOLE, "stop after so many epochs without a better validation cost (0: never)")
    block_rows: int | None = _setting(None, WHOLE, "rows read at once (default: about 8 MiB of them)")
    threads: int | None = _setting(None, WHOLE, "Dask threads (default: one for each processor core)")
    memory_budget: int = _setting(2 * 2**30, BYTES, "host memory for rows and features, like 4GiB")
    device_memory_budget: int = _setting(2**30, BYTES, "device memory for rows, like 4GiB")
    shuffle_window: int = _setting(256 * 2**20, BYTES, "bytes of rows that are shuffled together")
    on_bad_data: str = _setting(
        "raise",
        one_of("raise", "skip", "quarantine"),
        "rows with NaN or Inf, and shards that cannot be read: raise stops, skip leaves them out (NaN features), "
        "quarantine also lists them in quarantine.jsonl",
    )
    max_bad_rows: str = _setting("1%", LIMIT, "bad rows that skip and quarantine let pass, a number or a percentage")
    max_bad_shards: str = _setting("1%", LIMIT, "the same for shards")
    missing_value: float | None = _setting(
        None, EXACT_NUMBER, "a value that stands for a missing one, like -9999: its rows are bad rows"
    )
    out_of_range: str = _setting(
        "allow",
        one_of("allow", "clip", "raise"),
        "with --model, rows outside the range that it was trained on: allow counts them, clip moves them to its edge",
    )
    checkpoint_minutes: float = _setting(5.0, NUMBER, "how much of the training an interruption may cost, at most")
    verify: str = _setting(
        "digests", one_of("digests", "sizes"), "what is compared of files that an earlier run has finished"
    )
    restart: bool = _setting(False, YES_OR_NO, "forget what an earlier run left in the output directory; begin again")
    require_device: bool = _setting(False, YES_OR_NO, "stop when Theano's device cannot be used, do not take the CPU")
    overwrite: bool = _setting(False, YES_OR_NO, "replace results of the same input files made with other settings")
    single_file: bool = _setting(False, YES_OR_NO, "also write single.h5: all rows in one file that needs no other")
    quiet: bool = _setting(False, YES_OR_NO, "print warnings, errors and the summary only")
    verbose: bool = _setting(False, YES_OR_NO, "print details")


def problems(config: Config) -> list[str]:
    """Everything that is wrong with the settings in themselves, one sentence each."""
    rate, missing = config.learning_rate, config.missing_value
    checks: list[tuple[bool, str, object, str]] = [
        (config.n_features is None or config.n_features >= 1, "n_features", config.n_features, "1 or more"),
        (not config.output.startswith("~"), "output", config.output, "a path whose ~ is expanded"),
        (config.epochs >= 1, "epochs", config.epochs, "1 or more"),
        (config.batch_size is None or config.batch_size >= 1, "batch_size", config.batch_size, "1 or more"),
        (rate is None or 0 < rate < math.inf, "learning_rate", rate, "a finite number above 0"),
        (0 <= config.momentum < 1, "momentum", config.momentum, "from 0 up to but not including 1"),
        (config.seed >= 0, "seed", config.seed, "0 or more"),
        (
            0 <= config.validation_fraction < 1,
            "validation_fraction",
            config.validation_fraction,
            "from 0 to below 1",
        ),
        (
            0 <= config.checkpoint_minutes < math.inf,
            "checkpoint_minutes",
            config.checkpoint_minutes,
            "0 or more, and finite",
        ),
        (missing is None or math.isfinite(missing), "missing_value", missing, "a finite number: NaN always is"),
        (not (config.overwrite and config.restart), "overwrite and restart", "both", "at most one of them"),
        (config.patience >= 0, "patience", config.patience, "0 or more"),
        (config.block_rows is None or config.block_rows >= 1, "block_rows", config.block_rows, "1 or more"),
        (config.threads is None or config.threads >= 1, "threads", config.threads, "1 or more"),
        (config.memory_budget >= 2**24, "memory_budget", config.memory_budget, "16MiB or more"),
        (config.device_memory_budget >= 0, "device_memory_budget", config.device_memory_budget, "0 or more"),
        (config.shuffle_window >= 1, "shuffle_window", config.shuffle_window, "1 or more"),
        (not (config.quiet and config.verbose), "quiet and verbose", "both", "at most one of them"),
    ]
    return [f"{name}: {found}, expected {expected}" for good, name, found, expected in checks if not good]
