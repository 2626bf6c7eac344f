"""Settings in slices, filled from defaults, a configuration file, the environment and flags.

Later sources override earlier ones. Each setting has a flag ``--like-this``, a key ``like_this`` in the YAML file that
``--config`` names, and an environment variable ``SHARDPRESS_LIKE_THIS``. The slice is not part of these names. A few
settings have none of them: only ``--preset`` sets them. The device is not a setting: Theano reads it from
``THEANO_FLAGS`` and ``.theanorc``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from msgspec import Meta, ValidationError, convert

from shardpress.base.errors import printable
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
    ROW_SCALES,
    TRANSFORMS,
    BadDataLimit,
    Bytes,
    ConditionText,
    DatasetPath,
    Devices,
    ExactNumber,
    FilePath,
    FolderPath,
    Kind,
    Label,
    Natural,
    Positive,
    SchedulerAddress,
    Time,
    Widths,
    YesOrNo,
    kind_of,
    one_of,
)
from shardpress.settings.presets import PRESETS
from shardpress_kernels.activations import CODES, HIDDEN
from shardpress_kernels.network import OUTPUT_LAYERS
from shardpress_kernels.rules import RULES

Affected = Literal["inputs", "scan", "model", "features", "nothing"]
"""The first result that a setting changes; results that are made from it change as well.

``scan``, ``model`` and ``features`` are recomputed when the value changes. A setting marked ``inputs`` matters only
through what it changes: which files are read, which rows have a target, how many epochs fit before a deadline, or the
values of other settings.
"""


Group = Literal["input", "bad data", "model", "training", "output", "machine", "cluster", "messages"]
"""Group of settings in ``--help`` and in printed settings."""


@dataclass(frozen=True)
class Setting:
    """Facts about one setting."""

    name: str  # also of its flag, key and field
    slice: str  # field of `Config` that holds the setting
    type: Any  # of its values, with their limits
    kind: Kind
    default: object  # None if it depends on other facts; a tuple if the setting takes several values
    affects: Affected
    group: Group
    is_common: bool  # whether ``--help`` shows it; ``--help-all`` shows all settings
    excludes: tuple[str, ...]  # settings that cannot be given as well
    requires: tuple[str, ...]  # settings one of which it needs in order to have an effect
    help: str  # in full sentences; a fixed default is appended to it

    @property
    def has_flag(self) -> bool:
        """Whether the setting has a flag, a key and a variable. Others can only be changed by a preset."""
        return self.help != ""

    def checked(self, value: object) -> object:
        """Return a plain value in the type of the setting. Raise `ValueError` if it is invalid."""
        try:
            return convert(value, self.type)
        except ValidationError:
            raise ValueError(f"{value!r}, expected {self.kind.expected}") from None


def _setting(
    help: str = "",
    *,
    default: object = None,
    affects: Affected | None = None,
    group: Group | None = None,
    is_common: bool = False,
    excludes: tuple[str, ...] = (),
    requires: tuple[str, ...] = (),
) -> Any:
    """Return a field of a slice; without a help text, it has no flag.

    By default, it affects what the slice affects, and belongs to the group of the slice.
    """
    facts: dict[str, object] = {"is_common": is_common, "excludes": excludes, "requires": requires, "help": help}
    if affects is not None:
        facts["affects"] = affects
    if group is not None:
        facts["group"] = group
    return field(default=default, metadata=facts)


def _slice(type: type[object], affects: Affected, group: Group) -> Any:
    """Return a field of `Config`."""
    return field(default_factory=type, metadata={"affects": affects, "group": group})


@dataclass(frozen=True)
class _InputSettings:
    """Input files, and the location of rows and columns in them."""

    input: tuple[FilePath, ...] = _setting(
        "Read these HDF5 shards: files, directories or globs.", default=("data/*.h5",), is_common=True
    )
    dataset: str | None = _setting("Dataset that contains the rows. Default: X, or the only candidate.", is_common=True)
    orientation: Literal["rows", "columns"] | None = _setting(
        "Axis of the rows: rows (first axis) or columns (last axis, as MATLAB, Fortran, Julia and R write them). "
        "Required for MATLAB files. Default: rows."
    )
    match_columns: Literal["order", "name", "ignore"] = _setting(
        "How to compare the column names of all files, and of --model: require the same order (order), reorder the "
        "columns by name (name), or do not compare names (ignore).",
        default="order",
    )
    columns: tuple[str, ...] = _setting(
        "Columns to read as rows, by their names: patterns such as 'gene*', or '!weight' for all others. Default: all "
        "columns of a matrix; of a table with values of several types, all numbers except for those named label, "
        "labels, target, class, index, id, *_id, and y if there is no x.",
        default=(),
        is_common=True,
    )
    include: tuple[DatasetPath, ...] = _setting(  # extra datasets are not used by scan or training
        "Copy these datasets, or all columns of these groups, to the output as extras, for example obs/cell_type or "
        "obs. Datasets next to the rows that have the same length, and the names of AnnData's cells, are always "
        "copied.",
        default=(),
        affects="features",
        is_common=True,
    )
    labels: DatasetPath | None = _setting(
        "Extra with the labels, for the report: it compares the accuracy of a classifier on the features and on "
        "principal components. Default: --target, otherwise the first usable one of --include, y, label, target, "
        "class, or any other; none that is named like a batch or an id.",
        affects="nothing",
        is_common=True,
    )
    missing_label: Label | None = _setting(
        "Treat this value of --labels and --target as missing, like NaN, empty strings and masked values; for example "
        "-1 or unknown. Default: no other value, so that -1 and 255 are labels.",
        is_common=True,
    )
    model: FilePath | None = _setting(
        "Encode with this model file, or with the model of this output directory; train nothing.",
        group="model",
        is_common=True,
    )


@dataclass(frozen=True)
class _ScalingSettings:
    """Scaling of the columns."""

    row_scale: Annotated[str, one_of(("auto", "none", *ROW_SCALES))] = _setting(
        "Divide each row by its total, and multiply it by 10,000 (total), or divide it by its median, its Euclidean "
        "norm (norm) or its largest absolute value (max), before the columns are scaled; or leave it as it is (none). "
        "With auto, rows that look like counts are divided by their total, and spectra of different brightness by "
        "their median.",
        default="auto",
        excludes=("missing_value",),  # prepared values cannot be compared with it
    )
    transform: Annotated[str, one_of(("auto", "none", *TRANSFORMS))] = _setting(
        "After --row-scale and before the columns are scaled, replace each value x by sign(x) log(1 + |x|) (log1p), or "
        "leave it as it is (none). With auto, counts and values with heavy tails are replaced by logarithms.",
        default="auto",
        is_common=True,
        excludes=("missing_value",),  # prepared values cannot be compared with it
    )
    scale: Literal["auto", "range", "std", "common", "none"] = _setting(
        "Scale each column to [0, 1] (range) or to the same variance (std), divide all columns by one number (common), "
        "leave them as they are (none), or choose one of the first three (auto).",
        default="auto",
        is_common=True,
    )


@dataclass(frozen=True)
class NetworkSettings:
    """The layers of the autoencoder."""

    n_features: Positive | None = _setting(  # the default depends on the inputs: see `resolve`
        "Number of features of the code. Default: 64, or half the columns if there are fewer than 128. With a --model "
        "that was trained with --nested: the number of its first features to write.",
        is_common=True,
    )
    hidden: Widths | None = _setting(
        "Number of units in each hidden layer between columns and features, or none. Default: one layer of 512, or "
        "fewer for narrow data or few rows.",
        is_common=True,
    )
    activation: Annotated[str, one_of(HIDDEN)] = _setting("Activation of the hidden layers.", default="relu")
    code_activation: Annotated[str, one_of(CODES)] | None = _setting(
        f"Activation of the features. Default: linear, or sigmoid for {MANY_INPUTS} columns or more without a hidden "
        "layer."
    )
    # Learn one scale factor per feature in the decoder, so that sigmoid features need not saturate. Default: True for
    # sigmoid features.
    decoder_gain: YesOrNo | None = _setting()
    nested: YesOrNo = _setting(
        "Train features whose first 8, 16, 32, ... can be used without the others, so that their number can be chosen "
        "afterwards. The features are linear.",
        default=False,
    )
    output_layer: Annotated[str, one_of(OUTPUT_LAYERS)] | None = _setting(
        "Layer whose outputs are the features: the code, which is as wide as --n-features, or the last hidden layer, "
        "which is usually wider (hidden). Default: code, or the layer of --model."
    )


@dataclass(frozen=True)
class TrainingSettings:
    """Initial weights and their updates."""

    preset: Annotated[str, one_of(PRESETS)] | None = _setting(
        "Start from the settings of a known model: the one of the published table, without hidden layers and with two "
        "sigmoid features (reference). Other settings override it.",
        affects="inputs",
        group="model",
        excludes=("model",),
    )
    # Initialize the weights from principal components or at random; then the biases from the column means or to zero.
    start: Literal["components", "random"] = _setting(default="components")
    biases: Literal["mean", "zero"] = _setting(default="mean")
    epochs: Positive | None = _setting(
        f"Maximum number of passes over the training rows. Default: {EPOCHS}, or more if {EPOCHS} epochs "
        f"have fewer than {LEAST_STEPS} steps.",
        is_common=True,
    )
    batch_size: Positive | None = _setting(
        "Number of rows in one training step. Default: a fiftieth of the rows, but at least 16 and at most 128."
    )
    optimizer: Annotated[str, one_of(RULES)] = _setting("Rule that updates the weights.", default="adam")
    learning_rate: Annotated[float, Meta(gt=0)] | None = _setting(
        f"Largest learning rate. Default: {', '.join(f'{v} for {k}' for k, v in LEARNING_RATES.items())}; lower "
        f"for inputs with more than {RATED_INPUTS} columns."
    )
    # The learning rate does not change (constant), or increases over the first epoch and then decreases to 0 (linear).
    schedule: Literal["constant", "linear"] = _setting(default="linear")
    # Rounded to n/256: larger values would become 1, and values from 0 to 0.004 would become 0 (see `conflicts`).
    corruption: Annotated[float, Meta(ge=0, le=0.998)] | None = _setting(
        "Fraction of the entries to hide from the encoder during training; they differ in each step. Default: "
        f"{MASKED} with a hidden layer and {MANY_INPUTS} columns or more, otherwise 0.",
        is_common=True,
    )
    fit_on: ConditionText | None = _setting(
        "Scan and train only on rows whose extra fulfils this condition, for example 'split==train', 'split in "
        "train,val' or 'quality>0.5' (in quotes, for the shell). All rows are encoded.",
        affects="scan",
        is_common=True,
        excludes=("model",),
    )
    target: DatasetPath | None = _setting(
        "Extra with classes (strings or whole numbers) or numbers (floats) that a linear function of the features "
        "learns to predict during training. Rows without a value are used for the reconstruction only. If fewer than "
        "20 % of the rows have a class, a linear classifier of the columns estimates the class of others. Use it with "
        "--fit-on, because features of the rows that they were trained on are too good.",
        is_common=True,
        excludes=("model",),
    )
    target_weight: Annotated[float, Meta(gt=0)] | None = _setting(
        f"Weight of the --target, compared with the reconstruction. Default: {TARGET_WEIGHT}.", requires=("target",)
    )
    replicas: Positive | None = _setting(
        "Number of copies of the model that train in parallel and are averaged many times per epoch; reduced if each "
        "would have too few steps. Default: 1 if one device trains in minutes, otherwise 8."
    )
    finish_by: Time | None = _setting(
        "Stop training in time to finish the run by this time, for example 06:00, '2030-01-31 06:00' or +8h, which is "
        "8 hours after the first start. Default: no limit.",
        affects="inputs",
        is_common=True,
    )
    seed: Natural = _setting("Seed of all random numbers.", default=0)


@dataclass(frozen=True)
class _ValidationSettings:
    """Measurement of the progress of the training."""

    validation_fraction: Annotated[float, Meta(ge=0, lt=1)] = _setting(
        "Fraction of the rows to hold out from training, in order to measure its progress.", default=0.05
    )
    patience: Natural = _setting(
        "Stop training after this number of epochs (at least 100 steps each) without a lower validation cost; 0 never "
        "stops early.",
        default=5,
    )


@dataclass(frozen=True)
class MachineSettings:
    """Use of memory and processors of this machine."""

    threads: Positive | None = _setting("Number of Dask threads. Default: one per processor core.")
    memory_budget: Annotated[Bytes, Meta(ge=2**24)] = _setting(
        "Host memory for rows and features, for example 4GiB.", default=2 * 2**30, is_common=True
    )
    # Rows that are kept in memory and rows that are streamed train the same model.
    device_memory_budget: Bytes | None = _setting(
        "Device memory for rows, for example 4GiB. Default: half of the free memory, or of the memory that "
        "gpuarray.preallocate reserves."
    )
    require_device: bool = _setting("Stop if Theano's device cannot be used, instead of using the CPU.", default=False)


@dataclass(frozen=True)
class BadDataSettings:
    """Handling of bad rows and files, missing values and outliers."""

    on_bad_data: Literal["raise", "skip"] = _setting(
        "What to do with rows that contain NaN or Inf and with unreadable shards: stop (raise), or write NaN features "
        "for them and list them in bad_rows.jsonl (skip).",
        default="raise",
        affects="inputs",
        is_common=True,
    )
    max_bad: BadDataLimit = _setting(  # checked again even if all results are reused
        "With --on-bad-data skip, stop if more of the data are bad: a percentage of the rows or of the shards, or a "
        "number of rows, for example 100. All rows of an unreadable shard count. A shard that cannot be opened needs a "
        "percentage, because its number of rows is unknown.",
        default="1%",
        affects="nothing",
        is_common=True,
    )
    missing_value: ExactNumber | None = _setting(  # missing values do not count towards ranges, so the scaling changes
        "Treat this value as missing, like NaN; for example -9999.", is_common=True
    )
    impute: Literal["mean", "median"] | None = _setting(
        "Replace missing values by the mean or median of their column; a row without any value stays bad. Default: "
        "rows with missing values are bad.",
        is_common=True,
    )
    missing_indicator: YesOrNo = _setting(
        "With --impute, add a column for each column with missing values, which is 1 where the value is missing and 0 "
        "elsewhere.",
        default=False,
        is_common=True,
        requires=("impute",),
    )
    clip_quantile: Annotated[float, Meta(ge=0, lt=0.5)] = _setting(
        "Clip this fraction of the values at either end of each column, so that outliers do not stretch its range; for "
        "example 0.001.",
        default=0.0,
        group="model",
        is_common=True,
    )
    on_drift: Literal["clip", "pass", "raise"] = _setting(
        "With --model or --fit-on, what to do with rows outside the range of the rows that the model was trained on: "
        "count them (pass), clip them to the range (clip), or stop (raise).",
        default="pass",
        affects="features",
        group="model",
    )


@dataclass(frozen=True)
class StorageSettings:
    """Storage of features."""

    storage_dtype: Literal["float32", "float16"] = _setting("Data type of the stored features.", default="float32")
    compression: Literal["none", "lzf", "gzip"] = _setting(
        "Compression of the stored features; lzf is specific to h5py.", default="none"
    )
    row_error: bool = _setting(
        "Store the reconstruction error of each row as well, as the extra error: the mean squared error in scaled "
        "units, of values before they are clipped. Rows with large errors are unlike the rows of the training.",
        default=False,
    )


@dataclass(frozen=True)
class ClusterSettings:
    """Processes that do the work."""

    workers: Natural = _setting(
        "Number of worker processes on this machine; 0 uses threads of one process.", default=0, excludes=("scheduler",)
    )
    devices: Devices | None = _setting(
        "Start a worker for each of these devices, for example cuda0,cuda1 or all. Default: the device of "
        "THEANO_FLAGS.",
        excludes=("scheduler",),  # its workers have their own devices
    )
    scheduler: SchedulerAddress | None = _setting(
        "Run on the Dask cluster with this scheduler: its address, for example tls://host:8786, or the file that it "
        "writes (dask scheduler --scheduler-file)."
    )
    insecure_cluster: bool = _setting(
        "Allow a connection without TLS to a scheduler on another machine.", default=False, requires=("scheduler",)
    )
    mixed_processors: bool = _setting(
        "Allow workers with different processors. The last bits of results then depend on which worker computed them.",
        default=False,
        requires=("scheduler",),
    )

    @property
    def has_workers(self) -> bool:
        """Return whether other processes do the work, which Dask's distributed scheduler manages."""
        return bool(self.workers or self.devices or self.scheduler)


@dataclass(frozen=True)
class ResultSettings:
    """The output directory, and the messages."""

    output: FolderPath = _setting("Write the results to this directory.", default="features", is_common=True)
    verify: Literal["digests", "sizes"] = _setting(
        "How to recognize input files and check earlier results: by digests where they are needed (digests), or "
        "without reading them, by name, size and modification time (sizes). --append checks results by size.",
        default="digests",
    )
    restart: bool = _setting("Discard all results in the output directory and start over.", default=False)
    overwrite: bool = _setting(
        "Allow replacing results that were made from the same input with other settings.",
        default=False,
        is_common=True,
        excludes=("restart",),
    )
    append: bool = _setting(
        "Encode new and changed files with the model in the output directory, and publish their features with the "
        "finished results.",
        default=False,
        is_common=True,
        excludes=("overwrite", "restart"),
    )
    drop_missing: bool = _setting(
        "With --append or --retrain, remove the rows of files that are no longer in the input from the results.",
        default=False,
        requires=("append", "retrain"),
    )
    on_append_drift: Literal["warn", "fail", "watch"] = _setting(
        "With --append, the verdicts on the new rows that end the run (80) without publishing their features: none, "
        "but watch and retrain are warnings (warn); retrain, and rows that cannot be judged (fail); or these and "
        "watch, which is the strictest value (watch).",
        default="warn",
        is_common=True,
        requires=("append",),
    )
    retrain: bool = _setting(
        "Train a new model on all files, and publish it with its features as the next generation. Earlier generations "
        "are kept, see --keep-generations.",
        default=False,
        is_common=True,
        excludes=("append", "restart", "model"),
    )
    keep_generations: Positive = _setting(
        "With --retrain, number of generations to keep, including the new one.", default=2, requires=("retrain",)
    )
    quiet: bool = _setting(
        "Print only warnings, errors and the summary.",
        default=False,
        group="messages",
        is_common=True,
        excludes=("verbose",),
    )
    verbose: bool = _setting("Print details as well.", default=False, group="messages")


@dataclass(frozen=True)
class Config:
    """All settings of a run, in slices. Each module receives the slice that it uses."""

    inputs: _InputSettings = _slice(_InputSettings, "inputs", "input")
    network: NetworkSettings = _slice(NetworkSettings, "model", "model")
    scaling: _ScalingSettings = _slice(_ScalingSettings, "scan", "model")
    training: TrainingSettings = _slice(TrainingSettings, "model", "training")
    validation: _ValidationSettings = _slice(_ValidationSettings, "model", "training")
    bad_data: BadDataSettings = _slice(BadDataSettings, "scan", "bad data")
    results: ResultSettings = _slice(ResultSettings, "nothing", "output")
    storage: StorageSettings = _slice(StorageSettings, "features", "output")
    machine: MachineSettings = _slice(MachineSettings, "nothing", "machine")
    cluster: ClusterSettings = _slice(ClusterSettings, "nothing", "cluster")

    @classmethod
    def of(cls, **values: object) -> Self:
        """Return the defaults with some settings changed."""
        return cls().changed(**values)

    @classmethod
    def from_flat(cls, values: Mapping[str, object]) -> Self:
        """Return the settings whose `flat` values were stored as JSON. Settings without a value have their defaults.

        Raise `ValueError` for an invalid value, and for an unknown setting, because it could affect the features.
        """
        settings = {}
        for name, value in values.items():
            if name not in SETTINGS:
                raise ValueError(f"{printable(name)}: an unknown setting, expected those of this version")
            try:
                settings[name] = SETTINGS[name].checked(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return cls.of(**settings)

    def changed(self, **values: object) -> Self:
        """Return a copy with other values of some settings, given by their names."""
        changes: dict[str, dict[str, object]] = {}
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
        values = getattr(defaults, part.name)
        types = get_type_hints(type(values), include_extras=True)
        for own in fields(values):
            type_ = types[own.name]
            facts = {**part.metadata, **own.metadata}
            settings[own.name] = Setting(own.name, part.name, type_, kind_of(type_), own.default, **facts)
    return settings


SETTINGS: Mapping[str, Setting] = _known_settings()
"""All settings by their names."""


def in_groups() -> Iterator[tuple[Group, list[Setting]]]:
    """Yield each group with its settings that have flags."""
    for group in get_args(Group):
        yield group, [setting for setting in SETTINGS.values() if setting.group == group and setting.has_flag]


def fingerprint_values(config: Config, result: Affected) -> dict[str, Any]:
    """Return the settings whose values determine a result, by their names."""
    values = config.flat()
    return {name: values[name] for name, setting in SETTINGS.items() if setting.affects == result}
