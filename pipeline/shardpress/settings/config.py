"""Settings in slices, filled from defaults, a configuration file, the environment and flags.

Later sources override earlier ones. Each setting has a flag ``--like-this``, a key ``like_this`` in the YAML file that
``--config`` names, and an environment variable ``SHARDPRESS_LIKE_THIS``. The slice is not part of these names. A few
settings have none of them: only ``--preset`` sets them. The device is not a setting: Theano reads it from
``THEANO_FLAGS`` and ``.theanorc``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from shardpress.choices import ROW_SCALES, SCALES, TRANSFORMS
from shardpress.settings.defaults import (
    EPOCHS,
    LEARNING_RATES,
    LEAST_STEPS,
    MANY_INPUTS,
    MASKED,
    RATED_INPUTS,
    TARGET_WEIGHT,
)
from shardpress.settings.kinds import (
    CONDITION,
    DATASET,
    DEVICES,
    EXACT_NUMBER,
    FILES,
    FOLDER,
    LIMIT,
    NAME,
    SCHEDULER,
    SWITCH,
    TIME,
    WIDTHS,
    YES_OR_NO,
    Kind,
    number,
    one_of,
    size,
    whole,
)
from shardpress.settings.presets import PRESETS
from shardpress_kernels.activations import CODES, HIDDEN
from shardpress_kernels.network import OUTPUT_LAYERS
from shardpress_kernels.rules import RULES

Affected = Literal["inputs", "scan", "model", "features", "nothing"]
"""The first result that a setting changes; results that are made from it change as well.

``scan``, ``model`` and ``features`` are recomputed when the value changes. A setting marked ``inputs`` matters only
through what it changes: which files are read, how many epochs fit before a deadline, or the values of other settings.
"""


_EXCLUSIVE = (
    *(("overwrite", "restart"), ("quiet", "verbose")),
    *(
        ("append", "overwrite"),
        ("append", "restart"),
        ("retrain", "append"),
        ("retrain", "restart"),
        ("retrain", "model"),
    ),
    ("workers", "scheduler"),
    *(("fit_on", "model"), ("target", "model"), ("preset", "model")),
    *(("row_scale", "missing_value"), ("transform", "missing_value")),  # prepared values cannot be compared with it
    ("devices", "scheduler"),  # workers of a scheduler have their own devices
)
"""Pairs of settings that exclude each other."""


@dataclass(frozen=True)
class Setting:
    """Facts about one setting."""

    name: str  # also of its flag, key and field
    slice: str  # field of `Config` that holds the setting
    type: str  # annotation of its field
    default: object  # None if it depends on other facts; a tuple if the setting takes several values
    kind: Kind
    affects: Affected
    help: str  # in full sentences; a fixed default is appended to it
    has_flag: bool  # and a key and a variable


def _setting(default: Any, kind: Kind, affects: Affected, help: str) -> Any:
    if default is None:
        kind = kind.or_none()
    return field(default=default, metadata={"kind": kind, "affects": affects, "help": help, "has_flag": True})


def _preset_only(default: Any, kind: Kind, affects: Affected) -> Any:
    """Return a field without a flag, which only a preset can change."""
    if default is None:
        kind = kind.or_none()
    return field(default=default, metadata={"kind": kind, "affects": affects, "help": "", "has_flag": False})


def _switch(help: str) -> Any:
    """Return a field that is off by default, and changes no result."""
    return _setting(False, SWITCH, "nothing", help)


@dataclass(frozen=True)
class _InputSettings:
    """Input files, and the location of rows and columns in them."""

    input: tuple[str, ...] = _setting(
        ("data/*.h5",), FILES, "inputs", "Read these HDF5 shards: files, directories or globs."
    )
    dataset: str | None = _setting(
        None, NAME, "inputs", "Dataset that contains the rows. Default: X, or the only candidate."
    )
    orientation: str | None = _setting(
        None,
        one_of("rows", "columns"),
        "inputs",
        "Axis of the rows: rows (first axis) or columns (last axis, as MATLAB, Fortran, Julia and R write them). "
        "Required for MATLAB files. Default: rows.",
    )
    match_columns: str = _setting(
        "order",
        one_of("order", "name", "ignore"),
        "inputs",
        "How to compare the column names of all files, and of --model: require the same order (order), reorder the "
        "columns by name (name), or do not compare names (ignore).",
    )
    include: tuple[str, ...] = _setting(  # extra datasets are not used by scan or training
        (),
        DATASET,
        "features",
        "Copy these datasets, or all columns of these groups, to the output as extras, for example obs/cell_type or "
        "obs. Datasets next to the rows that have the same length, and the names of AnnData's cells, are always "
        "copied.",
    )
    labels: str | None = _setting(
        None,
        DATASET,
        "nothing",
        "Extra with the labels, for the report: it compares the accuracy of a classifier on the features and on "
        "principal components. Default: the first usable one of --include, y, label, target, class, or any other; "
        "none that is named like a batch or an id.",
    )
    fit_on: str | None = _setting(
        None,
        CONDITION,
        "scan",
        "Scan and train only on rows whose extra fulfils this condition, for example 'split==train', 'split in "
        "train,val' or 'quality>0.5' (in quotes, for the shell). All rows are encoded.",
    )
    model: str | None = _setting(
        None, FILES, "inputs", "Encode with this model.h5, or with the model of this output directory; train nothing."
    )


@dataclass(frozen=True)
class _ScalingSettings:
    """Scaling of the columns."""

    scale: str = _setting(
        "auto",
        one_of("auto", *SCALES),
        "scan",
        "Scale each column to [0, 1] (range) or to the same variance (std), divide all columns by one number (common), "
        "leave them as they are (none), or choose one of the first three (auto).",
    )
    row_scale: str | None = _setting(
        None,
        one_of(*ROW_SCALES),
        "scan",
        "Divide each row by its total, and multiply it by 10,000 (total), or divide it by its median, its Euclidean "
        "norm (norm) or its largest absolute value (max), before the columns are scaled.",
    )
    transform: str | None = _setting(
        None,
        one_of(*TRANSFORMS),
        "scan",
        "After --row-scale and before the columns are scaled, replace each value x by sign(x) log(1 + |x|) (log1p), or "
        "by its rank among the values of its column, from 0 to 1 (rank).",
    )


@dataclass(frozen=True)
class NetworkSettings:
    """The layers of the autoencoder."""

    n_features: int | None = _setting(  # the default depends on the inputs: see `resolve`
        None,
        whole(1),
        "model",
        "Number of features of the code. Default: 64, or half the columns if there are fewer than 128. With a --model "
        "that was trained with --nested: the number of its first features to write.",
    )
    hidden: tuple[int, ...] | None = _setting(
        None,
        WIDTHS,
        "model",
        "Number of units in each hidden layer between columns and features, or none. Default: one layer of 512, or "
        "fewer for narrow data or few rows.",
    )
    output_layer: str | None = _setting(
        None,
        one_of(*OUTPUT_LAYERS),
        "model",
        "Layer whose outputs are the features: the code, which is as wide as --n-features, or the last hidden layer, "
        "which is usually wider (hidden). Default: code, or the layer of --model.",
    )
    activation: str = _setting("relu", one_of(*HIDDEN), "model", "Activation of the hidden layers.")
    code_activation: str | None = _setting(
        None,
        one_of(*CODES),
        "model",
        f"Activation of the features. Default: sigmoid, or linear for fewer than {MANY_INPUTS} columns or if some rows "
        "are much larger than the others.",
    )
    # Learn one scale factor per feature in the decoder, so that sigmoid features need not saturate. Default: True for
    # sigmoid features.
    decoder_gain: bool | None = _preset_only(None, YES_OR_NO, "model")
    nested: bool = _setting(
        False,
        YES_OR_NO,
        "model",
        "Train features whose first 8, 16, 32, ... can be used without the others, so that their number can be chosen "
        "afterwards. The features are linear.",
    )


@dataclass(frozen=True)
class TrainingSettings:
    """Initial weights and their updates."""

    preset: str | None = _setting(
        None,
        one_of(*PRESETS),
        "inputs",
        "Start from the settings of a known model: the one of the published table, without hidden layers and with two "
        "sigmoid features (reference). Other settings override it.",
    )
    # Initialize the weights from principal components or at random; then the biases from the column means or to zero.
    start: str = _preset_only("components", one_of("components", "random"), "model")
    biases: str = _preset_only("mean", one_of("mean", "zero"), "model")
    epochs: int | None = _setting(
        None,
        whole(1),
        "model",
        f"Maximum number of passes over the training rows. Default: {EPOCHS}, or more if {EPOCHS} epochs "
        f"have fewer than {LEAST_STEPS} steps.",
    )
    batch_size: int | None = _setting(
        None,
        whole(1),
        "model",
        "Number of rows in one training step. Default: a fiftieth of the rows, but at least 16 and at most 128.",
    )
    optimizer: str = _setting("adam", one_of(*RULES), "model", "Rule that updates the weights.")
    learning_rate: float | None = _setting(
        None,
        number(lambda rate: 0 < rate < math.inf, "a finite number above 0"),
        "model",
        f"Largest learning rate. Default: {', '.join(f'{v} for {k}' for k, v in LEARNING_RATES.items())}; lower "
        f"for inputs with more than {RATED_INPUTS} columns.",
    )
    # The learning rate does not change (constant), or increases over the first epoch and then decreases to 0 (linear).
    schedule: str = _preset_only("linear", one_of("constant", "linear"), "model")
    # Decay rate of the optimizer's running average.
    momentum: float = _preset_only(0.9, number(lambda share: 0 <= share < 1, "from 0 to below 1"), "model")
    # Each step shrinks the weights by this factor times the learning rate.
    weight_decay: float = _preset_only(0.0, number(lambda rate: 0 <= rate < math.inf, "0 or more, and finite"), "model")
    corruption: float | None = _setting(  # rounded to n/256: smaller values would become 0, larger ones 1
        None,
        number(lambda share: share == 0 or 0.004 <= share <= 0.998, "0, or from 0.004 to 0.998"),
        "model",
        "Fraction of the entries to hide from the encoder during training; they differ in each step. Default: "
        f"{MASKED} with a hidden layer and {MANY_INPUTS} columns or more, otherwise 0.",
    )
    target: str | None = _setting(
        None,
        DATASET,
        "model",
        "Extra with classes (strings or whole numbers) or numbers (floats) that a linear function of the features "
        "learns to predict during training. Rows without a value are used for the reconstruction only. If fewer than "
        "20 % of the rows have a class, a linear classifier of the columns estimates the class of others. Use it with "
        "--fit-on, because features of the rows that they were trained on are too good.",
    )
    target_weight: float | None = _setting(
        None,
        number(lambda weight: 0 < weight < math.inf, "a finite number above 0"),
        "model",
        f"Weight of the --target, compared with the reconstruction. Default: {TARGET_WEIGHT}.",
    )
    replicas: int | None = _setting(
        None,
        whole(1),
        "model",
        "Number of copies of the model that train in parallel and are averaged many times per epoch; reduced if each "
        "would have too few steps. Default: 1 if one device trains in minutes, otherwise 8.",
    )
    seed: int = _setting(0, whole(0), "model", "Seed of all random numbers.")


@dataclass(frozen=True)
class _ValidationSettings:
    """Measurement of the progress of the training."""

    validation_fraction: float = _setting(
        0.05,
        number(lambda share: 0 <= share < 1, "from 0 to below 1"),
        "model",
        "Fraction of the rows to hold out from training, in order to measure its progress.",
    )
    patience: int = _setting(
        5,
        whole(0),
        "model",
        "Stop training after this number of epochs (at least 100 steps each) without a lower validation cost; 0 never "
        "stops early.",
    )


@dataclass(frozen=True)
class MachineSettings:
    """Use of memory and processors of this machine."""

    threads: int | None = _setting(
        None, whole(1), "nothing", "Number of Dask threads. Default: one per processor core."
    )
    memory_budget: int = _setting(
        2 * 2**30, size(2**24, "16MiB or more"), "nothing", "Host memory for rows and features, for example 4GiB."
    )
    # Rows that are kept in memory and rows that are streamed train the same model.
    device_memory_budget: int | None = _setting(
        None,
        size(0),
        "nothing",
        "Device memory for rows, for example 4GiB. Default: half of the free memory, or of the memory that "
        "gpuarray.preallocate reserves.",
    )
    require_device: bool = _switch("Stop if Theano's device cannot be used, instead of using the CPU.")


@dataclass(frozen=True)
class _BadDataSettings:
    """Handling of bad rows and files, missing values and outliers."""

    on_bad_data: str = _setting(
        "raise",
        one_of("raise", "skip"),
        "inputs",
        "What to do with rows that contain NaN or Inf and with unreadable shards: stop (raise), or write NaN features "
        "for them and list them in bad_rows.jsonl (skip).",
    )
    max_bad: str = _setting(  # checked again even if all results are reused
        "1%",
        LIMIT,
        "nothing",
        "With --on-bad-data skip, stop if more of the data are bad: a percentage of the rows or of the shards, or a "
        "number of rows, for example 100. All rows of an unreadable shard count. A shard that cannot be opened needs a "
        "percentage, because its number of rows is unknown.",
    )
    missing_value: float | None = _setting(  # missing values do not count towards ranges, so the scaling changes
        None, EXACT_NUMBER, "scan", "Treat this value as missing, like NaN; for example -9999."
    )
    impute: str | None = _setting(
        None,
        one_of("mean", "median"),
        "scan",
        "Replace missing values by the mean or median of their column; a row without any value stays bad. Default: "
        "rows with missing values are bad.",
    )
    missing_indicator: bool = _setting(
        False,
        YES_OR_NO,
        "scan",
        "With --impute, add a column for each column with missing values, which is 1 where the value is missing and 0 "
        "elsewhere.",
    )
    clip_quantile: float = _setting(
        0.0,
        number(lambda share: 0 <= share < 0.5, "from 0 to below 0.5"),
        "scan",
        "Clip this fraction of the values at either end of each column, so that outliers do not stretch its range; for "
        "example 0.001.",
    )
    on_drift: str = _setting(
        "pass",
        one_of("clip", "pass", "raise"),
        "features",
        "With --model or --fit-on, what to do with rows outside the range of the rows that the model was trained on: "
        "count them (pass), clip them to the range (clip), or stop (raise).",
    )


@dataclass(frozen=True)
class StorageSettings:
    """Storage of features."""

    storage_dtype: str = _setting(
        "float32", one_of("float32", "float16"), "features", "Data type of the stored features."
    )
    compression: str = _setting(
        "none",
        one_of("none", "lzf", "gzip"),
        "features",
        "Compression of the stored features; lzf is specific to h5py.",
    )


@dataclass(frozen=True)
class ClusterSettings:
    """Processes that do the work."""

    workers: int = _setting(
        0, whole(0), "nothing", "Number of worker processes on this machine; 0 uses threads of one process."
    )
    devices: tuple[str, ...] | None = _setting(
        None,
        DEVICES,
        "nothing",
        "Start a worker for each of these devices, for example cuda0,cuda1 or all. Default: the device of "
        "THEANO_FLAGS.",
    )
    scheduler: str | None = _setting(
        None,
        SCHEDULER,
        "nothing",
        "Run on the Dask cluster with this scheduler: its address, for example tls://host:8786, or the file that it "
        "writes (dask scheduler --scheduler-file).",
    )
    insecure_cluster: bool = _switch("Allow a connection without TLS to a scheduler on another machine.")
    mixed_processors: bool = _switch(
        "Allow workers with different processors. The last bits of results then depend on which worker computed them."
    )


@dataclass(frozen=True)
class TimingSettings:
    """The end of the run."""

    finish_by: str | None = _setting(
        None,
        TIME,
        "inputs",
        "Stop training in time to finish the run by this time, for example 06:00, '2030-01-31 06:00' or +8h, which is "
        "8 hours after the first start. Default: no limit.",
    )


@dataclass(frozen=True)
class ResultSettings:
    """The output directory, and the messages."""

    output: str = _setting("features", FOLDER, "nothing", "Write the results to this directory.")
    verify: str = _setting(
        "digests",
        one_of("digests", "sizes"),
        "nothing",
        "How to check files of an earlier run: by size and digest (digests), or by size only (sizes).",
    )
    restart: bool = _switch("Discard all results in the output directory and start over.")
    overwrite: bool = _switch("Allow replacing results that were made from the same input with other settings.")
    append: bool = _switch(
        "Encode new and changed files with the model in the output directory, and add their features to the finished "
        "results."
    )
    drop_missing: bool = _switch(
        "With --append or --retrain, remove the rows of files that are no longer in the input from the results."
    )
    on_append_drift: str = _setting(
        "warn",
        one_of("warn", "fail"),
        "nothing",
        "With --append, what to do if the new rows differ so much from the rows of the training that a new model is "
        "needed, or cannot be compared with them: publish their features with a warning (warn), or end without "
        "publishing them (fail).",
    )
    retrain: bool = _switch(
        "Train a new model on all files, and publish it with its features as the next generation. Earlier generations "
        "are kept, see --keep-generations."
    )
    keep_generations: int = _setting(
        2, whole(1), "nothing", "With --retrain, number of generations to keep, including the new one."
    )
    quiet: bool = _switch("Print only warnings, errors and the summary.")
    verbose: bool = _switch("Print details as well.")


@dataclass(frozen=True)
class Config:
    """All settings of a run, in slices. Each module receives the slice that it uses."""

    inputs: _InputSettings = field(default_factory=_InputSettings)
    scaling: _ScalingSettings = field(default_factory=_ScalingSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    validation: _ValidationSettings = field(default_factory=_ValidationSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    bad_data: _BadDataSettings = field(default_factory=_BadDataSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    timing: TimingSettings = field(default_factory=TimingSettings)
    results: ResultSettings = field(default_factory=ResultSettings)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return the defaults with some settings changed."""
        return cls().changed(**values)

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values of some settings, given by their names."""
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            changes.setdefault(SETTINGS[name].slice, {})[name] = value
        slices = {name: replace(getattr(self, name), **change) for name, change in changes.items()}
        return replace(self, **slices)

    def flat(self) -> dict[str, Any]:
        """Return all values by the names of the settings."""
        return {name: getattr(getattr(self, setting.slice), name) for name, setting in SETTINGS.items()}


def _known_settings() -> dict[str, Setting]:
    """Return all settings by their names, slice by slice."""
    settings = {}
    defaults = Config()
    for part in fields(Config):
        for each in fields(getattr(defaults, part.name)):
            settings[each.name] = Setting(each.name, part.name, str(each.type), each.default, **each.metadata)
    return settings


SETTINGS: Mapping[str, Setting] = _known_settings()
"""All settings by their names."""


def fingerprint_values(config: Config, result: Affected) -> dict[str, Any]:
    """Return the settings whose values determine a result, by their names."""
    values = config.flat()
    return {name: values[name] for name, setting in SETTINGS.items() if setting.affects == result}


def problems(config: Config) -> list[str]:
    """Return a sentence for each setting that is invalid for every input."""
    values = config.flat()
    wrong = []
    for name, value in values.items():
        kind = SETTINGS[name].kind
        if not kind.is_valid(value):
            wrong.append(f"{name}: {value}, expected {kind.expected}")
    for pair in _EXCLUSIVE:
        if all(values[name] for name in pair):
            wrong.append(f"{' and '.join(pair)}: both are set, expected at most one of them")
    if config.training.target_weight is not None and config.training.target is None:
        wrong.append("target_weight: set without target, expected both. Set target, or remove target_weight.")
    if config.network.nested and config.network.code_activation not in (None, "linear"):
        wrong.append(
            f"code_activation: {config.network.code_activation} with nested, expected linear. Remove one of them."
        )
    if config.network.nested and config.network.output_layer == "hidden":
        wrong.append(
            "output_layer: hidden with nested, expected code, because only the features of the code are nested. Remove "
            "one of them."
        )
    if config.network.output_layer == "hidden" and config.network.hidden == ():
        wrong.append("output_layer: hidden without hidden layers, expected one. Set hidden, or remove output_layer.")
    if config.bad_data.missing_indicator and config.bad_data.impute is None:
        wrong.append(
            "missing_indicator: set without impute, expected impute mean or median, because rows with missing values "
            "are bad otherwise. Set impute, or remove missing_indicator."
        )
    return wrong + _without_append(config.results) + _without_cluster(config.cluster)


def _without_append(results: ResultSettings) -> list[str]:
    """Return a sentence for each setting of an append or a new generation that was given without it."""
    found = []
    if results.drop_missing and not (results.append or results.retrain):
        found.append(
            "drop_missing: set without append or retrain, expected one of them. Set one, or remove drop_missing."
        )
    if results.on_append_drift != "warn" and not results.append:
        found.append("on_append_drift: set without append, expected both. Set append, or remove on_append_drift.")
    if results.keep_generations != 2 and not results.retrain:
        found.append("keep_generations: set without retrain, expected both. Set retrain, or remove keep_generations.")
    return found


def _without_cluster(cluster: ClusterSettings) -> list[str]:
    """Return a sentence for each cluster option that was given without a cluster."""
    if cluster.scheduler:
        return []
    return [
        f"{name}: set without scheduler, expected both. Set scheduler, or remove {name}."
        for name in ("insecure_cluster", "mixed_processors")
        if getattr(cluster, name)
    ]
