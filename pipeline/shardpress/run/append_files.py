"""The input files of an append, compared with those of the finished run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from shardpress.errors import NoInput, printable, quantity, short_list
from shardpress.hdf5.files import FILES, Identity
from shardpress.output.journal import Journal
from shardpress.records import FileContents, Part, ShardFacts
from shardpress.result import Result
from shardpress.run.digests import digest_of
from shardpress.run.resume import EarlierResults
from shardpress.settings.config import Config
from shardpress.shards.sources import Source, find

log = logging.getLogger(__name__)

_NAMED = 5  # files that a message names
_Key = tuple[str, int, int]
"""Name, size in bytes and modification time of a file."""


@dataclass(frozen=True)
class _AppendedFiles:
    """Input files of an append, by the numbers of their shards."""

    unchanged: dict[int, Source]  # since they were encoded
    encoded: dict[int, Source]  # again, because they have changed, or because their parts are missing or damaged
    new: list[Source]
    dropped: tuple[int, ...]  # shards whose files are missing, and whose rows are removed
    contents: dict[int, FileContents]  # facts about the contents of unchanged files
    row_digests: dict[int, str]  # of changed files when they were encoded, if their parts are intact


def compare_files(config: Config, result: Result, journal: Journal, earlier: EarlierResults) -> _AppendedFiles:
    """Compare the input files with those of a finished run, and log the differences. New files are not opened.

    Raise `NoInput` if files are missing, and the settings do not allow that.
    """
    shards = result.facts.request.shards
    parts = result.parts
    unchanged, changed, new = _compare(shards, parts, find(config.inputs.input))
    contents = result.facts.contents  # the journal may contain those of a run that has not finished
    lines, edited = _check_contents(contents, unchanged, config.results.verify == "digests")
    present = {number for number, shard in enumerate(shards) if shard.dropped_by is None}
    missing = sorted(present - unchanged.keys() - changed.keys())
    faults = earlier.faults(part.entry for part in parts)
    damaged = {part.shard for part in parts if journal.is_withdrawn(part.file)}
    damaged |= {part.shard for part, fault in zip(parts, faults, strict=True) if fault}
    row_digests = _row_digests(contents, shards, changed.keys() - damaged)
    changed |= {number: unchanged[number] for number in edited}
    if changed:
        names = [printable(changed[number].path.name) for number in sorted(changed)]
        log.info("append: %s changed: %s", quantity(len(names), "file"), short_list(names, _NAMED))
    dropped = _dropped(missing, shards, config, journal.directory)
    if new:
        log.info("append: %s", quantity(len(new), "new file"))
    encoded = {**changed, **{number: unchanged[number] for number in damaged & unchanged.keys()}}
    return _AppendedFiles(unchanged, encoded, new, dropped, lines, row_digests)


def _compare(
    shards: Sequence[ShardFacts], parts: Sequence[Part], sources: Sequence[Source]
) -> tuple[dict[int, Source], dict[int, Source], list[Source]]:
    """Return the unchanged and the changed files by the numbers of their shards, and the new files.

    Files are matched with the shards of a finished run by name, size and modification time, then by name.
    """
    numbers_by_key: dict[_Key, list[int]] = defaultdict(list)
    numbers_by_name: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(shards):
        if shard.dropped_by is None:
            numbers_by_key[shard.identity].append(number)
            numbers_by_name[shard.file].append(number)
    paths = {part.shard: part.path for part in parts}
    unchanged, others = _matched(sources, lambda source: numbers_by_key[_key_of(source)], (), paths)
    changed, new = _matched(others, lambda source: numbers_by_name[source.path.name], unchanged, paths)
    return unchanged, changed, new


def _key_of(source: Source) -> _Key:
    """Return the key of a file. A file that cannot be examined has no size; the error is reported when it is opened."""
    try:
        status = FILES.stat(source.path)
    except OSError:
        return source.path.name, -1, -1
    return source.path.name, status.st_size, status.st_mtime_ns


def _matched(
    sources: Sequence[Source],
    candidates_for: Callable[[Source], Sequence[int]],
    taken: Collection[int],
    paths: Mapping[int, str],
) -> tuple[dict[int, Source], list[Source]]:
    """Return the files that are shards, by their numbers, and the others. Several files can have the same name."""
    matched: dict[int, Source] = {}
    others = []
    for source in sources:
        free = [number for number in candidates_for(source) if number not in taken and number not in matched]
        if free:
            at_path = [number for number in free if paths.get(number) == str(source.path)]
            matched[[*at_path, *free][0]] = source
        else:
            others.append(source)
    return matched, others


def _dropped(missing: Sequence[int], shards: Sequence[ShardFacts], config: Config, directory: Path) -> tuple[int, ...]:
    """Return the shards whose rows are removed. Raise `NoInput` if the settings do not allow that."""
    if not missing:
        return ()
    names = short_list((printable(shards[number].file) for number in missing), _NAMED)
    n_files = quantity(len(missing), "file")
    if not config.results.drop_missing:
        raise NoInput(
            f"output={printable(directory)}: contains the features of {n_files} that are not in --input: {names}. Add "
            "these files to --input, or remove their rows from the results with --drop-missing."
        )
    log.warning("append: the rows of %s are removed from the results (--drop-missing): %s", n_files, names)
    return tuple(missing)


def _by_key(contents: Sequence[FileContents]) -> dict[_Key, list[FileContents]]:
    found: dict[_Key, list[FileContents]] = defaultdict(list)
    for line in contents:
        found[line.identity].append(line)
    return found


def _check_contents(
    contents: Sequence[FileContents], unchanged: Mapping[int, Source], compares: bool
) -> tuple[dict[int, FileContents], list[int]]:
    """Compare files whose name, size and modification time are the same by ctime and digest."""
    lines = _by_key(contents)
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


def _current_line(source: Source, line: FileContents) -> tuple[FileContents, bool]:
    """Return the facts about the contents of a file, and whether the contents are the same as before."""
    try:
        status = FILES.stat(source.path)
    except OSError:
        return line, True
    if line.blake3 is None or status.st_ctime_ns == line.ctime_ns:
        return line, True
    identity = Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    found = digest_of(str(source.path), identity)
    return replace(line, ctime_ns=status.st_ctime_ns, blake3=found), found in (None, line.blake3)


def _row_digests(
    contents: Sequence[FileContents], shards: Sequence[ShardFacts], changed: Iterable[int]
) -> dict[int, str]:
    """Return the digests of the rows of changed files when they were encoded, as far as they are known."""
    stored = _by_key(contents)
    found = {}
    for number in changed:
        lines = stored[shards[number].identity]
        if len(lines) == 1 and lines[0].rows is not None:  # two files can have the same key
            found[number] = lines[0].rows
    return found
