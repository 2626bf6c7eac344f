"""What a run knows: what is looked at before it begins, each once, and where it is at work then.

The inputs, the settings, the memory and the room on the disk come first. What they are does not change any more: the
stages are given all of it at once, as plain values.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from pipeline.cluster.crew import Crew, check_settings
from pipeline.columns import Columns
from pipeline.device import TILE_ROWS, seconds_compiling
from pipeline.encoding.parts import PartFacts
from pipeline.encoding.storage import Storage, storages
from pipeline.errors import ConfigError, DataError, shown
from pipeline.formats import fingerprint
from pipeline.model import Model, load_model
from pipeline.output.inside import files_inside
from pipeline.output.ledger import Ledger
from pipeline.output.records import Record
from pipeline.run.budget import Budget, make_budget, repeated_chunks, too_wide
from pipeline.run.fingerprints import Request, request_of
from pipeline.runlog import Warnings
from pipeline.settings.config import Config, problems
from pipeline.settings.deadline import deadline_of
from pipeline.settings.kinds import allowed, plain
from pipeline.settings.resolve import Settings, misfits, network_of, resolve
from pipeline.shards.columns import ColumnRule
from pipeline.shards.open import open_shards
from pipeline.shards.shard import Shard, without
from pipeline.watch import Watch

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = [
    "Clock",
    "Job",
    "Prepared",
    "prepare",
    "refusal",
    "rows_in",
    "step_of",
    "trained",
    "versions",
]

log = logging.getLogger(__name__)

# Whose version may change a bit of the results, or of their files.
_PACKAGES = ("shardpress", "numpy", "Theano", "dask", "h5py", "scikit-learn")


@dataclass(frozen=True)
class Prepared:
    """All that a run knows before it touches its output directory.

    Attributes
    ----------
    bad_shards : list of dict
        Files of the input that were refused and left out: ``file`` and ``reason``.
    given : Model or None
        A fitted one, that takes the training's place.
    request : Request
        What decides the results.
    """

    config: Settings
    shards: tuple[Shard, ...]
    bad_shards: list[dict[str, str]]
    given: Model | None
    budget: Budget
    request: Request

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def columns(self) -> Columns:
        """Names or numbers of the columns, in the order in which they are read."""
        return self.shards[0].columns

    @property
    def tolerates_bad_data(self) -> bool:
        """Whether bad rows and shards are left out instead of ending the run."""
        return self.config.bad_data.on_bad_data != "raise"

    @property
    def impute(self) -> str | None:
        """How what is missing is filled in; a given model has values for it, or has not."""
        if self.given is None:
            return self.config.bad_data.impute
        return None if self.given.scaler.fill is None else "median"

    @property
    def max_bad_rows(self) -> int:
        """How many bad rows pass."""
        return allowed(self.config.bad_data.max_bad_rows, self.n_rows) if self.tolerates_bad_data else 0

    @property
    def max_bad_shards(self) -> int:
        """How many bad shards pass, those that were left out already among them."""
        n_shards = len(self.shards) + len(self.bad_shards)
        return allowed(self.config.bad_data.max_bad_shards, n_shards) if self.tolerates_bad_data else 0

    def of_model(self, unreadable: Iterable[int]) -> str:
        """Fingerprint of the training's result: also of the shards that it had to do without."""
        asked = self.request.of_model()
        without = sorted(unreadable)
        return fingerprint(asked, without) if without else asked  # without any, what was asked for tells it all

    def of_features(self, model: Model, unreadable: Iterable[int], storage: Storage | None = None) -> str:
        """Fingerprint of the features: also of the shards that have none, and whether bad rows are listed.

        Stored as they are first tried, unless said otherwise.
        """
        found = self.request.of_features(model.fingerprint)
        without = sorted(unreadable)
        is_listed = self.config.bad_data.on_bad_data == "quarantine"  # only then the parts' records list bad rows
        if without or is_listed:
            found = fingerprint(found, without, is_listed)
        if storage is None or storage == storages(self.config.storage)[0]:
            return found
        return fingerprint(found, asdict(storage))


def prepare(config: Config) -> Prepared:
    """Look at the inputs and at what a run with these settings takes; nothing is written.

    Raises
    ------
    ConfigError
        For settings that cannot work, in themselves or with these inputs.
    ShardpressError
        For inputs or a model that cannot be used.
    """
    _refuse(problems(config))  # before the inputs, which may take minutes to look at
    check_settings(config.cluster)
    given = load_model(config.inputs.model) if config.inputs.model else None
    shards, bad_shards = _open(config, given)
    n_rows = sum(shard.n_rows for shard in shards)
    n_inputs = shards[0].n_inputs
    settings = resolve(config, n_rows, n_inputs, given.network if given else None)
    if given is None and settings.training.replicas < (config.training.replicas or 1):
        log.info(
            "replicas: %d, as each of %d would take too few steps, or hold too many rows at a time",
            settings.training.replicas,
            config.training.replicas,
        )
    for name, value in settings.flat().items():
        log.debug("  %-22s %s", name, plain(value))
    _refuse(_complaints(settings, shards, given))
    shards = _without_wide_extras(settings, shards)
    network = network_of(settings.network, n_inputs)
    n_replicas = 0 if given else settings.training.replicas
    # This may refuse the settings: before there is a directory to clean up.
    budget = make_budget(settings.machine, settings.storage, network, n_replicas, shards, TILE_ROWS)
    log.debug("budget: %s", budget)
    if words := repeated_chunks(shards, budget):
        log.warning("%s", words)
    return Prepared(settings, shards, bad_shards, given, budget, request_of(settings, shards, given, budget))


def _without_wide_extras(settings: Settings, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
    """Return the shards without extras that the memory budget does not hold; warn of each."""
    memory_budget = settings.machine.memory_budget
    reasons: dict[str, str] = {}
    for name, needed in too_wide(memory_budget, shards, TILE_ROWS).items():
        reasons[name] = f"needs a memory budget of {needed} bytes"
        log.warning(
            "dataset=%s: left out, since the extras of %d rows take more than half of the memory budget (%d bytes), "
            "expected a budget of at least %d bytes. Raise --memory-budget to keep it.",
            shown(name),
            min(TILE_ROWS, max(shard.n_rows for shard in shards)),
            memory_budget,
            needed,
        )
    return tuple(without(shard, reasons) for shard in shards) if reasons else shards


def _open(config: Config, given: Model | None) -> tuple[tuple[Shard, ...], list[dict[str, str]]]:
    """The shards, and those that were refused and may be left out."""
    refused: list[dict[str, str]] = []

    def refuse(path: Path, error: DataError) -> None:
        log.warning("%s This shard is left out.", error)
        refused.append({"file": str(path), "reason": str(error)})

    leave = None if config.bad_data.on_bad_data == "raise" else refuse
    rule = ColumnRule(config.inputs.match_columns)
    if given is not None:
        rule = ColumnRule(config.inputs.match_columns, given.columns, f"model={shown(config.inputs.model)}")
    inputs = config.inputs
    shards = open_shards(inputs.input, inputs.dataset, leave, inputs.follow, inputs.orientation, inputs.carry, rule)
    if error := refusal(config, refused, len(shards) + len(refused)):
        raise error
    first = shards[0]
    if first.n_inputs == 1:
        raise DataError(
            f"{first}: shape {first.shape} has a single column, expected two or more: there is nothing to press "
            "together. Name another dataset with --dataset."
        )
    return shards, refused


def refusal(config: Config, refused: Sequence[Mapping[str, str]], n_shards: int) -> DataError | None:
    """What is to be said when too many of so many shards were refused."""
    limit = allowed(config.bad_data.max_bad_shards, n_shards)
    if len(refused) <= limit:
        return None
    return DataError(
        f"{len(refused)} of {n_shards} shards are bad, expected {limit} at most (--max-bad-shards "
        f"{config.bad_data.max_bad_shards}). The first: {refused[0]['reason']}"
    )


def _refuse(complaints: Iterable[str]) -> None:
    if words := "; ".join(complaints):
        raise ConfigError(words)


def _complaints(settings: Settings, shards: Sequence[Shard], given: Model | None) -> Iterator[str]:
    """What does not fit together about the settings, the inputs and a given model."""
    first = shards[0]
    if given is None:
        yield from misfits(settings, sum(shard.n_rows for shard in shards), first.n_inputs)
    else:
        model = f"model={shown(settings.inputs.model)}"
        if given.n_inputs != first.n_inputs:
            yield f"{model}: made for {given.n_inputs} columns, found {first.n_inputs} in file={shown(first.path)}"
        n_features = settings.network.n_features
        if given.n_features != n_features:
            yield f"{model}: gives {given.n_features} features, found n_features {n_features}: leave it out"
        yield from _contradictions(settings, given, model)
    now = time.time()
    if (deadline_of(settings.timing, now) or now) < now:
        yield f"finish_by: {settings.timing.finish_by} has passed, expected a time to come"
    yield from _inside_output(settings, shards)


def _contradictions(settings: Settings, given: Model, model: str) -> Iterator[str]:
    """Yield a sentence for each setting that a given model contradicts."""
    network = given.network
    layers = [
        ("hidden", network.widths[1:-1], settings.network.hidden),
        ("code_activation", network.code, settings.network.code_activation),
        ("decoder_gain", network.gain, settings.network.decoder_gain),
    ]
    for name, has, found in layers:
        if found != has:
            yield f"{model}: has {name} {plain(has)}, found {name} {plain(found)}: leave it out"
    scaling = [
        ("impute", given.scaler.fill is not None, settings.bad_data.impute),
        ("clip_quantile", given.scaler.clips, settings.bad_data.clip_quantile),
    ]
    for name, is_trained_with, value in scaling:
        if value and not is_trained_with:
            yield f"{model}: trained without {name}, found {name} {value}: leave it out"


def _inside_output(settings: Settings, shards: Sequence[Shard]) -> Iterator[str]:
    """Refuse inputs and models that the run would remove, since the results of an earlier run in its output go."""
    output = Path(settings.results.output)
    where = f"output={shown(output)}"
    inputs = files_inside(output, [Path(shard.path) for shard in shards])
    if inputs:
        yield f"{where}: holds the input file={shown(inputs[0])}, expected another --output"
    if settings.inputs.model:
        model = Path(settings.inputs.model)
        if model.is_dir():
            model = model / "model.h5"
        if files_inside(output, [model]):
            yield f"{where}: holds the model itself and what it was trained on, expected another --output"


# -- under way -------------------------------------------------------------------------------------------------------


class Clock:
    """How far a run has come, and what it was told on its way.

    What the compiler has taken counts for no stage: another night does not wait for it.

    Attributes
    ----------
    seconds, processor_seconds : dict of str to float
        Of each stage that is over; what its threads have computed meanwhile.
    bounds : dict of str to dict
        For each of them the shares of its time in which the device, the processor or the disk was what it waited for;
        nothing where it was too short to tell.
    model, features : str or None
        Fingerprints of those that it is about to make.
    taken_over : dict of str to str
        For some stages, what of an earlier run's work they go on with, in words.
    warnings : Warnings
        What it has warned of.
    """

    def __init__(self, warnings: Warnings | None = None, watch: Watch | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}
        self.bounds: dict[str, dict[str, float]] = {}
        self._watch = watch
        self.taken_over: dict[str, str] = {}
        self.warnings = warnings or Warnings()
        self.model: str | None = None
        self.features: str | None = None
        self.began = time.time()
        self.ends_by: float | None = None  # when it is to be over, by the same clock, if that is asked for
        self._start = self._last = time.monotonic()
        self._compiled_before = self._compiled = seconds_compiling()
        self._last_processor = time.process_time()

    @property
    def compiling(self) -> float:
        """Seconds that the compiler has taken."""
        return seconds_compiling() - self._compiled_before

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def lap(self, stage: str) -> None:
        """A stage is over."""
        now = time.monotonic()  # changes of the time of day do not affect this clock
        compiled = seconds_compiling()
        processor = time.process_time()
        self.seconds[stage] = now - self._last - (compiled - self._compiled)
        self.processor_seconds[stage] = processor - self._last_processor
        self.bounds[stage] = self._watch.taken() if self._watch else {}
        self._last = now
        self._compiled = compiled
        self._last_processor = processor


@dataclass(frozen=True)
class Job(Prepared):
    """A run under way: what was prepared, where and by whom it is done, and the command line, for the attributes."""

    command: Sequence[str]
    ledger: Ledger
    device: Device
    clock: Clock
    crew: Crew

    @property
    def devices(self) -> str:
        """What encodes."""
        of_workers = {worker["device"] for worker in self.crew.facts()["workers"]} - {None}
        return ", ".join(sorted(of_workers)) or str(self.device)

    def about(self, model: Model) -> dict[str, Any]:
        """Attributes of every output that `model` makes."""
        return {
            "command": " ".join(self.command),
            "config": self.config.flat(),
            "device": self.devices,
            "versions": versions(),
            "model": model.fingerprint,
        }

    def standing(self) -> str:
        """How far a run came that did not finish."""
        stages = ", ".join(stage for stage in self.clock.seconds if stage != "start") or "nothing yet"
        # Of this very run: results of other settings may stand beside them.
        if self.clock.model and (checkpoints := self.ledger.records("checkpoint", self.clock.model)):
            stages += f"; a checkpoint keeps {trained(checkpoints[-1])}"
        parts = self.ledger.records("part", self.clock.features) if self.clock.features else []
        return (
            f"Not finished after {self.clock.total:.1f} s in {shown(self.ledger.directory)}: stages done: {stages}; "
            f"{rows_in(parts)} of {self.n_rows} rows have committed features."
        )


def trained(checkpoint: Record) -> str:
    """How far a checkpoint is, in words."""
    facts = checkpoint.facts
    step = step_of(checkpoint)
    return f"{facts['n_epochs']} of {facts['of']} epochs, step {step}" if "of" in facts else f"step {step}"


def step_of(checkpoint: Record) -> int:
    """How many steps a checkpoint stands behind."""
    return int(checkpoint.key.split("-")[1])


def rows_in(parts: Iterable[Record]) -> int:
    """Rows whose features are committed."""
    return sum(PartFacts.of(record).n_rows for record in parts)


@cache
def versions() -> dict[str, str]:
    """What was at work. Looking that up takes as long as writing a small part."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version, **packages}
