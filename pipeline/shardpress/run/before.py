"""The content of an output directory when a run starts, and the settings that an append takes over from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from shardpress.base.errors import ConfigError, NoInput, Problem, printable
from shardpress.hdf5.files import Identity
from shardpress.hdf5.shard import Description, Extra
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal
from shardpress.result.finished import INDEX, Result, given_name, load_model
from shardpress.result.records import Request, with_digests
from shardpress.run.difference import Base
from shardpress.settings.config import SETTINGS, Config, Setting
from shardpress.settings.kinds import as_typed
from shardpress.shards.vet import InputFile

# Settings that the new rows need in addition to those that affect only the features. The model has all others.
_INHERITED = (
    "dataset",
    "orientation",
    "match_columns",
    "labels",
    "missing_label",
    "missing_value",
    "on_bad_data",
    "max_bad",
)
_OF_RESULTS = ("scan", "model", "features")


class UnchangingDisk(Disk):
    """Disk that removes no file, not even those that a run would remove."""

    def remove(self, path: Path) -> None:
        """Do nothing."""

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(existing_folder(path))


def existing_folder(path: Path) -> Path:
    """Return a folder, or the nearest existing one above it."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def open_readonly(config: Config) -> Journal | None:
    """Return the journal of an output directory without locking or changing it; None if it does not exist yet.

    Raise `NoInput` if a run with ``--append`` has nothing to append to.
    """
    results = config.results
    directory = Path(results.output)
    if results.append and not (directory / INDEX).exists():
        raise NoInput(
            f"output={printable(directory)}: contains no finished run, expected one to append to. Run the same command "
            "without --append first."
        )
    if not directory.is_dir():
        return None
    return Journal(directory, UnchangingDisk(), results.restart, results.append or results.retrain)


def base_of(journal: Journal | None) -> Base | None:
    """Return what an output directory contains, without its parts; None if it contains no result."""
    if journal is None or journal.base is None:
        return None
    result = journal.base
    facts = result.facts
    shards = with_digests(facts.request.shards, result.parts)
    request = structs.replace(facts.request, shards=shards)
    request = _with_later_stats(request, journal.request)
    return Base(
        request,
        facts.keys.model,
        result.encoder,
        facts.keys.features,
        n_appends=len(facts.appends),
    )


def _with_later_stats(request: Request, later: Request | None) -> Request:
    """Return the request with the stats of files that a later run has seen with the same content."""
    if later is None:
        return request
    seen = {shard.place: shard for shard in later.shards if shard.rows is not None}
    shards = []
    for shard in request.shards:
        other = seen.get(shard.place)
        if other is not None and (other.kind, other.rows, other.extras) == (shard.kind, shard.rows, shard.extras):
            shard = structs.replace(shard, stat=other.stat)
        shards.append(shard)
    return structs.replace(request, shards=shards)


def earlier_rows(result: Result) -> InputFile:
    """Return the rows of a result with its extras, whose dtypes, categories and masks new rows get."""
    masks = result.facts.masks
    paths = result.facts.paths
    extras = []
    for name, (dtype, categories) in result.extras().items():
        extra = Extra(given_name(name), dtype, mask=masks.get(name), path=paths.get(name, ""))
        if categories is not None:
            codes = tuple(range(len(categories)))
            extra = replace(extra, fill=-1, categories=tuple(categories), codes=codes)
        extras.append(extra)
    shape = (result.n_rows, result.n_features)
    rows = Description("features", shape, "<f4", extras=tuple(extras))
    return InputFile(str(result.path), Identity(0, 0, 0, 0), rows, 0, result.n_rows)


# -- settings ------------------------------------------------------------------------------------------------------


def with_settings_of(config: Config, result: Result) -> Config:
    """Return the settings of an append, with those of the result on which its rows depend.

    Raise `ConfigError` if a setting that affects the results was given with another value.
    """
    values = config.flat()
    stored: Mapping[str, Any] = Config.from_flat(result.facts.config).flat()
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
        if _conflicts(setting, values[name], stored):
            conflicts.append(
                Problem((name,), f"{as_typed(values[name])}, expected {as_typed(value)} as in the finished run")
            )
        if is_default and (setting.affects == "features" or name in _INHERITED):
            inherited[name] = value
    if conflicts:
        words = "an append uses the settings of the finished run"
        remedy = "Omit these settings, or choose another {output} with {model}"
        raise ConfigError(*conflicts, Problem(f"output={printable(result.directory)}", words, remedy))
    _check_model(config, result)
    return config.changed(**inherited, fit_on=None)  # the new rows are only encoded


def _conflicts(setting: Setting, value: Any, stored: Mapping[str, Any]) -> bool:
    """Return whether a setting of an append would change results, given the settings of the finished run."""
    before = stored[setting.name]
    if value in (setting.default, before) or setting.name == "row_error":  # errors can be added to all rows
        return False
    if setting.name == "orientation":
        return bool(value != (before or "rows"))
    if setting.name == "missing_label":
        return stored["target"] is not None
    return setting.affects in _OF_RESULTS


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
