"""The input files of a run, opened and compared with those of the result in the output directory."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardpress.base.errors import ConfigError, DataError, Problem, printable, quantity, short_list
from shardpress.base.runlog import BAD_FILE
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.names import split
from shardpress.hdf5.shard import Shard, UnreadableShard
from shardpress.model.encoder import Model
from shardpress.result.facts import BadFile
from shardpress.result.finished import Result, given_name
from shardpress.result.records import ShardFacts
from shardpress.run.before import earlier_rows, kept_content
from shardpress.run.budget import n_threads_of
from shardpress.run.contents import Damage, damage_of, with_content, with_extras
from shardpress.run.difference import Base, Matching, Place, needed_digests, places_of
from shardpress.run.request import absolute, facts_of, real_folder
from shardpress.settings.condition import Condition
from shardpress.settings.config import BadDataSettings, Config, ResultSettings
from shardpress.settings.kinds import n_allowed, sufficient_percentage
from shardpress.shards.column_order import ColumnCheck, ColumnRule
from shardpress.shards.kept import KeptDescriptions
from shardpress.shards.open import check_any, open_sources
from shardpress.shards.sources import Source, find
from shardpress.shards.vet import InputFile, Selection

log = logging.getLogger(__name__)

_FOLDERS = 5  # folders in a line of the log
LEFT_OUT = " This shard is left out."
"""End of the warning about a file that cannot be used."""


@dataclass(frozen=True)
class Inputs:
    """The input files, which have been opened and compared with each other and with those of the result."""

    shards: tuple[Shard, ...]  # in the order of the rows
    facts: list[ShardFacts]  # with the digests that are needed
    bad_shards: list[BadFile]  # files that were refused and are left out
    refused: list[BadFile]  # these files, and those whose earlier rows stay
    # Files whose rows stay in the result, although they, or some of their rows, cannot be read.
    uncompared: Sequence[BadFile]
    n_uncompared: int  # such rows
    descriptions: KeptDescriptions  # for a later run

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_files(self) -> int:
        """Number of shards, including those that were left out."""
        return len(self.shards) + len(self.bad_shards)

    @property
    def n_inputs(self) -> int:
        return self.shards[0].n_inputs

    @property
    def columns(self) -> Columns:
        return self.shards[0].columns


def open_inputs(config: Config, model: Model | None, base: Base | None, result: Result | None) -> Inputs:
    """Open all input files. Shards of the base come first, in its order.

    `model` encodes them, unless the run trains one. Raise `DataError` if a file cannot be used and may not be left out,
    or if no rows are selected.
    """
    refused: list[BadFile] = []

    def refuse(path: Path, error: DataError) -> None:
        refused.append(BadFile(str(path), str(error)))

    on_bad_shard = None if config.bad_data.on_bad_data == "raise" else refuse
    inputs = config.inputs
    sources = find(inputs.input)
    staying: set[str] = set()  # files whose rows stay if they cannot be used
    if base is not None and not config.results.retrain:
        _log_new_folders(sources, base)
        sources = _in_order(sources, base)
        staying = {path for shard in base.request.shards for path in shard.paths}
    like, categories = _extras_like(config, result)
    selection = Selection(inputs.dataset, inputs.orientation, inputs.include)
    check = ColumnCheck(column_rule(config, model))
    descriptions = KeptDescriptions(selection, b"" if result is None else kept_content(result))
    shards = open_sources(sources, selection, on_bad_shard, check, descriptions, like, categories)
    _check_labels(config, shards[0])
    # Not before all files are opened, because a wrong --dataset would be a warning for each of them.
    for bad in refused:
        log.log(_level_of(bad, result), "%s%s", bad.reason, LEFT_OUT, extra={BAD_FILE: True})
    left_out = [bad for bad in refused if absolute(bad.file) not in staying]
    check_bad_shards(config, left_out, len(shards) + len(refused))
    check_any(shards)
    _check_width(shards[0])
    compares_digests = config.results.verify == "digests"
    facts = [facts_of(shard, compares_digests) for shard in shards]
    opened = Inputs(shards, facts, refused, refused, (), 0, descriptions)
    if base is None or result is None:
        return opened
    matching = matching_of(config.results)._replace(unreadable=frozenset(absolute(bad.file) for bad in refused))
    damages = _compare_contents(opened, matching, base, result, config)
    return _arranged(opened, damages, places_of(base.request.shards, facts, matching), base)


def column_rule(config: Config, model: Model | None) -> ColumnRule:
    """Return which columns of files are read, and how they are compared with each other and with those of a model."""
    inputs = config.inputs
    named = [config.training.target or ""]
    if config.training.fit_on:
        named.append(Condition.parse(config.training.fit_on).name)
    rule = ColumnRule(
        inputs.match_columns, patterns=inputs.columns, extras=frozenset(split(path)[1] for path in named if path)
    )
    if model is None:
        return rule
    n_columns = model.n_columns if config.results.append else None
    return replace(rule, expected=model.columns, where=model_name(config), n_inputs=n_columns)


def _check_labels(config: Config, first: Shard) -> None:
    """Refuse labels that are columns of the rows: they would be encoded in the features."""
    labels = config.inputs.labels
    if labels is None or any(labels in (extra.name, extra.path) for extra in first.extras):
        return
    name = split(labels)[1]
    if name in first.columns.names:
        remedy = f"Leave it out of the rows with {{columns}} '!{name}', or copy it as well with {{include}} {labels}"
        raise ConfigError(Problem(("labels",), f"{labels} is a column of the rows, expected an extra", remedy))


def _extras_like(config: Config, result: Result | None) -> tuple[InputFile | None, dict[str, tuple[Any, ...]]]:
    """Return the earlier rows whose extras new ones must have, or None, and the categories of their extras."""
    if result is None:
        return None, {}
    earlier = earlier_rows(result)
    categories = {extra.name: extra.categories for extra in earlier.description.extras if extra.categories is not None}
    has_same_extras = set(config.inputs.include) == set(result.facts.rows.config["include"])
    return earlier if config.results.append and has_same_extras else None, categories


def _level_of(bad: BadFile, result: Result | None) -> int:
    """Return the level of a message about a bad file, which is no warning if an earlier run has given it, too."""
    is_known = result is not None and bad in (*result.facts.rows.bad_shards, *result.facts.rows.uncompared)
    return logging.INFO if is_known else logging.WARNING


def _check_width(first: Shard) -> None:
    if first.n_inputs == 1:
        raise DataError(
            f"{first}: shape {first.shape} has a single column, which cannot be compressed. Expected two or more "
            "columns. Name another dataset with --dataset."
        )


def _in_order(sources: Sequence[Source], base: Base) -> list[Source]:
    """Return the files of the base first, in its order."""
    positions = {shard.path: i for i, shard in reversed(list(enumerate(base.request.shards)))}
    return sorted(sources, key=lambda source: positions.get(absolute(source.path), len(positions)))


def _log_new_folders(sources: Sequence[Source], base: Base) -> None:
    """Log the folders of files from which the result has no rows. Earlier runs may have been given other folders."""
    known = {os.path.dirname(shard.path) for shard in base.request.shards}
    counts = Counter(os.path.dirname(source.path) for source in sources)
    new = {folder: n for folder, n in counts.items() if real_folder(folder) not in known}
    if new:
        listed = short_list((f"{printable(folder)} ({quantity(n, 'file')})" for folder, n in new.items()), _FOLDERS)
        log.info("input: the result has no rows of files in %s", listed)


def _compare_contents(
    inputs: Inputs, matching: Matching, base: Base, result: Result, config: Config
) -> dict[int, Damage]:
    """Add the digests to the facts of files that may have changed. Return the damages of those whose rows stay."""
    facts = inputs.facts
    shards = inputs.shards
    before = base.request.shards
    needed = needed_digests(before, facts, matching)
    if not needed:
        return {}
    names = {given_name(name) for name in result.extras()}
    keeps_damaged = config.results.append and config.bad_data.on_bad_data != "raise"
    at_place = {shard.place: shard for shard in before}
    damages: dict[int, Damage] = {}

    def compare(i: int) -> None:
        earlier = at_place.get(facts[i].place)
        facts[i] = with_content(facts[i], shards[i], names, earlier)
        if not keeps_damaged or facts[i].rows is not None or earlier is None:
            return
        if (earlier.selection, earlier.kind) == (facts[i].selection, facts[i].kind):
            damage = damage_of(with_extras(shards[i], names), earlier, result)
            if damage is not None:
                bad = BadFile(facts[i].path, damage.reason)
                log.log(_level_of(bad, result), "%s Everything else in this file is as in the result.", damage.reason)
                damages[i] = damage

    log.info("input: comparing the contents of %s with those of the result", quantity(len(needed), "file"))
    n_threads = n_threads_of(config.machine)
    with threads(n_threads) as pool:
        compute([(compare, i) for i in needed], pool, n_threads)
    return damages


def _arranged(inputs: Inputs, damages: Mapping[int, Damage], places: Sequence[Place], base: Base) -> Inputs:
    """Put the shards in the order of the rows, and add those of the base whose files were refused or are damaged."""
    shards: list[Shard] = []
    facts: list[ShardFacts] = []
    uncompared: list[BadFile] = []
    n_uncompared = 0
    for place in places:
        i = place.wanted
        damage = None if i is None else damages.get(i)
        if place.base is not None and (i is None or damage is not None):
            stored = base.request.shards[place.base]
            shards.append(_unreadable_shard(inputs.shards[0], stored))
            facts.append(stored)
            n_uncompared += shards[-1].n_rows if damage is None else damage.n_rows
            if damage is not None:
                uncompared.append(BadFile(stored.path, damage.reason))
        elif i is not None:
            shards.append(inputs.shards[i])
            facts.append(inputs.facts[i])
    staying = {path for shard in facts for path in shard.paths}
    bad_shards = [bad for bad in inputs.refused if absolute(bad.file) not in staying]
    uncompared += [bad for bad in inputs.refused if bad not in bad_shards]
    return replace(
        inputs,
        shards=tuple(shards),
        facts=facts,
        bad_shards=bad_shards,
        uncompared=uncompared,
        n_uncompared=n_uncompared,
    )


def matching_of(results: ResultSettings) -> Matching:
    """Return how the shards of a run are matched with those of a result, if all files can be used."""
    return Matching(compares_digests=results.verify == "digests", reorders=results.retrain)


def _unreadable_shard(like: Shard, facts: ShardFacts) -> UnreadableShard:
    """Return a shard whose rows stay in the result, although its file cannot be read."""
    return UnreadableShard(
        facts.path, facts.dataset, tuple(facts.shape), facts.dtype, extras=like.extras, columns=like.columns
    )


def model_name(config: Config) -> str:
    """Return the given model, or the model that an append uses, for messages."""
    return f"model={printable(config.inputs.model or config.results.output)}"


def check_bad_shards(config: Config, refused: Sequence[BadFile], n_shards: int) -> None:
    """Raise `DataError` if more of `n_shards` shards were refused than allowed."""
    max_bad = config.bad_data.max_bad
    if refused and not max_bad.endswith("%"):
        raise DataError(
            f"{len(refused)} of {n_shards} shards are bad, with an unknown number of rows, expected at most {max_bad} "
            f"bad rows (--max-bad {max_bad}). Fix the files, or give a percentage, which limits the number of bad "
            f"shards as well. The first error: {refused[0].reason}"
        )
    limit = n_allowed(max_bad, n_shards)
    if len(refused) > limit:
        raise bad_shards_error(refused, n_shards, limit, config.bad_data)


def bad_shards_error(bad: Sequence[BadFile], n_shards: int, limit: int, settings: BadDataSettings) -> DataError:
    """Return the error that reports more bad shards than the settings allow."""
    percentage = sufficient_percentage(len(bad), n_shards)
    allow = f", or allow them with --on-bad-data skip --max-bad {percentage}%" if len(bad) < n_shards else ""
    return DataError(
        f"{len(bad)} of {n_shards} shards are bad, expected at most {limit} (--on-bad-data {settings.on_bad_data}, "
        f"--max-bad {settings.max_bad}). Fix the files{allow}. The first error: {bad[0].reason}"
    )
