"""Appending to a finished run: its settings, its model, and the files to encode."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardpress.errors import ConfigError, DataError, NoInput, printable
from shardpress.features import VALID, reading
from shardpress.output.journal import Journal
from shardpress.records import Part
from shardpress.result import INDEX, Result, load_model
from shardpress.run.append_files import compare_files
from shardpress.run.finished import FinishedRun
from shardpress.run.resume import EarlierResults
from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.kinds import as_typed
from shardpress.shards.shard import Shard
from shardpress.shards.sources import Source
from shardpress.shards.vet import Selection, vet

log = logging.getLogger(__name__)

# Settings that the new rows need in addition to those that affect only the features. The model has all others.
_INHERITED = ("dataset", "orientation", "match_columns", "labels", "missing_value", "on_bad_data", "max_bad")
_OF_RESULTS = ("scan", "model", "features")


def check_finished(config: Config) -> None:
    """Raise `NoInput` unless the output directory contains a finished run. Nothing is created."""
    directory = Path(config.results.output)
    if not (directory / INDEX).exists():
        raise NoInput(
            f"output={printable(directory)}: contains no finished run, expected one to append to. Run the same command "
            "without --append first."
        )


def open_finished(config: Config, journal: Journal, earlier: EarlierResults) -> FinishedRun:
    """Compare the input files with those of the finished run in an output directory. New files are not opened.

    Raise `ConfigError` if the settings contradict those of the finished run, and `NoInput` if files are missing.
    """
    result = journal.published
    if result is None:
        raise NoInput(f"output={printable(journal.directory)}: contains no finished run, expected one to append to.")
    facts = result.facts
    config = _with_settings_of(config, Config.from_flat(facts.config).flat(), result.directory)
    _check_model(config, result)
    files = compare_files(config, result, journal, earlier)
    sources = {**files.encoded, **dict(enumerate(files.new, len(facts.request.shards)))}
    same_rows: frozenset[int] = frozenset()
    if set(config.inputs.include) != set(facts.config["include"]):  # all rows get other extras
        same_rows = frozenset(files.unchanged.keys() - files.encoded.keys())
    elif not sources and (files.dropped or any(earlier.faults(facts.views))):
        same_rows = frozenset([_smallest(result.parts, files.unchanged)])  # a run needs an input
    sources |= {number: files.unchanged[number] for number in same_rows}
    kept = tuple(part for part in result.parts if part.shard not in sources and part.shard not in files.dropped)
    latest = max(kept, key=lambda part: part.append_id, default=None)  # it has all categories
    return FinishedRun(
        config=config,
        result=result,
        parts=kept,
        part=_part_as_shard(result, latest) if latest is not None and sources else None,
        sources=tuple(sources[number] for number in sorted(sources)),
        numbers=tuple(sorted(sources)),
        dropped=files.dropped,
        contents=[line for number, line in sorted(files.contents.items()) if number not in sources],
        same_rows=same_rows,
        row_digests=files.row_digests,
    )


def _smallest(parts: Sequence[Part], unchanged: Mapping[int, Source]) -> int:
    """Return the number of the unchanged file with the fewest rows, but not without rows."""
    n_rows: Counter[int] = Counter()
    for part in parts:
        if part.shard in unchanged:
            n_rows[part.shard] += part.n_rows
    if not n_rows:
        raise DataError("--drop-missing would remove all rows, expected a file that stays. Discard all with --restart.")
    return min(n_rows, key=lambda number: n_rows[number])


# -- settings ------------------------------------------------------------------------------------------------------


def _with_settings_of(config: Config, stored: Mapping[str, Any], directory: Path) -> Config:
    """Return the settings with those of a finished run that the features of its rows depend on.

    Raise `ConfigError` if a setting that affects the results was given with another value.
    """
    values = config.flat()
    conflicts = []
    inherited = {}
    for name, setting in SETTINGS.items():
        if name == "replicas":  # the number of replicas is reduced to what the rows allow
            continue
        value = stored[name]
        is_default = values[name] == setting.default
        if name == "include":
            inherited[name] = tuple(dict.fromkeys([*value, *values[name]]))  # extras can be added to the results
            continue
        if setting.affects in _OF_RESULTS and not is_default and values[name] != value:
            conflicts.append(f"{name} {as_typed(value)}, found {as_typed(values[name])}")
        if is_default and (setting.affects == "features" or name in _INHERITED):
            inherited[name] = value
    if conflicts:
        raise ConfigError(
            f"output={printable(directory)}: --append uses the settings of the finished run, which has "
            f"{'; '.join(conflicts)}. Omit these settings, or choose another --output with --model."
        )
    return config.changed(**inherited, fit_on=None)  # the new rows are only encoded


def _check_model(config: Config, result: Result) -> None:
    """Raise `ConfigError` if `--model` is another model than that of a finished run."""
    given = config.inputs.model
    if given is None or given == result.facts.config.get("model"):
        return
    if load_model(given).fingerprint != result.encoder:
        raise ConfigError(
            f"model={printable(given)}: another model than that of the finished run in "
            f"output={printable(result.directory)}. Omit --model, or choose another --output."
        )


def _part_as_shard(result: Result, part: Part) -> Shard:
    """Return a part as a shard with the extras that are in the index, and their masks."""
    shard = vet(result.directory / part.file, Selection("features"))
    with reading(result.path) as file:
        names = set(file)
    masks = result.facts.masks
    extras = []
    for extra in shard.extras:
        if extra.name != VALID and extra.name in names:
            extras.append(replace(extra, mask=masks.get(extra.name)))
    return replace(shard, extras=tuple(extras))
