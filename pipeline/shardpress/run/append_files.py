"""The input files of an append, compared with those of the finished run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardpress.encoding.parts import PartFacts
from shardpress.errors import NoInput, printable, quantity, short_list
from shardpress.hdf5.files import FILES, Identity
from shardpress.output.ledger import Ledger
from shardpress.rowfacts import DROPPED
from shardpress.run.contents import Contents
from shardpress.run.digests import digest_of
from shardpress.run.resume import EarlierResults
from shardpress.settings.config import Config
from shardpress.shards.sources import Source, find

log = logging.getLogger(__name__)

_NAMED = 5  # files that a message names
_Key = tuple[str, int, int]
"""Name, size in bytes and modification time of a file."""


@dataclass(frozen=True)
class AppendedFiles:
    """Input files of an append, by the numbers of their shards.

    Attributes
    ----------
    unchanged : dict of int to Source
        Files that have not changed since they were encoded.
    encoded : dict of int to Source
        Files to encode again, because they have changed, or because their parts are missing or damaged.
    new : list of Source
        Files that are not part of the finished run.
    dropped : tuple of int
        Shards whose files are missing, and whose rows are removed.
    contents : dict of int to dict
        Facts about the contents of unchanged files.
    row_digests : dict of int to str
        Digests of the rows of changed files when they were encoded, if their parts are intact.
    """

    unchanged: dict[int, Source]
    encoded: dict[int, Source]
    new: list[Source]
    dropped: tuple[int, ...]
    contents: dict[int, dict[str, Any]]
    row_digests: dict[int, str]


def compare_files(
    config: Config, manifest: Mapping[str, Any], parts: Sequence[PartFacts], ledger: Ledger, earlier: EarlierResults
) -> AppendedFiles:
    """Compare the input files with those of a finished run, and log the differences. New files are not opened.

    Parameters
    ----------
    config : Config
        Settings of the append.
    manifest : mapping
        Manifest of the finished run.
    parts : sequence of PartFacts
        All parts of the finished run.
    ledger : Ledger
        The output directory.
    earlier : EarlierResults
        Results in the directory, whose files are compared by size.

    Raises
    ------
    NoInput
        If files are missing, and the settings do not allow that.
    """
    shards = manifest["request"]["inputs"]["shards"]
    sources = find(config.inputs.input)
    found = _compare(shards, parts, sources)
    contents = ledger.contents()
    lines, edited = _check_contents(contents, found.unchanged, config.results.verify == "digests")
    changed = {**found.changed, **{number: found.unchanged[number] for number in edited}}
    _log_changed(changed)
    damaged = _damaged(parts, earlier)
    with_parts = [number for number in found.changed if number not in damaged]
    dropped = _dropped(found.missing, shards, config, ledger.directory)
    _log_new(found.new, parts)
    return AppendedFiles(
        unchanged=found.unchanged,
        encoded={**changed, **{number: found.unchanged[number] for number in damaged & found.unchanged.keys()}},
        new=found.new,
        dropped=dropped,
        contents=lines,
        row_digests=_row_digests(contents, shards, with_parts),
    )


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
        match = _best_match(source, numbers_by_key[_key_of(source)], unchanged, paths)
        if match is None:
            others.append(source)
        else:
            unchanged[match] = source
    changed: dict[int, Source] = {}
    new: list[Source] = []
    for source in others:
        match = _best_match(source, numbers_by_name[source.path.name], unchanged | changed, paths)
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
    source: Source, candidates: Iterable[int], taken: Mapping[int, Source], paths: Mapping[int, str]
) -> int | None:
    """Return the number of the shard that a file is, or None. Several files can have the same name."""
    free = [number for number in candidates if number not in taken]
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
