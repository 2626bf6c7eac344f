"""Preparation of a run: inputs, settings, memory budget, and what is left to do, before anything is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import structs

from shardpress.base.errors import ConfigError, Problem, printable
from shardpress.cluster.pool import check_settings
from shardpress.hdf5.shard import Shard
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation
from shardpress.output.folder import files_inside
from shardpress.output.journal import Journal
from shardpress.result.finished import INDEX, load_model
from shardpress.run.before import base_of, with_settings_of
from shardpress.run.budget import make_budget, n_threads_of, repeated_chunks
from shardpress.run.difference import Wanted, difference
from shardpress.run.fitted import fitted_rows, name_of_extra
from shardpress.run.inputs import matching_of, model_name, open_inputs
from shardpress.run.modeling import resolve_for
from shardpress.run.request import request_of, schema_of
from shardpress.run.task import Task
from shardpress.scan.ranges import n_fitted_rows
from shardpress.settings.config import Config
from shardpress.settings.conflicts import conflicts, conflicts_with_rows, refuse
from shardpress.settings.kinds import as_typed, deadline_of
from shardpress.settings.resolve import Settings
from shardpress.training.targets import Targets, read_targets

log = logging.getLogger(__name__)


def prepare(config: Config, journal: Journal | None = None) -> Task:
    """Open the inputs, resolve the settings and divide the memory. Nothing is written.

    `journal` is that of the output directory, if it exists.
    """
    refuse(conflicts(config))  # before the inputs, which can take minutes to open
    check_settings(config.cluster)
    result = None if journal is None else journal.base
    base = base_of(journal)
    extended = result if config.results.append else None
    if extended is None:
        model = _load_given_model(config)
        config = _with_orientation_of(model, config)
    else:
        config = with_settings_of(config, extended)
        model = extended.model
    inputs = open_inputs(config, model, base, result)
    fitted = fitted_rows(config, inputs.shards)
    settings, conversion = resolve_for(config, inputs.shards, model, fitted)
    _log_settings(config, settings, model)
    refuse(_complaints(settings, inputs.shards, model, fitted))
    if settings.inputs.labels is not None:
        name_of_extra("labels", settings.inputs.labels, inputs.shards)  # raises an error if there is none
    targets = _read_targets(settings, inputs.shards, fitted) if model is None else None
    # This can refuse the settings, so it comes before the output directory is created.
    budget = make_budget(settings, inputs.shards, conversion, None if model is None else model.network)
    if warning := repeated_chunks(inputs.shards, conversion, budget):
        log.warning("%s", warning)
    request = request_of(settings, inputs.facts, model, fitted, targets)
    if extended is not None and base is not None:
        added = {name: request.encoding[name] for name in ("include", "row_error")}
        encoding = {**base.request.encoding, **added}
        request = structs.replace(base.request, shards=inputs.facts, encoding=encoding)
    wanted = Wanted(
        request,
        model.fingerprint if model else None,
        partial(request.of_features, extras=schema_of(inputs.shards[0].extras)),
        matching_of(config.results),
    )
    task = Task(
        inputs=inputs,
        settings=settings,
        fitted=fitted,
        conversion=conversion,
        targets=targets,
        budget=budget,
        wanted=wanted,
        model=model,
        result=None,
        base=None,
        change=difference(None, wanted),
    )
    return task.compared_with(base, result)


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


def _with_orientation_of(model: Model | None, config: Config) -> Config:
    """Return the settings with the orientation of the rows that a given model was trained on, unless one is given."""
    stored = None if model is None else model.about.config.get("orientation")
    if stored not in ("rows", "columns") or config.inputs.orientation is not None:
        return config
    log.info("input: orientation %s, as for the rows of the model (--orientation chooses another)", stored)
    return config.changed(orientation=stored)


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


def _log_settings(config: Config, settings: Settings, model: Model | None) -> None:
    """Log all settings for debugging, and the number of replicas if it was reduced."""
    if model is None and settings.training.replicas < (config.training.replicas or 1):
        log.info(
            "replicas: using %d instead of %d, so that each has enough steps and its rows fit in memory",
            settings.training.replicas,
            config.training.replicas,
        )
    for name, value in settings.flat().items():
        log.debug("  %-22s %s", name, as_typed(value))


def _complaints(
    settings: Settings, shards: Sequence[Shard], model: Model | None, fitted: np.ndarray | None
) -> Iterator[Problem]:
    """Yield a problem for each conflict between the settings, the inputs and a given model."""
    first = shards[0]
    if model is None:
        yield from conflicts_with_rows(settings, n_fitted_rows(shards, fitted), first.n_inputs)
    else:
        where = model_name(settings)
        if model.n_columns != first.n_inputs:
            actual = f"found {first.n_inputs} in file={printable(first.path)}"
            yield Problem(where, f"expects {model.n_columns} columns, {actual}")
        n_features = settings.network.n_features
        if model.network.n_features != n_features:
            has = f"has {model.network.n_features} features"
            if not model.is_nested:
                has += " and was trained without --nested"
            yield Problem(where, f"{has}, found {n_features}", "Omit {n_features}")
        yield from _contradictions(settings, model, where)
    now = time.time()
    if (deadline_of(settings.training.finish_by, now) or now) < now:
        yield Problem(("finish_by",), f"{settings.training.finish_by} is in the past, expected a future time")
    yield from _inside_output(settings, shards)


def _contradictions(settings: Settings, model: Model, where: str) -> Iterator[Problem]:
    """Yield a problem for each setting that contradicts a given model."""
    network = model.network
    layers = [
        ("hidden", network.widths[1:-1], settings.network.hidden),
        ("code_activation", network.code, settings.network.code_activation),
    ]
    for name, has, given in layers:
        if given != has:
            yield Problem(where, f"has {name} {as_typed(has)}, found {as_typed(given)}", f"Omit {{{name}}}")
    scaling = [
        ("impute", model.scaler.fill is not None, settings.bad_data.impute),
        ("clip_quantile", model.scaler.clips, settings.bad_data.clip_quantile),
        ("missing_indicator", model.scaler.indicators is not None, settings.bad_data.missing_indicator),
    ]
    for name, is_trained_with, value in scaling:
        if value and not is_trained_with:
            yield Problem(where, f"was trained without {name}, found {as_typed(value)}", f"Omit {{{name}}}")
    preparation = model.preparation or Preparation()
    for name in ("row_scale", "transform"):
        value = getattr(settings.scaling, name)
        trained_with = getattr(preparation, name) or "none"
        if value not in ("auto", trained_with):
            yield Problem(where, f"was trained with {name} {trained_with}, found {value}", f"Omit {{{name}}}")


def _inside_output(settings: Settings, shards: Sequence[Shard]) -> Iterator[Problem]:
    """Yield a problem for each input and model in the output directory, where the run could remove it."""
    output = Path(settings.results.output)
    where = f"output={printable(output)}"
    inputs = files_inside(output, [shard.path for shard in shards])
    if inputs:
        yield Problem(where, f"contains the input file={printable(inputs[0])}", "Choose another {output}")
    if settings.inputs.model:
        model = Path(settings.inputs.model)
        if model.is_dir():
            model = model / INDEX
        if files_inside(output, [str(model)]):
            yield Problem(where, "contains the given model and the results of its training", "Choose another {output}")
