"""Settings: one frozen dataclass, filled from defaults, a configuration file, the environment and flags.

Later ones of these win. Every setting is a flag ``--like-this``, a key ``like_this`` of the YAML file that ``--config``
names, and an environment variable ``SHARDPRESS_LIKE_THIS``. The device is Theano's business: ``THEANO_FLAGS`` and
``.theanorc`` choose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kernels.network import ACTIVATIONS, CODES
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

__all__ = ["FORMERLY", "Affected", "Config", "deciding", "problems"]

Affected = Literal["inputs", "budget", "scan", "model", "features", "nothing"]
"""What a setting changes first; what is made from that follows.

``scan``, ``model`` or ``features`` are made anew when its value changes. What chooses ``inputs`` or a ``budget`` counts
by what comes of it: the files that are read; how many rows are shuffled together or watched, where that is not all;
that only as many epochs are made as fit into a time.
"""


_ONE_OF_TWO = (
    *(("overwrite", "restart"), ("quiet", "verbose"), ("storage_dtype", "max_feature_error")),
    *(("workers", "scheduler"), ("workers", "scheduler_file"), ("scheduler", "scheduler_file")),
    *(("devices", "scheduler"), ("devices", "scheduler_file")),  # whose workers have theirs
)

FORMERLY = {"on_drift": ("out_of_range", {"pass": "allow"})}
"""Settings that were renamed: by what name, and values, they count where results are told apart."""


def _setting(default: Any, kind: Kind, affects: Affected, help: str, before: Any = ()) -> Any:
    """A setting. What it affects must be said: results are taken over when all that affects them is as it was.

    One whose default is a tuple takes several values, each read by itself; one whose default is None can be none.
    Versions that did not know it worked as with the value `before`.
    """
    kind = kind.or_none() if default is None else kind
    return field(default=default, metadata={"kind": kind, "affects": affects, "help": help, "before": before})


def _switch(help: str) -> Any:
    """A setting that is off by default, and changes no result."""
    return _setting(False, SWITCH, "nothing", help)


@dataclass(frozen=True)
class Config:
    """All settings of a run; the help texts of the fields describe them."""

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
    carry: tuple[str, ...] = _setting(  # what rides along is not looked at by scan or training
        (),
        DATASET,
        "features",
        "datasets elsewhere in the files that ride along too, as labels do: paths from the root, like obs/cell_type",
    )
    output: str = _setting("features", FOLDER, "nothing", "directory for the features")
    model: str | None = _setting(None, FILES, "inputs", "encode with this model.h5 or output directory, no training")
    n_features: int | None = _setting(  # open until the inputs are known: see `resolve`
        None, whole(1), "model", "columns out (default: 64, or half the columns where there are fewer than 128)"
    )
    hidden: tuple[int, ...] | None = _setting(
        None,
        WIDTHS,
        "model",
        "units of each hidden layer between the columns and the features, or none (default: one layer of 512, of fewer "
        "for narrow data or few rows)",
    )
    activation: str = _setting("relu", one_of(*ACTIVATIONS), "model", "of the hidden layers", before="relu")
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
    optimizer: str = _setting("adam", one_of(*LEARNING_RATES), "model", "update rule")
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
    corruption: float | None = _setting(  # in steps of 1/256, of which neither none nor all would be what was asked for
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
    baseline: bool = _setting(  # what is told of a model, not what is in it
        True, YES_OR_NO, "nothing", "compare the features with as many principal components, and with the columns' mean"
    )
    # The encoder works in tiles of one height, so neither blocks nor threads change a bit.
    block_rows: int | None = _setting(None, whole(1), "nothing", "rows read at once (default: about 8 MiB of them)")
    threads: int | None = _setting(None, whole(1), "nothing", "Dask threads (default: one for each processor core)")
    memory_budget: int = _setting(
        2 * 2**30, size(2**24, "16MiB or more"), "budget", "host memory for rows and features, like 4GiB"
    )
    # Whether rows are kept or streamed, and where, trains the same model.
    device_memory_budget: int | None = _setting(
        None,
        size(0),
        "nothing",
        "device memory for rows, like 4GiB (default: half of what is free, or is set aside by gpuarray.preallocate)",
    )
    shuffle_window: int = _setting(256 * 2**20, size(1), "budget", "bytes of rows that are shuffled together")
    on_bad_data: str = _setting(
        "raise",
        one_of("raise", "skip", "quarantine"),
        "inputs",
        "rows with NaN or Inf, and shards that cannot be read: raise stops, skip leaves them out (NaN features), "
        "quarantine also lists them in quarantine.jsonl",
    )
    max_bad_rows: str = _setting(  # ends a run or lets it pass, and is asked again of a finished one
        "1%", LIMIT, "nothing", "bad rows that skip and quarantine let pass, a number or a percentage"
    )
    max_bad_shards: str = _setting("1%", LIMIT, "nothing", "the same for shards")
    missing_value: float | None = _setting(  # its rows count in no range, so the scaling changes
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
    )
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
    verify: str = _setting(
        "digests", one_of("digests", "sizes"), "nothing", "what is compared of files that an earlier run has finished"
    )
    restart: bool = _switch("forget what an earlier run left in the output directory; begin again")
    require_device: bool = _switch("stop when Theano's device cannot be used, do not take the CPU")
    overwrite: bool = _switch("replace results of the same input files made with other settings")
    single_file: bool = _switch("also write single.h5: all rows in one file that needs no other")
    quiet: bool = _switch("print warnings, errors and the summary only")
    verbose: bool = _switch("print details")


def deciding(config: Config, result: Affected) -> dict[str, Any]:
    """The settings that decide a result by their own values.

    One by which nothing is other than in versions that did not know it counts for nothing, so that their results are
    taken over.
    """
    known = [each for each in fields(Config) if each.metadata["affects"] == result]
    values = [(each.name, getattr(config, each.name), each.metadata["before"]) for each in known]
    found = {name: value for name, value, before in values if value != before}
    for name, (was, spelled) in FORMERLY.items():  # so that results from before it was renamed are taken over
        if name in found:
            found[was] = spelled.get(value := found.pop(name), value)
    return found


def problems(config: Config) -> list[str]:
    """Everything that is wrong with the settings in themselves, one sentence each."""
    values = [(each.name, getattr(config, each.name), each.metadata["kind"]) for each in fields(Config)]
    wrong = [f"{name}: {value}, expected {kind.expected}" for name, value, kind in values if not kind.holds(value)]
    for pair in _ONE_OF_TWO:
        if all(getattr(config, name) for name in pair):
            wrong.append(f"{' and '.join(pair)}: both, expected at most one of them")
    return wrong + _without_cluster(config)


def _without_cluster(config: Config) -> list[str]:
    """What is asked of a cluster that nobody asks for."""
    has_scheduler = bool(config.scheduler or config.scheduler_file)
    has = {"scheduler": has_scheduler, "workers or scheduler": has_scheduler or config.workers or config.devices}
    needs = {"insecure_cluster": "scheduler", "mixed_processors": "scheduler", "dashboard": "workers or scheduler"}
    return [f"{name}: set, expected with {of}" for name, of in needs.items() if getattr(config, name) and not has[of]]
