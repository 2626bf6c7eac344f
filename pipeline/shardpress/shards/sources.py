"""Search for input files: files that match patterns, and parts that the index of an output directory names."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardpress.base.errors import DataError, NoInput, NotPermitted, printable, short_list
from shardpress.hdf5.files import FILES, translated_error
from shardpress.hdf5.otherformats import describe_path
from shardpress.hdf5.signature import signature_at
from shardpress.result.finished import INDEX, Result
from shardpress.result.records import stretches_of

log = logging.getLogger(__name__)

_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5", ".h5ad")
_DESCRIBED = 20  # files of a directory whose formats are determined, until one can be converted
_LISTED = 3  # files of a directory that are not HDF5, in a message
_MARKER = ".shardpress"
COPY_AGAIN = "Copy the directory again, or repeat the run that made it."


@dataclass(frozen=True)
class Source:
    """A file to open, with facts from the index of an output directory."""

    path: Path
    rows: tuple[int, int] | None = None  # the first one to read, and their number; None for all rows
    n_rows: int | None = None
    n_bytes: int | None = None
    blake3: str | None = None


def find(patterns: Sequence[str]) -> list[Source]:
    """Return the files that match patterns: in the order of the patterns, then in natural order (9 before 10).

    Parameters
    ----------
    patterns : sequence of str
        Files, globs, and directories. A directory means all files in it that have HDF5's signature or a usual ending,
        except for hidden files and subdirectories. An output directory of shardpress, or the index in it, means the
        parts that its index names.

    Raises
    ------
    NoInput
        If a pattern matches nothing, or a directory holds no such file.
    NotPermitted
        If the permissions of a directory prevent entering or listing it.
    DataError
        If a file is found twice, because its rows would be counted twice.
    """
    given: dict[object, tuple[Path, int]] = {}
    sources = []
    for number, pattern in enumerate(patterns):
        for source in _matches(pattern):
            key = _file_key(source.path)
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


def _file_key(path: Path) -> object:
    """Return a key that is equal for all names of one file: hard links and symbolic links."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)  # the failure is reported when the file is opened
    if stat.S_ISDIR(status.st_mode):
        known = describe_path(str(path)) or "a directory. Give it without a pattern."
        raise NoInput(f"file={printable(path)}: not an HDF5 file but {known}")
    return status.st_dev, status.st_ino


def _matches(pattern: str) -> list[Source]:
    path = Path(pattern)
    directory = path.parent if path.name == INDEX else path
    # The marker exists from the start of a run, so nothing is read from an unfinished one.
    if os.path.lexists(directory / _MARKER):
        return _parts(directory)
    matches = _files(pattern)
    if not matches:
        _check_reachable(pattern)
        raise NoInput(f"input={printable(pattern)}: {_explain_no_match(pattern)}")
    return [Source(match) for match in sorted(matches, key=lambda match: _natural_key(str(match)))]


def _files(pattern: str) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(pattern):
        return [path / name for name in _list_directory(pattern)]
    if os.path.lexists(pattern):  # check this before globs, because files may have names such as a[1].h5
        return [path]
    return [Path(name) for name in glob.glob(pattern)]


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


# -- directories -------------------------------------------------------------------------------------------------


def _list_directory(directory: str) -> list[str]:
    """Return the names of a directory's HDF5 files, and log other files.

    Files with a usual ending are not opened here, since there may be many. They are refused later if they are not HDF5.
    """
    try:
        names, others = _names_and_others(directory)
    except PermissionError as error:
        raise NotPermitted(
            f"input={printable(directory)}: {error.strerror}, expected permission to list the directory. As its "
            "owner, run chmod +rx on it."
        ) from error
    except OSError as error:
        raise translated_error(error, f"input={printable(directory)}") from error
    others.sort(key=_natural_key)
    listed = short_list(map(printable, others), _LISTED)
    if not names:
        contents = f"holds {listed}" if others else "empty directory"
        advice = _other_format(directory, others) or "Subdirectories are not searched."
        raise NoInput(f"input={printable(directory)}: {contents}, expected HDF5 files. {advice}")
    if others:
        log.info("input=%s: left out, since they are not HDF5 files: %s", printable(directory), listed)
    return names


def _other_format(directory: str, names: Sequence[str]) -> str | None:
    """Return advice for a directory that is an array of another format, or for a file in it that can be converted."""
    for name in ("", *names[:_DESCRIBED]):
        try:
            known = describe_path(os.path.join(directory, name), is_convertible=True)
        except OSError:  # perhaps the permissions of this file
            continue
        if known is not None:
            return f"{printable(name) or 'It'} is {known}"
    return None


def _names_and_others(directory: str) -> tuple[list[str], list[str]]:
    """Return the names of HDF5 files, and of all other entries that are not hidden."""
    names = []
    others = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # for example ._1.h5, which macOS writes for 1.h5
                continue
            if os.path.splitext(entry.name)[1] in _ENDINGS or _is_hdf5(entry):
                names.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                others.append(f"{entry.name}/")
            else:
                others.append(entry.name)
    return names, others


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
        sources.append(Source(directory / part.file, rows, part.n_rows, part.entry.n_bytes, part.entry.blake3))
    return sources


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that treats digits as numbers."""
    return [_natural_part(part) for part in re.split(r"(\d+)", name)]


def _natural_part(part: str) -> tuple[bool, int, str]:
    # The flag prevents comparisons of numbers with words. The spelling comes last, to distinguish 010 from 10.
    is_number = part.isdecimal()
    return is_number, int(part) if is_number else 0, part
