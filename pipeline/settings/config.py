"""Settings in slices, filled from defaults, a configuration file, the environment and flags.

Later sources override earlier ones. A setting is a flag ``--like-this``, a key ``like_this`` of the YAML file that
``--config`` names, and an environment variable ``SHARDPRESS_LIKE_THIS``; none of them names its slice. Theano chooses
the device, by ``THEANO_FLAGS`` and ``.theanorc``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from kernels.activations import CODES, HIDDEN
from kernels.rules import RULES
from pipeline.settings.defaults import EPOCHS, LEARNING_RATES, LEAST_STEPS, MANY_INPUTS, MASKED, RATED_INPUTS
from pipeline.settings.kinds import (
    DATASET,
    DEVICES,
    EXACT_NUMBER,
    FILES,
    FOLDER,
    FOLDERS,
    LIMIT,
    NAME,
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

__all__ = [
    "SETTINGS",
    "Affected",
    "BadDataSettings",
    "ClusterSettings",
    "Config",
    "InputSettings",
    "MachineSettings",
    "NetworkSettings",
    "ResultSettings",
    "Setting",
    "StorageSettings",
    "TimingSettings",
    "TrainingSettings",
    "ValidationSettings",
    "current_name",
    "fingerprint_values",
    "problems",
]

Affected = Literal["inputs", "budget", "scan", "model", "features", "nothing"]
"""The first result that a setting changes; results that are made from it change as well.

``scan``, ``model`` and ``features`` are recomputed when the value changes. A setting of ``inputs`` or of a ``budget``
matters only by its effect: the files that are read; the rows that are shuffled together or used for validation, if not
all of them; the epochs that fit into a time.
"""


_EXCLUSIVE = (
    *(("overwrite", "restart"), ("quiet", "verbose"), ("storage_dtype", "max_feature_error")),
    *(("workers", "scheduler"), ("workers", "scheduler_file"), ("scheduler", "scheduler_file")),
    *(("devices", "scheduler"), ("devices", "scheduler_file")),  # workers of a scheduler have their own devices
)
"""Pairs of settings that exclude each other."""


@dataclass(frozen=True)
class Setting:
    """Facts about one setting.

    Attributes
    ----------
    name : str
        Name of the setting, its flag, its key and its field.
    slice : str
        Field of `Config` that holds it.
    type : str
        Annotation of its field.
    default : object
        None if it depends on other facts; a tuple if the setting takes several values.
    kind : Kind
        How its values are read, and which are valid.
    affects : str
        The first result that a change recomputes, see `Affected`.
    help : str
        Description of its flag.
    before : object
        The value with which a version that did not have this setting works the same way. With this value the setting is
        left out of the fingerprint, so that results of that version are reused. An empty tuple if there is none.
    formerly : tuple of (str, dict), optional
        The key, and the values by today's values, that stand for a renamed setting in fingerprints.
    """

    name: str
    slice: str
    type: str
    default: object
    kind: Kind
    affects: Affected
    help: str
    before: object
    formerly: tuple[str, Mapping[str, str]] | None


def _setting(
    default: Any,
    kind: Kind,
    affects: Affected,
    help: str,
    before: object = (),
    formerly: tuple[str, Mapping[str, str]] | None = None,
) -> Any:
    """Return a field with the facts of its setting, see `Setting`."""
    if default is None:
        kind = kind.or_none()
    facts = {"kind": kind, "affects": affects, "help": help, "before": before, "formerly": formerly}
    return field(default=default, metadata=facts)


def _switch(help: str) -> Any:
    """Return a field that is off by default, and changes no result."""
    return _setting(False, SWITCH, "nothing", help)


@dataclass(frozen=True)
class InputSettings:
    """Input files, and the location of rows and columns in them."""

    input: tuple[str, ...] = _setting(
        ("data/*.h5",), FILES, "inputs", "HDF5 shards: files, directories or globs, one or more"
    )
    follow: tuple[str, ...] = _setting(
        (), FOLDERS, "inputs", "folders in which the files may lie that a master file among the inputs stacks"
    )
    dataset: str | None = _setting(None, NAME, "inputs", "dataset with the rows (default: X, else the only candidate)")
    orientation: str | None = _setting(
        None,
        one_of("rows", "columns"),
        "inputs",
        "along which axis of the dataset its rows lie: rows, the first one, or columns, the last one, as of files that "
        "MATLAB, Fortran, Julia or R have written (default: rows; MATLAB's files must be told)",
    )
    match_columns: str = _setting(
        "order",
        one_of("order", "name", "ignore"),
        "inputs",
        "how the columns of all files, and of --model, are compared where files name them: refuse names in another "
        "order (order), reorder the columns by their names (name), or do not compare them (ignore)",
    )
    include: tuple[str, ...] = _setting(  # extra datasets are not used by scan or training
        (),
        DATASET,
        "features",
        "datasets elsewhere in the files to copy to the output as extras: paths from the root, like obs/cell_type",
        formerly=("carry", {}),
    )
    model: str | None = _setting(None, FILES, "inputs", "encode with this model.h5 or output directory, no training")


@dataclass(frozen=True)
class NetworkSettings:
    """The layers of the autoencoder."""

    n_features: int | None = _setting(  # the default depends on the inputs: see `resolve`
        None, whole(1), "model", "columns out (default: 64, or half the columns where there are fewer than 128)"
    )
    hidden: tuple[int, ...] | None = _setting(
        None,
        WIDTHS,
        "model",
        "units of each hidden layer between the columns and the features, or none (default: one layer of 512, of fewer "
        "for narrow data or few rows)",
    )
    activation: str = _setting("relu", one_of(*HIDDEN), "model", "of the hidden layers", before="relu")
    code_activation: str | None = _setting(
        None,
        one_of(*CODES),
        "model",
        f"of the features (default: sigmoid, or linear of fewer than {MANY_INPUTS} columns)",
        before="sigmoid",
    )
    decoder_gain: bool | None = _setting(
        None,
        YES_OR_NO,
        "model",
        "whether the decoder learns a factor for each feature, so that sigmoids need not saturate (default: with a "
        "sigmoid code)",
        before=False,
    )


@dataclass(frozen=True)
class TrainingSettings:
    """Start of the weights, and their updates."""

    start: str = _setting(
        "components",
        one_of("components", "random"),
        "model",
        "start of the weights: the rows' principal components, as nearly as the layers can be them, or random",
        before="random",
    )
    epochs: int | None = _setting(
        None,
        whole(1),
        "model",
        f"passes over the training rows, at most (default: {EPOCHS}, or as many as make {LEAST_STEPS} steps)",
    )
    batch_size: int | None = _setting(
        None, whole(1), "model", "rows of one training step (default: 128, or a fiftieth of the rows, at least 16)"
    )
    optimizer: str = _setting("adam", one_of(*RULES), "model", "update rule")
    learning_rate: float | None = _setting(
        None,
        number(lambda rate: 0 < rate < math.inf, "a finite number above 0"),
        "model",
        f"step size (default: {', '.join(f'{v} for {k}' for k, v in LEARNING_RATES.items())}; less for more than "
        f"{RATED_INPUTS} columns)",
    )
    schedule: str = _setting(
        "linear",
        one_of("constant", "linear"),
        "model",
        "learning rate over the steps: constant, or linear (up over the first epoch, then down to 0 at the end)",
    )
    biases: str = _setting(
        "mean", one_of("mean", "zero"), "model", "start of the biases of random weights: the columns' mean, or zero"
    )
    momentum: float = _setting(
        0.9,
        number(lambda share: 0 <= share < 1, "from 0 up to but not including 1"),
        "model",
        "decay of the update rule's running average",
    )
    corruption: float | None = _setting(  # in steps of 1/256: smaller shares would become 0, larger ones 1
        None,
        number(lambda share: share == 0 or 0.004 <= share <= 0.998, "0, or from 0.004 to 0.998"),
        "model",
        "share of the entries that training hides from the encoder, others in each step (default: "
        f"{MASKED} with a hidden layer and {MANY_INPUTS} columns or more, else 0)",
        before=0.0,
    )
    weight_decay: float = _setting(
        0.0,
        number(lambda rate: 0 <= rate < math.inf, "0 or more, and finite"),
        "model",
        "by how much a step shrinks the weights, times its learning rate",
        before=0.0,
    )
    replicas: int | None = _setting(
        None,
        whole(1),
        "model",
        "copies of the model that train apart and meet many times an epoch, on as many workers as there are; fewer "
        "where each would take too few steps (default: 1 where one device trains in minutes, else 8)",
        before=1,
    )
    seed: int = _setting(0, whole(0), "model", "where all randomness starts")


@dataclass(frozen=True)
class ValidationSettings:
    """Measurement of the progress of the training."""

    validation_fraction: float = _setting(
        0.05,
        number(lambda share: 0 <= share < 1, "from 0 to below 1"),
        "model",
        "share of the rows kept out of training to watch its progress",
    )
    patience: int = _setting(
        5,
        whole(0),
        "model",
        "stop after so many epochs, or hundreds of steps where these are longer, without a better validation cost "
        "(0: never)",
    )
    baseline: bool = _setting(  # it is part of the report, not of the model
        True, YES_OR_NO, "nothing", "compare the features with as many principal components, and with the columns' mean"
    )


@dataclass(frozen=True)
class MachineSettings:
    """Use of memory and processors of this machine."""

    # The encoder works in tiles of one height, so neither blocks nor threads change any result.
    block_rows: int | None = _setting(None, whole(1), "nothing", "rows read at once (default: about 8 MiB of them)")
    threads: int | None = _setting(None, whole(1), "nothing", "Dask threads (default: one for each processor core)")
    memory_budget: int = _setting(
        2 * 2**30, size(2**24, "16MiB or more"), "budget", "host memory for rows and features, like 4GiB"
    )
    # Rows that are kept in memory and rows that are streamed train the same model.
    device_memory_budget: int | None = _setting(
        None,
        size(0),
        "nothing",
        "device memory for rows, like 4GiB (default: half of what is free, or is set aside by gpuarray.preallocate)",
    )
    shuffle_window: int = _setting(256 * 2**20, size(1), "budget", "bytes of rows that are shuffled together")
    require_device: bool = _switch("stop when Theano's device cannot be used, do not take the CPU")


@dataclass(frozen=True)
class BadDataSettings:
    """Handling of bad rows and files, missing values and outliers."""

    on_bad_data: str = _setting(
        "raise",
        one_of("raise", "skip", "quarantine"),
        "inputs",
        "rows with NaN or Inf, and shards that cannot be read: raise stops, skip leaves them out (NaN features), "
        "quarantine also lists them in quarantine.jsonl",
    )
    max_bad_rows: str = _setting(  # checked again even if all results are reused
        "1%", LIMIT, "nothing", "bad rows that skip and quarantine let pass, a number or a percentage"
    )
    max_bad_shards: str = _setting("1%", LIMIT, "nothing", "the same for shards")
    missing_value: float | None = _setting(  # its rows belong to no range, so the scaling changes
        None, EXACT_NUMBER, "scan", "a value that stands for a missing one, like -9999, as NaN does"
    )
    impute: str | None = _setting(
        None,
        one_of("mean", "median"),
        "scan",
        "fill in what is missing with its column's mean or median, but in rows without any value (default: a row that "
        "misses one is a bad row)",
        before=None,
    )
    clip_quantile: float = _setting(
        0.0,
        number(lambda share: 0 <= share < 0.5, "from 0 to below 0.5"),
        "scan",
        "share of each column's values, at either end, that its range leaves out and that are moved to its edge, where "
        "outliers leave the others no room: 0.001 (0: none)",
        before=0.0,
    )
    on_drift: str = _setting(
        "pass",
        one_of("clip", "pass", "raise"),
        "features",
        "with --model, rows outside the range that it was trained on: pass counts them, clip moves them to its edge, "
        "raise stops",
        formerly=("out_of_range", {"pass": "allow"}),
    )


@dataclass(frozen=True)
class StorageSettings:
    """Storage of features."""

    storage_dtype: str | None = _setting(
        None,
        one_of("float32", "float16"),
        "features",
        "of the stored features (default: float32, or what --max-feature-error lets do)",
        before="float32",
    )
    compression: str | None = _setting(
        None,
        one_of("none", "lzf", "gzip"),
        "features",
        "of the stored features, in chunks; lzf is h5py's own (default: none, or gzip with --max-feature-error)",
        before="none",
    )
    max_feature_error: float | None = _setting(
        None,
        number(lambda error: 1e-9 <= error < math.inf, "1e-9 or more, and finite"),
        "features",
        "how far stored features may be off, like 1e-3: they are rounded as much, and take what room is left then",
        before=None,
    )


@dataclass(frozen=True)
class ClusterSettings:
    """Processes that do the work."""

    workers: int = _setting(0, whole(0), "nothing", "processes of this machine that do the work (0: threads of one do)")
    devices: tuple[str, ...] | None = _setting(
        None, DEVICES, "nothing", "one for each of these workers, like cuda0,cuda1, or all (default: by THEANO_FLAGS)"
    )
    scheduler: str | None = _setting(
        None, NAME, "nothing", "of a Dask cluster that is there, like tls://host:8786: its workers do the work"
    )
    scheduler_file: str | None = _setting(None, FILES, "nothing", "the same, by the file that the scheduler writes")
    insecure_cluster: bool = _switch("talk to a scheduler on another machine without TLS")
    mixed_processors: bool = _switch("take workers on other kinds of processors: bits then depend on who does what")
    dashboard: bool = _switch("say where Dask's own page about the workers is; of --workers open it, on 127.0.0.1")


@dataclass(frozen=True)
class TimingSettings:
    """Times of checkpoints, and the end of the run."""

    checkpoint_minutes: float = _setting(
        5.0,
        number(lambda minutes: 0 <= minutes < math.inf, "0 or more, and finite"),
        "nothing",
        "how much of the training an interruption may cost, at most",
    )
    finish_by: str | None = _setting(
        None,
        TIME,
        "budget",
        "when the run is to be over, like 06:00 or 2030-01-31 06:00: it trains for as many of the epochs as fit before "
        "all rows have to be encoded (default: for all of them, or until that gains nothing more)",
    )
    max_hours: float | None = _setting(
        None,
        number(lambda hours: 0 < hours < 24 * 366, "above 0, and less than a year"),
        "budget",
        "the same, counted from the start",
    )


@dataclass(frozen=True)
class ResultSettings:
    """The output directory, and the messages."""

    output: str = _setting("features", FOLDER, "nothing", "directory for the features")
    verify: str = _setting(
        "digests", one_of("digests", "sizes"), "nothing", "what is compared of files that an earlier run has finished"
    )
    restart: bool = _switch("forget what an earlier run left in the output directory; begin again")
    overwrite: bool = _switch("replace results of the same input files made with other settings")
    single_file: bool = _switch("also write single.h5: all rows in one file that needs no other")
    quiet: bool = _switch("print warnings, errors and the summary only")
    verbose: bool = _switch("print details")


@dataclass(frozen=True)
class Config:
    """All settings of a run, in slices. Each module receives the slice that it uses."""

    inputs: InputSettings = field(default_factory=InputSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    bad_data: BadDataSettings = field(default_factory=BadDataSettings)
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
    """Return the settings whose values determine a result, by their names in fingerprints."""
    values = config.flat()
    found = {}
    for name, setting in SETTINGS.items():
        value = values[name]
        if setting.affects != result or value == setting.before:
            continue
        if setting.formerly is not None:
            name, spelled = setting.formerly
            value = spelled.get(value, value)
        found[name] = value
    return found


def current_name(key: str, value: object) -> tuple[str, object]:
    """Return the current name and value of a setting, given its key and value in a fingerprint."""
    for setting in SETTINGS.values():
        if setting.formerly is None or setting.formerly[0] != key:
            continue
        for current, former in setting.formerly[1].items():
            if value == former:
                return setting.name, current
        return setting.name, value
    return key, value


def problems(config: Config) -> list[str]:
    """Return a sentence for each setting that cannot work, whatever the inputs are."""
    values = config.flat()
    wrong = []
    for name, value in values.items():
        kind = SETTINGS[name].kind
        if not kind.holds(value):
            wrong.append(f"{name}: {value}, expected {kind.expected}")
    for pair in _EXCLUSIVE:
        if all(values[name] for name in pair):
            wrong.append(f"{' and '.join(pair)}: both, expected at most one of them")
    return wrong + _without_cluster(config.cluster)


def _without_cluster(cluster: ClusterSettings) -> list[str]:
    """Return a sentence for each cluster option that was given without a cluster."""
    has_scheduler = bool(cluster.scheduler or cluster.scheduler_file)
    has_workers = bool(has_scheduler or cluster.workers or cluster.devices)
    found = []
    if cluster.insecure_cluster and not has_scheduler:
        found.append("insecure_cluster: set, expected with scheduler")
    if cluster.mixed_processors and not has_scheduler:
        found.append("mixed_processors: set, expected with scheduler")
    if cluster.dashboard and not has_workers:
        found.append("dashboard: set, expected with workers or scheduler")
    return found
