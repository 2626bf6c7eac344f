"""Appending to a finished run: its settings, and the input files that are new, changed or missing."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.encoding.parts import PartFacts
from pipeline.errors import ConfigError, DataError, NoInput, printable, quantity, short_list
from pipeline.features import FAILURES, VALID, reading
from pipeline.hdf5.files import FILES, Identity
from pipeline.model import Model, load_model
from pipeline.output.ledger import Ledger
from pipeline.output.publication import misplaced_names
from pipeline.output.records import Entry, manifest_path, published_file
from pipeline.run.contents import Contents
from pipeline.run.digests import digest_of
from pipeline.run.fingerprints import DROPPED
from pipeline.run.finished import FinishedRun, parts_by_shard
from pipeline.run.resume import EarlierResults, has_requested_files, lacks_map
from pipeline.settings.config import SETTINGS, Config, current_name
from pipeline.settings.kinds import as_typed
from pipeline.shards.open import find_sources
from pipeline.shards.shard import Shard
from pipeline.shards.sources import Source
from pipeline.shards.vet import Selection, vet

__all__ = ["check_finished", "open_finished"]

log = logging.getLogger(__name__)

# Settings that the new rows need in addition to those that affect only the features. The model has all others.
_INHERITED = (
    *("dataset", "orientation", "match_columns", "labels", "missing_value"),
    *("on_bad_data", "max_bad_rows", "max_bad_shards"),
)
_OF_RESULTS = ("scan", "model", "features")
_NAMED = 5  # files that a message names
_Key = tuple[str, int, int]
"""Name, size in bytes and modification time of a file."""


def check_finished(config: Config) -> None:
    """Raise an error unless the output directory contains a finished run. Nothing is created.

    Raises
    ------
    NoInput
        If there is no finished run.
    """
    directory = Path(config.results.output)
    if not manifest_path(directory).exists():
        raise NoInput(
            f"output={printable(directory)}: contains no finished run, expected one to append to. Run the same command "
            "without --append first."
        )


def open_finished(config: Config, ledger: Ledger, earlier: EarlierResults) -> FinishedRun:
    """Compare the input files with those of the finished run in an output directory. New files are not opened.

    Parameters
    ----------
    config : Config
        Settings of the append.
    ledger : Ledger
        The output directory.
    earlier : EarlierResults
        Results in the directory, whose files are compared by size.

    Raises
    ------
    ConfigError
        If the settings contradict those of the finished run.
    NoInput
        If files are missing, and the settings do not allow that.
    DataError
        If the manifest or the model is damaged.
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
    """Return the finished run with the changes of an append, given its manifest."""
    directory = ledger.directory
    _check_other_facts(manifest)
    config = _with_settings_of(config, manifest, directory)
    model = _model_of(config, manifest, ledger)
    files = find_sources(config.inputs.input, config.inputs.dataset, None, config.inputs.follow)
    shards = manifest["request"]["inputs"]["shards"]
    parts = _parts_of(manifest)
    found = _compare(shards, parts, files)
    contents = ledger.contents()
    lines, edited = _check_contents(contents, found.unchanged, config.results.verify == "digests")
    changed = {**found.changed, **{number: found.unchanged[number] for number in edited}}
    _log_changed(changed)
    damaged = _damaged(parts, earlier)
    changed |= {number: source for number, source in found.unchanged.items() if number in damaged}
    with_parts = [number for number in found.changed if number not in damaged]
    dropped = _dropped(found.missing, shards, config, directory)
    sources = {**changed, **dict(enumerate(found.new, len(shards)))}
    copied = _files_to_copy(config, manifest, found.unchanged, changed)
    sources |= copied
    by_shard = parts_by_shard(parts)
    reused: tuple[PartFacts, ...] = ()
    if not sources and (dropped or not _is_complete(manifest, config, ledger, earlier)):
        number = _with_rows(parts, found.unchanged)  # a run needs an input
        sources = {number: found.unchanged[number]}
        reused = by_shard[number]
    _log_new(found.new, parts)
    kept = tuple(part for part in parts if part.shard not in sources and part.shard not in dropped)
    latest = max(kept or reused, key=lambda part: part.append_id or 0, default=None)  # it has all categories
    return FinishedRun(
        config=config,
        manifest=manifest,
        model=model,
        parts=kept,
        part=_part_as_shard(directory, latest) if latest is not None and sources else None,
        sources=tuple(sources[number] for number in sorted(sources)),
        numbers=tuple(sorted(sources)),
        dropped=dropped,
        contents=[line for number, line in sorted(lines.items()) if number not in sources],
        reused=reused,
        copies={number: by_shard.get(number, ()) for number in copied},
        row_digests=_row_digests(contents, shards, with_parts),
    )


def _files_to_copy(
    config: Config, manifest: Mapping[str, Any], unchanged: Mapping[int, Source], changed: Mapping[int, Source]
) -> dict[int, Source]:
    """Return the files whose features are copied, because they get other extras, by the numbers of their shards."""
    if set(config.inputs.include) == set(_stored_settings(manifest).get("include", ())):
        return {}
    return {number: source for number, source in unchanged.items() if number not in changed}


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
    for scan in manifest.get("scans", []):
        if not isinstance(scan["scan"], str | None) or not all(type(number) is int for number in scan["shards"]):
            raise TypeError("invalid facts about scans")
    for line in manifest["files"]:
        if not (isinstance(line["file"], str) and type(line["n_bytes"]) is int and isinstance(line["blake3"], str)):
            raise TypeError(f"invalid facts about the file {line['file']}")


def _is_complete(manifest: Mapping[str, Any], config: Config, ledger: Ledger, earlier: EarlierResults) -> bool:
    """Return whether a finished run has all requested files and maps, and none of its files is missing."""
    if not has_requested_files(manifest, config) or lacks_map(manifest, config):
        return False
    faults = earlier.faults(Entry(line["file"], line["n_bytes"], line["blake3"]) for line in manifest["files"])
    return not any(faults) and not misplaced_names(ledger.directory, manifest)


def _with_rows(parts: Sequence[PartFacts], unchanged: Mapping[int, Source]) -> int:
    """Return the number of an unchanged file with rows."""
    for part in parts:
        if part.shard in unchanged:
            return part.shard
    raise DataError("--drop-missing would remove all rows, expected a file that stays. Discard all with --restart.")


def _row_digests(contents: Contents, shards: Sequence[Mapping[str, Any]], changed: Iterable[int]) -> dict[int, str]:
    """Return the digests of the rows of changed files when they were encoded, as far as they are known."""
    stored: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
    for line in contents:
        stored[line["file"], line["n_bytes"], line["changed"]].append(line)
    found = {}
    for number in changed:
        shard = shards[number]
        lines = stored[shard["file"], shard["n_bytes"], shard["changed"]]
        if len(lines) == 1 and lines[0].get("rows") is not None:  # two files can have the same key
            found[number] = lines[0]["rows"]
    return found


# -- settings ------------------------------------------------------------------------------------------------------


def _with_settings_of(config: Config, manifest: Mapping[str, Any], directory: Path) -> Config:
    """Return the settings with those of a finished run that the features of its rows depend on.

    Raises
    ------
    ConfigError
        If a setting that affects the results was given with another value.
    """
    stored = _stored_settings(manifest)
    values = config.flat()
    conflicts = []
    inherited = {}
    for name, setting in SETTINGS.items():
        if name not in stored or name == "replicas":  # the number of replicas is reduced to what the rows allow
            continue
        value = stored[name]
        is_default = values[name] == setting.default
        if name == "include":
            inherited[name] = tuple(dict.fromkeys([*value, *values[name]]))  # extras can be added to the results
            continue
        if setting.affects in _OF_RESULTS and not is_default and values[name] != value:
            conflicts.append(f"{name} {as_typed(value)}, found {as_typed(values[name])}")
        if is_default and (setting.affects == "features" or name in _INHERITED):
            if not setting.kind.is_valid(value):
                raise ValueError(f"invalid setting {name}")
            inherited[name] = value
    if conflicts:
        raise ConfigError(
            f"output={printable(directory)}: --append uses the settings of the finished run, which has "
            f"{'; '.join(conflicts)}. Omit these settings, or choose another --output with --model."
        )
    return config.changed(**inherited, fit_on=None)  # the new rows are only encoded


def _stored_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a finished run by their current names."""
    stored = dict(current_name(name, value) for name, value in manifest["config"].items())
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _load_model(manifest: Mapping[str, Any], ledger: Ledger) -> Model:
    """Return the model that the training has stored or, without one, the published copy of a given model."""
    for record in ledger.records("model"):
        if record.fingerprint in manifest["kept"]:
            with suppress(DataError, NoInput):
                return load_model(ledger.directory / record.entry.file)
    return load_model(published_file(ledger.directory, "model.h5"))


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


# -- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Comparison:
    """Current files, compared with the shards of a finished run.

    Attributes
    ----------
    unchanged, changed : dict of int to Source
        Files by the numbers of their shards.
    new : list of Source
        Files that are not part of the finished run.
    missing : list of int
        Numbers of the shards whose files were not found.
    """

    unchanged: dict[int, Source]
    changed: dict[int, Source]
    new: list[Source]
    missing: list[int]


def _compare(shards: Sequence[Mapping[str, Any]], parts: Sequence[PartFacts], sources: Sequence[Source]) -> _Comparison:
    """Match files with the shards of a finished run: by name, size and modification time, then by name."""
    numbers_by_key: dict[_Key, list[int]] = defaultdict(list)
    numbers_by_name: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(shards):
        if DROPPED not in shard:
            numbers_by_key[shard["file"], shard["n_bytes"], shard["changed"]].append(number)
            numbers_by_name[shard["file"]].append(number)
    paths = {part.shard: part.path for part in parts}
    unchanged: dict[int, Source] = {}
    others: list[Source] = []
    for source in sources:
        match = _best_match(source, numbers_by_key[_key_of(source)], unchanged, shards, paths)
        if match is None:
            others.append(source)
        else:
            unchanged[match] = source
    changed: dict[int, Source] = {}
    new: list[Source] = []
    for source in others:
        match = _best_match(source, numbers_by_name[source.path.name], unchanged | changed, shards, paths)
        if match is None:
            new.append(source)
        else:
            changed[match] = source
    present = {number for numbers in numbers_by_name.values() for number in numbers}
    return _Comparison(unchanged, changed, new, sorted(present - unchanged.keys() - changed.keys()))


def _key_of(source: Source) -> _Key:
    """Return the key of a file. A file that cannot be examined has no size; the error is reported when it is opened."""
    try:
        status = FILES.stat(source.path)
    except OSError:
        return source.path.name, -1, -1
    return source.path.name, status.st_size, status.st_mtime_ns


def _best_match(
    source: Source,
    candidates: Iterable[int],
    taken: Mapping[int, Source],
    shards: Sequence[Mapping[str, Any]],
    paths: Mapping[int, str],
) -> int | None:
    """Return the number of the shard that a file is, or None. Several files can have the same name."""
    free = [number for number in candidates if number not in taken]
    if source.dataset is not None:  # a master file stacks several datasets of one file
        free = [number for number in free if shards[number]["dataset"] == source.dataset]
    for number in free:
        if paths.get(number) == str(source.path):
            return number
    return free[0] if free else None


def _log_changed(changed: Mapping[int, Source]) -> None:
    """Log the files that have changed since they were encoded, in one line."""
    if changed:
        names = [printable(changed[number].path.name) for number in sorted(changed)]
        log.info("append: %s changed: %s", quantity(len(names), "file"), short_list(names, _NAMED))


def _log_new(new: Sequence[Source], parts: Sequence[PartFacts]) -> None:
    if new:
        n_shards = len({part.shard for part in parts})
        n_rows = sum(part.n_rows for part in parts)
        log.info(
            "append: %s; the results contain %s of %s",
            quantity(len(new), "new file"),
            quantity(n_rows, "row"),
            quantity(n_shards, "file"),
        )


def _damaged(parts: Sequence[PartFacts], earlier: EarlierResults) -> set[int]:
    """Return the numbers of the shards with missing or damaged parts."""
    faults = earlier.faults(part.entry for part in parts)
    return {part.shard for part, fault in zip(parts, faults, strict=True) if fault}


def _dropped(
    missing: Sequence[int], shards: Sequence[Mapping[str, Any]], config: Config, directory: Path
) -> tuple[int, ...]:
    """Return the shards whose rows are removed. Raise `NoInput` if the settings do not allow that."""
    if not missing:
        return ()
    names = short_list((printable(shards[number]["file"]) for number in missing), _NAMED)
    n_files = quantity(len(missing), "file")
    if not config.results.drop_missing:
        raise NoInput(
            f"output={printable(directory)}: contains the features of {n_files} that are not in --input: {names}. Add "
            "these files to --input, or remove their rows from the results with --drop-missing."
        )
    log.warning("append: the rows of %s are removed from the results (--drop-missing): %s", n_files, names)
    return tuple(missing)


def _check_contents(
    contents: Contents, unchanged: Mapping[int, Source], compares: bool
) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Compare files whose name, size and modification time are the same by ctime and digest.

    Returns
    -------
    dict of int to dict
        Current facts about the contents of these files, by the numbers of their shards.
    list of int
        Numbers of the shards whose contents have changed nevertheless.
    """
    lines: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
    for line in contents:
        lines[line["file"], line["n_bytes"], line["changed"]].append(line)
    current = {}
    edited = []
    for number, source in sorted(unchanged.items()):
        stored = lines[_key_of(source)]
        if not stored:
            continue
        line = stored.pop(0)
        if compares:
            line, is_equal = _current_line(source, line)
            if not is_equal:
                edited.append(number)
        current[number] = line
    return current, edited


def _current_line(source: Source, line: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the facts about the contents of a file, and whether the contents are the same as before."""
    try:
        status = FILES.stat(source.path)
    except OSError:
        return line, True
    if line["blake3"] is None or status.st_ctime_ns == line["ctime_ns"]:
        return line, True
    identity = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    found = digest_of(str(source.path), identity)
    return {**line, "ctime_ns": status.st_ctime_ns, "blake3": found}, found in (None, line["blake3"])


def _part_as_shard(directory: Path, part: PartFacts) -> Shard:
    """Return a part as a shard with the extras that are in the index."""
    shard = vet(directory / part.entry.file, Selection("features"))
    names = {extra.name for extra in shard.extras}
    index = published_file(directory, "index.h5")
    try:
        with reading(index) as file:
            names = set(file)
    except FAILURES as error:
        log.warning("file=%s: cannot be read: %s; it is written again", printable(index), error)
    extras = tuple(extra for extra in shard.extras if extra.name != VALID and extra.name in names)
    return replace(shard, extras=extras)
