"""Appending to a finished run: its settings, its model, and the files to encode."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardpress.encoding.parts import PartFacts
from shardpress.errors import ConfigError, DataError, NoInput, printable
from shardpress.features import FAILURES, VALID, reading
from shardpress.model import Model, load_model
from shardpress.output.ledger import Ledger
from shardpress.output.publication import misplaced_names
from shardpress.output.records import MANIFEST, Entry, fault_of, plain_name
from shardpress.run.append_files import compare_files
from shardpress.run.finished import FinishedRun
from shardpress.run.resume import EarlierResults, lacks_bad_rows
from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.kinds import as_typed
from shardpress.shards.shard import Shard
from shardpress.shards.sources import Source
from shardpress.shards.vet import Selection, vet

log = logging.getLogger(__name__)

# Settings that the new rows need in addition to those that affect only the features. The model has all others.
_INHERITED = (
    *("dataset", "orientation", "match_columns", "labels", "missing_value"),
    *("on_bad_data", "max_bad"),
)
_OF_RESULTS = ("scan", "model", "features")


def check_finished(config: Config) -> None:
    """Raise `NoInput` unless the output directory contains a finished run. Nothing is created."""
    directory = Path(config.results.output)
    if not (directory / MANIFEST).exists():
        raise NoInput(
            f"output={printable(directory)}: contains no finished run, expected one to append to. Run the same command "
            "without --append first."
        )


def open_finished(config: Config, ledger: Ledger, earlier: EarlierResults) -> FinishedRun:
    """Compare the input files with those of the finished run in an output directory. New files are not opened.

    Raise `ConfigError` if the settings contradict those of the finished run, `NoInput` if files are missing, and
    `DataError` if the manifest or the model is damaged.
    """
    manifest = ledger.manifest()
    if manifest is None:
        raise DataError(
            f"output={printable(ledger.directory)}: its manifest cannot be used (see the warning above). Restore "
            "manifest.json from a copy. Without it, the same command without --append trains a new model."
        )
    try:
        return _compared(config, manifest, ledger, earlier)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"output={printable(ledger.directory)}: its manifest is not one that shardpress wrote: {error!r}. Restore "
            "manifest.json from a copy."
        ) from error


def _compared(config: Config, manifest: dict[str, Any], ledger: Ledger, earlier: EarlierResults) -> FinishedRun:
    directory = ledger.directory
    _check_other_facts(manifest)
    config = _with_settings_of(config, manifest, directory)
    model = _model_of(config, manifest, ledger)
    parts = _parts_of(manifest)
    files = compare_files(config, manifest, parts, ledger, earlier)
    n_before = len(manifest["request"]["inputs"]["shards"])
    sources = {**files.encoded, **dict(enumerate(files.new, n_before))}
    same_rows: frozenset[int] = frozenset()
    if set(config.inputs.include) != set(_stored_settings(manifest).get("include", ())):  # all rows get other extras
        same_rows = frozenset(files.unchanged.keys() - files.encoded.keys())
    elif not sources and (files.dropped or not _is_complete(manifest, config, ledger, earlier)):
        same_rows = frozenset([_smallest(parts, files.unchanged)])  # a run needs an input
    sources |= {number: files.unchanged[number] for number in same_rows}
    kept = tuple(part for part in parts if part.shard not in sources and part.shard not in files.dropped)
    latest = max(kept, key=lambda part: part.append_id or 0, default=None)  # it has all categories
    return FinishedRun(
        config=config,
        manifest=manifest,
        model=model,
        parts=kept,
        part=_part_as_shard(directory, latest, manifest) if latest is not None and sources else None,
        sources=tuple(sources[number] for number in sorted(sources)),
        numbers=tuple(sorted(sources)),
        dropped=files.dropped,
        contents=[line for number, line in sorted(files.contents.items()) if number not in sources],
        same_rows=same_rows,
        row_digests=files.row_digests,
    )


def _parts_of(manifest: Mapping[str, Any]) -> list[PartFacts]:
    """Return the parts of a finished run. Raise `TypeError` if their facts are invalid."""
    parts = [PartFacts.from_line(line) for line in manifest["parts"]]
    for part in parts:
        numbers = (part.shard, part.start, part.stop, part.n_rows, part.n_bad, part.n_outside, part.append_id or 0)
        if not all(type(number) is int for number in numbers) or not isinstance(part.path, str):
            raise TypeError(f"invalid facts about {part.entry.file}")
    return parts


def _check_other_facts(manifest: Mapping[str, Any]) -> None:
    """Raise an error if facts that an append extends or relies on are invalid."""
    if not isinstance(manifest.get("appends", []), list):
        raise TypeError("invalid facts about appends")
    for line in manifest["files"]:
        if not (isinstance(line["file"], str) and type(line["n_bytes"]) is int and isinstance(line["blake3"], str)):
            raise TypeError(f"invalid facts about the file {line['file']}")


def _is_complete(manifest: Mapping[str, Any], config: Config, ledger: Ledger, earlier: EarlierResults) -> bool:
    """Return whether a finished run has all requested files, and none of its files is missing."""
    if lacks_bad_rows(manifest, config):
        return False
    faults = earlier.faults(Entry(line["file"], line["n_bytes"], line["blake3"]) for line in manifest["files"])
    return not any(faults) and not misplaced_names(ledger.directory, manifest)


def _smallest(parts: Sequence[PartFacts], unchanged: Mapping[int, Source]) -> int:
    """Return the number of the unchanged file with the fewest rows, but not without rows."""
    n_rows: Counter[int] = Counter()
    for part in parts:
        if part.shard in unchanged:
            n_rows[part.shard] += part.n_rows
    if not n_rows:
        raise DataError("--drop-missing would remove all rows, expected a file that stays. Discard all with --restart.")
    return min(n_rows, key=lambda number: n_rows[number])


# -- settings ------------------------------------------------------------------------------------------------------


def _with_settings_of(config: Config, manifest: Mapping[str, Any], directory: Path) -> Config:
    """Return the settings with those of a finished run that the features of its rows depend on.

    Raise `ConfigError` if a setting that affects the results was given with another value.
    """
    stored = _stored_settings(manifest)
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


def _stored_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return Config.from_flat(manifest["config"]).flat()


def _load_model(manifest: Mapping[str, Any], ledger: Ledger) -> Model:
    """Return the model that the training has stored or, without one, the published copy of a given model.

    Digests are compared, because a changed byte need not affect the features: it would be published with the model.
    """
    directory = ledger.directory
    entries = [record.entry for record in ledger.records("model") if record.fingerprint in manifest["kept"]]
    for line in manifest["files"]:
        if plain_name(line["file"]) == "model.h5":
            entries.append(Entry(line["file"], line["n_bytes"], line["blake3"]))
    fault: str | None = f"output={printable(directory)}: its manifest lists no model.h5"
    for entry in entries:
        fault = fault_of(directory, entry)
        if fault is None:
            return load_model(directory / entry.file)
    raise DataError(f"{fault}. Restore the file from a copy, or train again with --retrain.")


def _model_of(config: Config, manifest: Mapping[str, Any], ledger: Ledger) -> Model:
    """Return the model of a finished run. Raise `ConfigError` if `--model` is another one."""
    directory = ledger.directory
    model = _load_model(manifest, ledger)
    if model.fingerprint != manifest["model"]:
        raise DataError(
            f"output={printable(directory)}: model.h5 is the encoder {model.fingerprint}, expected "
            f"{printable(str(manifest['model']))} as in the manifest. Restore it, or run shardpress verify."
        )
    if config.inputs.model is None or config.inputs.model == manifest["config"].get("model"):
        return model
    if load_model(config.inputs.model).fingerprint != model.fingerprint:
        raise ConfigError(
            f"model={printable(config.inputs.model)}: another model than that of the finished run in "
            f"output={printable(directory)}. Omit --model, or choose another --output."
        )
    return model


def _part_as_shard(directory: Path, part: PartFacts, manifest: Mapping[str, Any]) -> Shard:
    """Return a part as a shard with the extras that are in the index, and the masks that the manifest names."""
    shard = vet(directory / part.entry.file, Selection("features"))
    names = {extra.name for extra in shard.extras}
    index = directory / "index.h5"
    try:
        with reading(index) as file:
            names = set(file)
    except FAILURES as error:
        log.warning("file=%s: cannot be read: %s; it is written again", printable(index), error)
    masks = manifest.get("masks", {})
    extras = []
    for extra in shard.extras:
        if extra.name != VALID and extra.name in names:
            extras.append(replace(extra, mask=masks.get(extra.name)))
    return replace(shard, extras=tuple(extras))
