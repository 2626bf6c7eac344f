"""Preparation of a run: inputs, resolved settings, memory budget and fingerprints, before anything is written."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shardpress.cluster.pool import check_settings
from shardpress.columns import Columns
from shardpress.device import TILE_ROWS
from shardpress.errors import ConfigError, DataError, printable, quantity
from shardpress.formats import fingerprint
from shardpress.model import Model
from shardpress.output.inside import files_inside
from shardpress.preparation import Preparation, preparation_of
from shardpress.records import Request
from shardpress.result import INDEX, load_model
from shardpress.run.budget import Budget, make_budget, n_threads_of, repeated_chunks, too_wide
from shardpress.run.digests import digests_of_rows
from shardpress.run.fingerprints import request_of
from shardpress.run.finished import FinishedRun
from shardpress.run.fitted import fitted_rows, name_of_extra
from shardpress.scan.ranges import Scan
from shardpress.settings.config import Config, problems
from shardpress.settings.deadline import deadline_of
from shardpress.settings.kinds import as_typed, n_allowed
from shardpress.settings.resolve import Settings, max_network_inputs, network_of, resolve, unsuitable_settings
from shardpress.shards.columns import ColumnRule
from shardpress.shards.open import check_any, open_sources
from shardpress.shards.shard import Shard, leave_out_extras, with_offset, with_preparation
from shardpress.shards.sources import find
from shardpress.shards.vet import Selection
from shardpress.training.targets import Targets, read_targets
from shardpress_kernels.network import Network

log = logging.getLogger(__name__)


class NothingToAppend(DataError):
    """All new files were refused, and the settings allow that."""


@dataclass(frozen=True)
class Prepared:
    """Everything that a run knows before it writes anything."""

    config: Settings
    shards: tuple[Shard, ...]
    bad_shards: list[dict[str, str]]  # files that were refused and left out: ``file`` and ``reason``
    given_model: Model | None  # replaces the training
    budget: Budget
    request: Request
    fitted: np.ndarray | None = None  # mask (n_rows,) of the rows that ``--fit-on`` selects; None for all rows
    targets: Targets | None = None  # what a head learns to predict (``--target``)
    finished: FinishedRun | None = None  # the run that the shards are appended to

    @property
    def numbers(self) -> Sequence[int]:
        """Number of each shard in the results: its index, or its place in the order of arrival after appends."""
        if self.finished is None:
            return range(len(self.shards))
        return self.finished.numbers

    def position(self, number: int) -> int:
        """Return the position in `shards` of the shard with a number."""
        return bisect_left(self.numbers, number)  # the numbers are sorted

    def by_number(self, reasons: Mapping[int, str]) -> dict[int, str]:
        """Return reasons, given by the positions of shards, by their numbers."""
        return {self.numbers[position]: reason for position, reason in reasons.items()}

    @property
    def whole_request(self) -> Request:
        """Everything that determines all results, including those of the finished run that an append extends."""
        if self.finished is None:
            return self.request
        return self.finished.request(self.request)

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_fitted(self) -> int:
        """Number of rows, including bad ones, that the scan and the training use."""
        if self.fitted is None:
            return self.n_rows
        return int(np.count_nonzero(self.fitted))

    def not_fitted(self) -> np.ndarray:
        """Return the sorted numbers (int64) of the rows that the scan and the training do not use."""
        if self.fitted is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(~self.fitted)

    @property
    def n_inputs(self) -> int:
        return self.shards[0].n_inputs

    @property
    def max_network(self) -> Network:
        """The network of a given model, or the largest network that the run could train: see `max_network_inputs`."""
        return self._with_head(_max_network(self.config, self.n_inputs, self.given_model))

    def network_for(self, scan: Scan) -> Network:
        network = network_of(self.config.network, scan.scaler.n_inputs, has_huge_rows=scan.has_huge_rows)
        return self._with_head(network)

    def _with_head(self, network: Network) -> Network:
        if self.targets is None:
            return network
        return replace(network, head=self.targets.head)

    @property
    def columns(self) -> Columns:
        return self.shards[0].columns

    @property
    def allows_bad_data(self) -> bool:
        """Whether bad rows and shards are left out instead of ending the run."""
        return self.config.bad_data.on_bad_data != "raise"

    @property
    def has_other_rows(self) -> bool:
        """Whether the run may encode rows that the model was not trained on."""
        return self.given_model is not None or self.fitted is not None

    @property
    def is_scanned(self) -> bool:
        """Whether the rows are scanned: to train a model, and to count bad rows before a part is written."""
        return self.given_model is None or self.allows_bad_data

    @property
    def scan_key(self) -> str:
        """Fingerprint of the inputs and the settings that determine the scan."""
        key = self.request.of_scan()
        # A training must not use the scan of an append, which lacks what only the training needs.
        return key if self.finished is None else fingerprint(key, "append")

    @property
    def impute(self) -> str | None:
        """Method of imputing missing values. A given model has stored values instead, or none."""
        if self.given_model is None:
            return self.config.bad_data.impute
        return None if self.given_model.scaler.fill is None else "median"

    @property
    def scale(self) -> str:
        """Scaling of the columns that the scan computes. A given model has its own scaling."""
        return self.config.scaling.scale if self.given_model is None else "range"

    @property
    def max_bad_rows(self) -> int:
        """Number of bad rows that are allowed."""
        return n_allowed(self.config.bad_data.max_bad, self.n_rows) if self.allows_bad_data else 0

    @property
    def max_bad_shards(self) -> int:
        """Number of bad shards that are allowed, including those that were left out already.

        If a number of rows is allowed, it is the largest number of shards with these rows.
        """
        n_shards = len(self.shards) + len(self.bad_shards)
        return n_allowed(self.config.bad_data.max_bad, n_shards) if self.allows_bad_data else 0

    def with_offset(self, offset: np.ndarray | None) -> Prepared:
        """Return a copy whose shards subtract an offset (n_inputs,) on reading, or `self` if the offset is None."""
        if offset is None:
            return self
        return replace(self, shards=tuple(with_offset(shard, offset) for shard in self.shards))


def prepare(config: Config, finished: FinishedRun | None = None) -> Prepared:
    """Open the inputs, resolve the settings and divide the memory. Nothing is written.

    For an append to a `finished` run, only the files that it encodes are opened.
    """
    _refuse(problems(config))  # before the inputs, which can take minutes to open
    check_settings(config.cluster)
    given_model = _load_given_model(config) if finished is None else finished.model
    shards, bad_shards = _open_inputs(config, given_model, finished)
    if finished is not None:
        finished = finished.without({Path(bad["file"]) for bad in bad_shards})
        finished = _recognizing_rows(finished, shards, n_threads_of(config.machine))
    fitted = fitted_rows(config, shards)
    n_fitted = sum(shard.n_rows for shard in shards) if fitted is None else int(np.count_nonzero(fitted))
    n_inputs = shards[0].n_inputs
    settings = resolve(config, n_fitted, n_inputs, given_model.network if given_model else None)
    _log_settings(config, settings, given_model)
    _refuse(_complaints(settings, shards, given_model, n_fitted))
    shards = _without_wide_extras(settings, shards)
    _check_labels(settings.inputs.labels, shards)
    targets = _read_targets(settings, shards, fitted) if given_model is None else None
    network = _max_network(settings, n_inputs, given_model)
    n_replicas = 0 if given_model else settings.training.replicas
    # This can refuse the settings, so it comes before the output directory is created.
    budget = make_budget(
        settings.machine,
        settings.storage,
        network,
        n_replicas,
        shards,
        TILE_ROWS,
        settings.validation.validation_fraction,
    )
    log.debug("budget: %s", budget)
    if warning := repeated_chunks(shards, budget):
        log.warning("%s", warning)
    request = request_of(settings, shards, given_model, fitted, targets)
    return Prepared(settings, shards, bad_shards, given_model, budget, request, fitted, targets, finished)


def _load_given_model(config: Config) -> Model | None:
    """Return the model of ``--model``, with the requested output layer and number of features; otherwise None."""
    if not config.inputs.model:
        return None
    model = load_model(config.inputs.model)
    layer = config.network.output_layer
    n_features = config.network.n_features
    if layer == "hidden" and model.network.n_layers == 1:
        raise ConfigError(
            f"model={printable(config.inputs.model)}: has no hidden layer, expected one for output_layer hidden. Omit "
            "this setting."
        )
    if layer is not None:
        model = replace(model, network=replace(model.network, output_layer=layer))
    if n_features is not None and model.is_nested and n_features < model.network.n_features:
        model = model.with_first_features(n_features)
    return model


def _max_network(settings: Settings, n_columns: int, given_model: Model | None) -> Network:
    if given_model is None:
        return network_of(settings.network, max_network_inputs(settings, n_columns))
    return network_of(settings.network, given_model.n_inputs)


def _check_labels(labels: str | None, shards: Sequence[Shard]) -> None:
    """Raise `ConfigError` if no extra has the name of the labels."""
    if labels is not None:
        name_of_extra("labels", labels, shards)


def _read_targets(settings: Settings, shards: Sequence[Shard], fitted: np.ndarray | None) -> Targets | None:
    """Return the targets of ``--target``, or None. Log what the head predicts, and warn if all rows train it."""
    if settings.training.target is None:
        return None
    name = name_of_extra("target", settings.training.target, shards)
    targets = read_targets(name, shards, fitted, n_threads_of(settings.machine))
    what = f"{targets.head.n_outputs} classes" if targets.classes else "a number"
    log.info("target: %s, %s, known for %.3g %% of the rows", printable(name), what, 100 * targets.share)
    if fitted is None:
        log.warning(
            "target: all rows with a value of %s train the features, so that a classifier tested on any of them seems "
            "better than it is. Keep test rows apart with --fit-on, for example --fit-on 'split==train'.",
            printable(name),
        )
    return targets


def _log_settings(config: Config, settings: Settings, given_model: Model | None) -> None:
    """Log all settings for debugging, and the number of replicas if it was reduced."""
    if given_model is None and settings.training.replicas < (config.training.replicas or 1):
        log.info(
            "replicas: using %d instead of %d, so that each has enough steps and its rows fit in memory",
            settings.training.replicas,
            config.training.replicas,
        )
    for name, value in settings.flat().items():
        log.debug("  %-22s %s", name, as_typed(value))


def _without_wide_extras(settings: Settings, shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
    """Return the shards without extras that do not fit in the memory budget; log a warning for each."""
    memory_budget = settings.machine.memory_budget
    reasons: dict[str, str] = {}
    for name, needed in too_wide(memory_budget, shards, TILE_ROWS).items():
        reasons[name] = f"needs a memory budget of {needed} bytes"
        log.warning(
            "dataset=%s: left out, since the extras of %d rows take more than half of the memory budget (%d bytes), "
            "expected a budget of at least %d bytes. Raise --memory-budget to keep it.",
            printable(name),
            min(TILE_ROWS, max(shard.n_rows for shard in shards)),
            memory_budget,
            needed,
        )
    return tuple(leave_out_extras(shard, reasons) for shard in shards) if reasons else shards


def _open_inputs(
    config: Config, given_model: Model | None, finished: FinishedRun | None
) -> tuple[tuple[Shard, ...], list[dict[str, str]]]:
    """Return the shards, and the files that were refused and are left out."""
    refused: list[dict[str, str]] = []

    def refuse(path: Path, error: DataError) -> None:
        log.warning("%s This shard is left out.", error)
        refused.append({"file": str(path), "reason": str(error)})

    on_bad_shard = None if config.bad_data.on_bad_data == "raise" else refuse
    inputs = config.inputs
    rule = ColumnRule(inputs.match_columns)
    if given_model is not None:
        rule = ColumnRule(inputs.match_columns, given_model.columns, _model_name(config))
    if finished is None:
        sources = find(inputs.input)
        like = None
    else:
        sources = list(finished.sources)
        like = finished.part
    selection = Selection(inputs.dataset, inputs.orientation, inputs.include)
    shards = open_sources(sources, selection, on_bad_shard, rule, like)
    n_others = 0 if finished is None else len(finished.shards) - len(finished.same_rows)
    if error := too_many_bad_shards(config, refused, len(shards) + len(refused) + n_others):
        raise error
    if finished is not None and not shards:
        raise NothingToAppend("none of the new files can be used; see the reasons above")
    check_any(shards, sources)
    first = shards[0]
    if finished is not None and first.n_inputs != finished.model.n_columns:
        raise DataError(
            f"{first}: has {first.n_inputs} columns, expected {finished.model.n_columns} as in the finished run. Give "
            "files with the same columns, or use another --output."
        )
    if first.n_inputs == 1:
        raise DataError(
            f"{first}: shape {first.shape} has a single column, which cannot be compressed. Expected two or more "
            "columns. Name another dataset with --dataset."
        )
    if given_model is None:
        preparation = preparation_of(config.scaling.row_scale, config.scaling.transform)
    else:
        preparation = given_model.preparation
    return tuple(with_preparation(shard, preparation) for shard in shards), refused


def _recognizing_rows(finished: FinishedRun, shards: Sequence[Shard], n_threads: int) -> FinishedRun:
    """Return the finished run, with the changed files whose rows have stayed the same. Log their number."""
    by_number = dict(zip(finished.numbers, shards, strict=True))
    numbers = [number for number in finished.row_digests if number in by_number]
    digests = digests_of_rows([by_number[number] for number in numbers], n_threads)
    finished = finished.recognizing(dict(zip(numbers, digests, strict=True)))
    if finished.same_rows:
        log.info("append: encoding %s with the same rows again", quantity(len(finished.same_rows), "file"))
    return finished


def _model_name(config: Config) -> str:
    """Return the given model, or the model that an append uses, for messages."""
    return f"model={printable(config.inputs.model or config.results.output)}"


def too_many_bad_shards(config: Config, refused: Sequence[Mapping[str, str]], n_shards: int) -> DataError | None:
    """Return an error if more of `n_shards` shards were refused than allowed, otherwise None."""
    if not refused:
        return None
    max_bad = config.bad_data.max_bad
    found = f"{len(refused)} of {n_shards} shards are bad"
    first_error = f"The first error: {refused[0]['reason']}"
    if not max_bad.endswith("%"):
        return DataError(
            f"{found}, with an unknown number of rows, expected at most {max_bad} bad rows (--max-bad {max_bad}). Fix "
            f"the files, or give a percentage, which limits the number of bad shards as well. {first_error}"
        )
    limit = n_allowed(max_bad, n_shards)
    if len(refused) <= limit:
        return None
    return DataError(f"{found}, expected at most {limit} (--max-bad {max_bad}). {first_error}")


def _refuse(complaints: Iterable[str]) -> None:
    """Raise `ConfigError` with all complaints, if there are any."""
    if words := "; ".join(complaints):
        raise ConfigError(words)


def _complaints(settings: Settings, shards: Sequence[Shard], given_model: Model | None, n_fitted: int) -> Iterator[str]:
    """Yield a sentence for each conflict between the settings, the inputs and a given model."""
    first = shards[0]
    if given_model is None:
        yield from unsuitable_settings(settings, n_fitted, first.n_inputs)
    else:
        model = _model_name(settings)
        if given_model.n_columns != first.n_inputs:
            found = f"found {first.n_inputs} in file={printable(first.path)}"
            yield f"{model}: expects {given_model.n_columns} columns, {found}"
        n_features = settings.network.n_features
        if given_model.network.n_features != n_features:
            has = f"has {given_model.network.n_features} features"
            if not given_model.is_nested:
                has += " and was trained without --nested"
            yield f"{model}: {has}, found n_features {n_features}; omit this setting"
        yield from _contradictions(settings, given_model, model)
    now = time.time()
    if (deadline_of(settings.timing, now) or now) < now:
        yield f"finish_by: {settings.timing.finish_by} is in the past, expected a future time"
    yield from _inside_output(settings, shards)


def _contradictions(settings: Settings, given_model: Model, model: str) -> Iterator[str]:
    """Yield a sentence for each setting that contradicts a given model."""
    network = given_model.network
    layers = [
        ("hidden", network.widths[1:-1], settings.network.hidden),
        ("code_activation", network.code, settings.network.code_activation),
    ]
    for name, has, found in layers:
        if found != has:
            yield f"{model}: has {name} {as_typed(has)}, found {name} {as_typed(found)}; omit this setting"
    scaling = [
        ("impute", given_model.scaler.fill is not None, settings.bad_data.impute),
        ("clip_quantile", given_model.scaler.clips, settings.bad_data.clip_quantile),
        ("missing_indicator", given_model.scaler.indicators is not None, settings.bad_data.missing_indicator),
    ]
    for name, is_trained_with, value in scaling:
        if value and not is_trained_with:
            yield f"{model}: was trained without {name}, found {name} {as_typed(value)}; omit this setting"
    preparation = given_model.preparation or Preparation()
    for name in ("row_scale", "transform"):
        value = getattr(settings.scaling, name)
        if value not in (None, getattr(preparation, name)):
            yield f"{model}: was trained with {name} {getattr(preparation, name)}, found {value}; omit this setting"


def _inside_output(settings: Settings, shards: Sequence[Shard]) -> Iterator[str]:
    """Yield a sentence for each input and model in the output directory, where the run could remove it."""
    output = Path(settings.results.output)
    where = f"output={printable(output)}"
    inputs = files_inside(output, [Path(shard.path) for shard in shards])
    if inputs:
        yield f"{where}: contains the input file={printable(inputs[0])}, expected another --output"
    if settings.inputs.model:
        model = Path(settings.inputs.model)
        if model.is_dir():
            model = model / INDEX
        if files_inside(output, [model]):
            yield f"{where}: contains the given model and the results of its training, expected another --output"
