"""Preparation of a run: inputs, settings, memory budget, and what is left to do, before anything is written."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from msgspec import structs

from shardpress.base.errors import ConfigError, printable
from shardpress.base.formats import fingerprint
from shardpress.cluster.pool import check_settings
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import UNREADABLE, Shard, leave_out_extras
from shardpress.model.device import TILE_ROWS
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation
from shardpress.output.inside import files_inside
from shardpress.output.journal import Journal
from shardpress.result.finished import INDEX, Result, load_model
from shardpress.result.records import Request
from shardpress.run.before import base_of, with_settings_of
from shardpress.run.budget import Budget, make_budget, n_threads_of, repeated_chunks, too_wide
from shardpress.run.difference import Base, Change, Wanted, compacted, difference, identity_of, known_digests
from shardpress.run.fitted import fitted_rows, name_of_extra
from shardpress.run.inputs import matching_of, model_name, open_inputs
from shardpress.run.modeling import refuse, resolve_for
from shardpress.run.request import request_of, schema_of
from shardpress.scan.ranges import Scan, n_fitted_rows
from shardpress.settings.config import Config, problems
from shardpress.settings.finish_by import deadline_of
from shardpress.settings.kinds import as_typed, n_allowed
from shardpress.settings.resolve import Settings, largest_network, unsuitable_settings
from shardpress.shards.conversion import Conversion
from shardpress.training.targets import Targets, read_targets
from shardpress_kernels.network import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Everything that a run knows before it writes anything."""

    config: Settings
    shards: tuple[Shard, ...]
    conversion: Conversion  # whose offset is known after the scan
    bad_shards: list[dict[str, str]]  # files that were refused and left out: ``file`` and ``reason``
    refused: list[dict[str, str]]  # these files, and those whose earlier rows stay
    given_model: Model | None  # replaces the training
    budget: Budget
    wanted: Wanted
    fitted: np.ndarray | None = None  # mask (n_rows,) of the rows that ``--fit-on`` selects; None for all rows
    targets: Targets | None = None  # what a head learns to predict (``--target``)
    uncompared: Sequence[dict[str, str]] = ()  # as in `shardpress.run.inputs`
    n_uncompared: int = 0
    base: Base | None = None  # what the output directory contains
    change: Change = field(default_factory=lambda: Change(()))  # what the run has to do

    @property
    def request(self) -> Request:
        return self.wanted.request

    @cached_property
    def identities(self) -> list[str]:
        """Identity of the content of each shard, which needs no digest."""
        compares_digests = self.wanted.matching.compares_digests
        return [fingerprint(identity_of(shard, compares_digests))[:32] for shard in self.request.shards]

    @property
    def keeps_model(self) -> bool:
        """Whether the model in the output directory stays."""
        return not self.change.trains and self.base is not None

    @property
    def appends(self) -> bool:
        """Whether the run changes the rows of a result, and keeps its model."""
        return self.keeps_model and bool(self.change.new or self.change.gone or self.change.replaced)

    @cached_property
    def append_ids(self) -> list[int]:
        """Number of the append that brings the rows of each shard; 0 for the run that trains the model."""
        if self.base is None or not self.keeps_model:
            return [0] * len(self.shards)
        found = []
        for i, place in enumerate(self.change.places):
            if place.base is not None and (place.is_same or i in self.change.relabelled):
                found.append(self.base.append_ids[place.base])
            else:
                found.append(self.base.n_appends + 1)
        return found

    @property
    def encoded(self) -> list[int]:
        """Positions of the shards with rows that have to be encoded."""
        n_kept: Counter[int] = Counter()
        for part in self.change.kept:
            for each in part.ranges:
                n_kept[each.shard] += each.n_rows
        return [i for i, shard in enumerate(self.shards) if n_kept[i] < shard.n_rows]

    @property
    def scanned(self) -> Sequence[int]:
        """Positions of the shards that are scanned: all of them before a training, otherwise those that are encoded."""
        return range(len(self.shards)) if self.given_model is None else self.encoded

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_fitted(self) -> int:
        """Number of rows, including bad ones, that the scan and the training use."""
        return n_fitted_rows(self.shards, self.fitted)

    def not_fitted(self) -> np.ndarray:
        """Return the sorted numbers (int64) of the rows that the scan and the training do not use."""
        if self.fitted is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(~self.fitted)

    @property
    def n_inputs(self) -> int:
        return self.shards[0].n_inputs

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the largest network in memory."""
        return self.max_network.n_inputs * self.conversion.dtype(self.shards).itemsize

    @property
    def max_network(self) -> Network:
        """The network of a given model, or the largest network that the run could train: see `largest_network`."""
        if self.given_model is not None:
            return self.given_model.network
        head = None if self.targets is None else self.targets.head
        return largest_network(self.config, self.n_inputs, head)

    def as_trained(self, scan: Scan) -> Scan:
        """Return a scan in which the rows that the training must not use count as bad rows."""
        return replace(scan, bad_rows=np.union1d(scan.bad_rows, self.not_fitted()))

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
        return self.given_model is None or (self.allows_bad_data and bool(self.encoded))

    @property
    def limited(self) -> Sequence[int]:
        """Positions of the shards to which the limit of bad rows refers: those that an append adds, otherwise all."""
        if self.config.results.append:
            return sorted([*self.change.new, *self.change.replaced])
        return range(len(self.shards))

    @property
    def max_bad_rows(self) -> int:
        """Number of bad rows that are allowed in the shards `limited`."""
        n_rows = sum(self.shards[i].n_rows for i in self.limited)
        return n_allowed(self.config.bad_data.max_bad, n_rows) if self.allows_bad_data else 0

    @property
    def max_bad_shards(self) -> int:
        """Number of bad shards that are allowed, including those that were left out already.

        If a number of rows is allowed, it is the largest number of shards with these rows.
        """
        n_shards = len(self.shards) + len(self.bad_shards)
        return n_allowed(self.config.bad_data.max_bad, n_shards) if self.allows_bad_data else 0

    def with_offset(self, offset: np.ndarray | None) -> Prepared:
        """Return a copy that subtracts an offset (n_inputs,) from the rows."""
        return replace(self, conversion=replace(self.conversion, offset=offset))

    def with_change(self, base: Base | None, result: Result | None, spared: Collection[int] = ()) -> Prepared:
        """Return a copy that knows what it has to do, given what the output directory contains.

        Parts with rows of the shards `spared`, which are given by their positions, are not merged with others.
        """
        change = difference(base, self.wanted)
        if base is None or result is None:
            return replace(self, base=None, change=change)
        n_missing = self.n_rows - sum(part.n_live for part in change.kept)
        unreadable = {i for i, shard in enumerate(self.shards) if shard.form == UNREADABLE}
        change = compacted(change, {*unreadable, *spared}, n_missing, self.budget.part_rows)
        request = structs.replace(self.request, shards=known_digests(base, self.wanted, change))
        wanted = replace(self.wanted, request=request)
        given_model = self.given_model
        if given_model is None and not change.trains:
            given_model = result.model
        return replace(self, base=base, change=change, wanted=wanted, given_model=given_model)

    def with_digests(self, digests: Sequence[str | None]) -> Prepared:
        """Return a copy that knows the digests of the rows of the scanned shards."""
        shards = list(self.request.shards)
        for i, digest in zip(self.scanned, digests, strict=True):
            shards[i] = structs.replace(shards[i], rows=digest)
        request = structs.replace(self.request, shards=shards)
        return replace(self, wanted=replace(self.wanted, request=request))


def prepare(config: Config, journal: Journal | None = None) -> Prepared:
    """Open the inputs, resolve the settings and divide the memory. Nothing is written.

    `journal` is that of the output directory, if it exists.
    """
    refuse(problems(config))  # before the inputs, which can take minutes to open
    check_settings(config.cluster)
    result = None if journal is None else journal.base
    base = base_of(journal)
    extended = result if config.results.append else None
    if extended is None:
        given_model = _load_given_model(config)
    else:
        config = with_settings_of(config, extended)
        given_model = extended.model
    inputs = open_inputs(config, given_model, base, result)
    fitted = fitted_rows(config, inputs.shards)
    settings, conversion = resolve_for(config, inputs.shards, inputs.conversion, given_model, fitted)
    _log_settings(config, settings, given_model)
    refuse(_complaints(settings, inputs.shards, given_model, fitted))
    shards = _without_wide_extras(settings, inputs.shards)
    if settings.inputs.labels is not None:
        name_of_extra("labels", settings.inputs.labels, shards)  # raises an error if there is none
    targets = _read_targets(settings, shards, fitted) if given_model is None else None
    # This can refuse the settings, so it comes before the output directory is created.
    budget = make_budget(settings, shards, conversion, None if given_model is None else given_model.network)
    if warning := repeated_chunks(shards, conversion, budget):
        log.warning("%s", warning)
    request = request_of(settings, inputs.facts, given_model, fitted, targets)
    if extended is not None and base is not None:
        added = {name: request.encoding[name] for name in ("include", "row_error")}
        encoding = {**base.request.encoding, **added}
        request = structs.replace(base.request, shards=inputs.facts, encoding=encoding)
    wanted = Wanted(
        request,
        given_model.fingerprint if given_model else None,
        partial(request.of_features, extras=schema_of(shards[0].extras)),
        matching_of(config.results),
    )
    prepared = Prepared(
        config=settings,
        shards=shards,
        conversion=conversion,
        bad_shards=inputs.bad_shards,
        refused=inputs.refused,
        uncompared=inputs.uncompared,
        n_uncompared=inputs.n_uncompared,
        given_model=given_model,
        budget=budget,
        wanted=wanted,
        fitted=fitted,
        targets=targets,
    )
    return prepared.with_change(base, result)


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


def _read_targets(settings: Settings, shards: Sequence[Shard], fitted: np.ndarray | None) -> Targets | None:
    """Return the targets of ``--target``, or None. Log what the head predicts, and warn if all rows train it."""
    if settings.training.target is None:
        return None
    name = name_of_extra("target", settings.training.target, shards)
    targets = read_targets(name, shards, fitted, settings.inputs.missing_label, n_threads_of(settings.machine))
    what = f"{targets.head.n_outputs} classes" if targets.classes else "a number"
    log.info("target: %s, %s, known for %.3g %% of the rows", printable(name), what, 100 * targets.share)
    if targets.remark:
        log.warning("target: %s: %s", printable(name), targets.remark)
    if fitted is None:
        log.warning(
            "target: all rows with a value of %s, except for the validation rows, train the features, so that a "
            "classifier tested on them seems better than it is. Keep test rows apart with --fit-on, for example "
            "--fit-on 'split==train'.",
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
    for name, needed in too_wide(memory_budget, shards).items():
        reasons[name] = f"needs a memory budget of {needed} bytes"
        log.warning(
            "dataset=%s: left out, since the extras of %d rows take more than half of the memory budget (%d bytes), "
            "expected a budget of at least %d bytes. Raise --memory-budget to keep it.",
            printable(name),
            min(TILE_ROWS, sum(shard.n_rows for shard in shards)),
            memory_budget,
            needed,
        )
    return tuple(leave_out_extras(shard, reasons) for shard in shards) if reasons else shards


def _complaints(
    settings: Settings, shards: Sequence[Shard], given_model: Model | None, fitted: np.ndarray | None
) -> Iterator[str]:
    """Yield a sentence for each conflict between the settings, the inputs and a given model."""
    first = shards[0]
    if given_model is None:
        yield from unsuitable_settings(settings, n_fitted_rows(shards, fitted), first.n_inputs)
    else:
        model = model_name(settings)
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
        trained_with = getattr(preparation, name) or "none"
        if value not in ("auto", trained_with):
            yield f"{model}: was trained with {name} {trained_with}, found {value}; omit this setting"


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
