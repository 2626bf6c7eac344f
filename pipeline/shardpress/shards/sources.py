"""Search for input files: files that match patterns, and parts that the index of an output directory names."""

from __future__ import annotations

import errno
import glob
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardpress.base.errors import DataError, NoInput, NotPermitted, printable, short_list
from shardpress.hdf5.files import FILES, Identity, translated_error
from shardpress.hdf5.names import natural_key
from shardpress.hdf5.otherformats import describe_path
from shardpress.hdf5.signature import signature_at
from shardpress.result.finished import INDEX, Result
from shardpress.result.records import stretches_of

log = logging.getLogger(__name__)

_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5", ".h5ad")
_DESCRIBED = 20  # files of a folder whose formats are determined, until one can be converted
_LISTED = 3  # paths in a message about a folder
_MARKER = ".shardpress"
_LOST_AND_FOUND = "lost+found"  # of a file system, which only root can list
COPY_AGAIN = "Copy the directory again, or repeat the run that made it."


@dataclass(frozen=True)
class Source:
    """A file to open, with facts from the index of an output directory."""

    path: str
    identity: Identity | None  # when it was found; None if its facts cannot be read
    rows: tuple[int, int] | None = None  # the first one to read, and their number; None for all rows
    n_rows: int | None = None
    n_bytes: int | None = None
    blake3: str | None = None


def find(patterns: Sequence[str]) -> list[Source]:
    """Return the files that match patterns: in the order of the patterns, then in natural order (9 before 10).

    Parameters
    ----------
    patterns : sequence of str
        Files, globs, and folders. A folder means all files in it, and in the folders in it, that have HDF5's signature
        or a usual ending; links are followed. Hidden entries are left out, and so are output directories of
        shardpress. Such a directory itself, or the index in it, means the parts that its index names.

    Raises
    ------
    NoInput
        If a pattern matches nothing, a folder holds no such file, or a link leads nowhere.
    NotPermitted
        If the permissions of a folder prevent entering or listing it.
    DataError
        If a file is found twice, because its rows would be counted twice.
    """
    given: dict[object, tuple[str, int]] = {}
    sources = []
    for number, pattern in enumerate(patterns):
        for source in _matches(pattern):
            # All names of a file, hard links and symbolic links, have the same key.
            found = source.identity
            key = os.path.realpath(source.path) if found is None else (found.device, found.inode)
            if key in given:
                earlier_path, earlier_number = given[key]
                is_next_piece = source.rows is not None and earlier_number == number  # of a part with dead rows
                if not is_next_piece:
                    raise DataError(
                        f"file={printable(source.path)}: given twice (as {printable(earlier_path)} and by "
                        f"{printable(pattern)}), expected each shard once. Remove one of the inputs."
                    )
            given[key] = (source.path, number)
            sources.append(source)
    return sources


def _identity_at(path: str) -> Identity | None:
    """Return the identity of a file, or None if the system fails, which is reported when the file is opened."""
    try:
        return Identity.from_status(FILES.stat(path))
    except OSError as error:
        if os.path.islink(path) and error.errno == errno.ENOENT:
            raise NoInput(
                f"file={printable(path)}: a link to {printable(os.readlink(path))}, which does not exist. Fetch the "
                "file (git annex get, dvc pull), or remove the link."
            ) from error
        return None


def _matches(pattern: str) -> list[Source]:
    """Return the files of a path or a glob. Each match of a glob counts like a path that is given by itself."""
    sources = [source for path in _paths(pattern) for source in _sources_at(path)]
    if not sources:
        _check_reachable(pattern)
        raise NoInput(f"input={printable(pattern)}: {_explain_no_match(pattern)}")
    return sources


def _paths(pattern: str) -> list[str]:
    if os.path.lexists(pattern):  # check this before globs, because files may have names such as a[1].h5
        return [pattern]
    matches = sorted(glob.glob(pattern, recursive=True), key=natural_key)
    if "**" not in pattern:
        return matches
    # The pattern matches the files in a folder together with the folder, and follows links without end.
    folders = {os.path.dirname(match) for match in matches}
    loops = {folder for folder in folders if _is_loop(folder)}
    return [match for match in matches if not os.path.isdir(match) and os.path.dirname(match) not in loops]


def _is_loop(folder: str) -> bool:
    """Return whether a link on the path of a folder leads to one of the folders above it."""
    real = [os.path.realpath(folder), *(os.path.realpath(parent) for parent in Path(folder).parents)]
    return len(set(real)) < len(real)


def _sources_at(path: str) -> list[Source]:
    parent, name = os.path.split(path)
    directory = parent if name == INDEX else path
    # The marker exists from the start of a run, so nothing is read from an unfinished one.
    if os.path.lexists(os.path.join(directory, _MARKER)):
        return _parts(Path(directory))
    clean = str(Path(path))  # without double slashes
    paths = [os.path.join(clean, name) for name in _search(path)] if os.path.isdir(path) else [clean]
    return [Source(path, _identity_at(path)) for path in paths]


def _check_reachable(pattern: str) -> None:
    """Raise `NotPermitted` if permissions prevent entering a parent directory. The path need not exist."""
    try:
        os.lstat(pattern)
    except PermissionError as error:
        raise NotPermitted(
            f"input={printable(pattern)}: {error.strerror}, expected permission to enter the directories above it. As "
            "their owner, run chmod +x on them."
        ) from error
    except (OSError, ValueError):
        return


def _explain_no_match(pattern: str) -> str:
    if glob.has_magic(pattern):
        return "no file matches, expected at least one HDF5 file. Check --input."
    return "no such file or directory. Check --input."


# -- folders -----------------------------------------------------------------------------------------------------


@dataclass
class _Contents:
    """Paths in a folder, relative to it."""

    files: list[str] = field(default_factory=list)  # HDF5 files
    others: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)  # output directories of shardpress


def _search(folder: str) -> list[str]:
    """Return the HDF5 files below a folder, in natural order of their relative paths, and log what is left out.

    Files with a usual ending are not opened here, since there may be many. They are refused later if they are not HDF5.
    """
    contents = _contents_of(folder)
    contents.others.sort(key=natural_key)
    listed = short_list(map(printable, contents.others), _LISTED)
    if not contents.files:
        found = f"holds {listed}" if contents.others else "empty folder"
        advice = _other_format(folder, contents.others) or "Check the path."
        raise NoInput(f"input={printable(folder)}: {found}, expected HDF5 files. {advice}")
    if contents.others:
        log.info("input=%s: left out, since they are not HDF5 files: %s", printable(folder), listed)
    if contents.outputs:
        outputs = short_list(map(printable, sorted(contents.outputs, key=natural_key)), _LISTED)
        log.info("input=%s: left out, since they are output directories: %s", printable(folder), outputs)
    return sorted(contents.files, key=natural_key)


def _contents_of(top: str) -> _Contents:
    """Return what a folder and all folders in it hold."""
    contents = _Contents()
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, parents = waiting.pop()
        entries, key = _listed(os.path.join(top, folder))
        if key in parents:  # a link to a folder that contains it, which would never end
            contents.others.append(folder)
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith("."):  # for example ._1.h5, which macOS writes for 1.h5
                continue
            if not _is_folder(entry):
                is_hdf5 = os.path.splitext(entry.name)[1] in _ENDINGS or _is_hdf5(entry)
                (contents.files if is_hdf5 else contents.others).append(path)
            elif os.path.lexists(os.path.join(entry.path, _MARKER)):
                contents.outputs.append(f"{path}/")
            elif entry.name == _LOST_AND_FOUND or describe_path(f"{entry.path}/") is not None:  # a Zarr array
                contents.others.append(f"{path}/")
            else:
                waiting.append((f"{path}/", (*parents, key)))
    return contents


def _listed(folder: str) -> tuple[list[os.DirEntry[str]], tuple[int, int]]:
    """Return the entries of a folder, and its device and inode."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            return list(entries), (status.st_dev, status.st_ino)
    except PermissionError as error:
        raise NotPermitted(
            f"input={printable(folder)}: {error.strerror}, expected permission to list the folder. As its owner, "
            "run chmod +rx on it."
        ) from error
    except OSError as error:
        raise translated_error(error, f"input={printable(folder)}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that ends nowhere, for example in itself
        return False


def _other_format(folder: str, paths: Sequence[str]) -> str | None:
    """Return advice for a folder that is an array of another format, or for a file in it that can be converted."""
    for path in ("", *paths[:_DESCRIBED]):
        try:
            known = describe_path(os.path.join(folder, path), is_convertible=True)
        except OSError:  # perhaps the permissions of this file
            continue
        if known is not None:
            return f"{printable(path) or 'It'} is {known}"
    return None


def _is_hdf5(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file with HDF5's signature, or a link to one."""
    where = f"file={printable(entry.path)}"
    try:
        return entry.is_file() and _has_signature(entry.path)
    except OSError as error:
        failure = translated_error(error, where)
        if not isinstance(failure, (NoInput, NotPermitted)):
            raise failure from error  # otherwise a failing disk would look like another format
        log.warning("%s: left out: %s", where, error.strerror)
        return False


def _has_signature(path: str) -> bool:
    descriptor = FILES.open(path)
    try:
        status = FILES.fstat(descriptor)
        return stat.S_ISREG(status.st_mode) and signature_at(descriptor, status.st_size) is not None
    finally:
        FILES.close(descriptor)


# -- output directories ------------------------------------------------------------------------------------------


def _parts(directory: Path) -> list[Source]:
    """Return the rows in parts that the index of an output directory names; other files in it are unfinished."""
    result = Result.open(directory, is_foreign=True)
    sources = []
    for part, first, n_rows in stretches_of(result.ranges):
        rows = None if n_rows == part.n_rows else (first, n_rows)
        path = str(directory / part.file)
        sources.append(Source(path, _identity_at(path), rows, part.n_rows, part.entry.n_bytes, part.entry.blake3))
    return sources
