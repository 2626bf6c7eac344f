"""Which files are read: those that patterns name, or that an output directory's manifest names."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from pipeline.errors import DataError, NoInput, NotPermitted, shown, some
from pipeline.hdf5.files import FILES, stand_in
from pipeline.hdf5.superblock import signature_at
from pipeline.output.records import read_manifest

__all__ = ["Source", "distinct", "find", "lies_in", "natural_key"]

log = logging.getLogger(__name__)

_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5", ".h5ad")
_LISTED = 3  # of what lies in a directory and is no HDF5
_MOST_NAMES = 10_000  # among which a similar one is sought
_MARKER = ".shardpress"
_INDEX = "index.h5"


@dataclass(frozen=True)
class Source:
    """A file to open, and what its manifest, or the master that stacks it, says of it."""

    path: Path
    n_rows: int | None = None  # this and the next two as the manifest says; an older one says less
    n_bytes: int | None = None
    blake3: str | None = None
    master: Path | None = None  # the file that stacks this one, and of it this dataset; a link tells no shape
    dataset: str | None = None
    shape: tuple[int, ...] | None = None


def find(patterns: Sequence[str]) -> list[Source]:
    """Files that patterns name, in the order given, and in natural order of the names (9 before 10) within each.

    Parameters
    ----------
    patterns : sequence of str
        Files, globs, and directories: of these every file that begins like HDF5, or whose name ends like it, but none
        further down and no hidden one. An output directory of shardpress, or the index in it, stands for the parts
        that its manifest names.

    Raises
    ------
    NoInput
        When one of them matches nothing, or a directory holds no such file.
    NotPermitted
        When a directory may not be entered or listed, or a link in it leads elsewhere.
    DataError
        When one file is found twice, since its rows would count double.
    """
    return distinct((source, pattern) for pattern in patterns for source in _matches(pattern))


def distinct(named: Iterable[tuple[Source, str]]) -> list[Source]:
    """The sources, each given with what names it; raises `DataError` where a file is found twice."""
    names: dict[object, str] = {}
    sources = []
    for source, name in named:
        key = _same_file(source.path)
        if key in names:
            raise DataError(
                f"file={shown(source.path)}: found twice (as {shown(names[key])} and by {shown(name)}), "
                "expected each shard once: its rows would count double. Drop one of the inputs."
            )
        names[key] = str(source.path)
        sources.append(source)
    return sources


def _same_file(path: Path) -> object:
    """What is equal for two names of one file: links of both kinds."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)  # what is wrong with it is said when it is opened
    return status.st_dev, status.st_ino


def _matches(pattern: str) -> list[Source]:
    path = Path(pattern)
    directory = path.parent if path.name == _INDEX else path
    # The marker exists from the first moment on: of an unfinished run nothing is read.
    if os.path.lexists(directory / _MARKER):
        return _parts(directory)
    matches = _files(pattern)
    if not matches:
        _check_reachable(pattern)
        raise NoInput(f"input={shown(pattern)}: {_nothing(pattern)}")
    return [Source(match) for match in sorted(matches, key=lambda match: natural_key(str(match)))]


def _files(pattern: str) -> list[Path]:
    """Return the files that a directory, a path or a glob names."""
    path = Path(pattern)
    if os.path.isdir(pattern):
        return _kept_inside(pattern, [path / name for name in _listed(pattern)])
    if os.path.lexists(pattern):  # before globs, since files may have names such as a[1].h5
        return [path]  # also a link that leads elsewhere, since the user has named it
    root = os.path.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0])  # the user has named it, link or not
    return _kept_inside(root, [Path(name) for name in glob.glob(pattern)])


def _check_reachable(pattern: str) -> None:
    """Do not say of what lies where we may not look that it is not there."""
    try:
        os.lstat(pattern)
    except PermissionError as error:
        raise NotPermitted(
            f"input={shown(pattern)}: {error.strerror}, expected directories above it that may be entered. Run: chmod "
            "+x on them, as their owner."
        ) from error
    except (OSError, ValueError):
        return


def _nothing(pattern: str) -> str:
    """Why there is nothing to read, and what may have been meant."""
    if glob.has_magic(pattern):
        advice = "Check --input (scripts/make_data.py writes sample shards to data/)."
        return f"no file matches, expected at least one HDF5 file. {advice}"
    folder, name = os.path.split(pattern.rstrip("/"))
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except (OSError, ValueError):
        names = []
    near = get_close_matches(name, names, n=1)
    advice = "Check --input."
    if near:
        advice = f"Did you mean {shown(os.path.join(folder, near[0]))}?"
    return f"there is no such file or directory. {advice}"


# -- directories -------------------------------------------------------------------------------------------------


def _listed(directory: str) -> list[str]:
    """Return the names of a directory's HDF5 files, and log other files.

    Files with a name like HDF5 are not opened, since there may be many. They are refused later if they are not HDF5.
    """
    try:
        names, others = _names_and_others(directory)
    except PermissionError as error:
        raise NotPermitted(f"input={shown(directory)}: {error.strerror}, expected a directory to list") from error
    except OSError as error:
        raise stand_in(error, f"input={shown(directory)}") from error
    listed = some(map(shown, sorted(others, key=natural_key)), _LISTED)
    if not names:
        contents = f"holds {listed}" if others else "an empty directory"
        raise NoInput(f"input={shown(directory)}: {contents}, expected HDF5 files. Directories in it are not searched.")
    if others:
        log.info("input=%s: %s left out: no HDF5 file", shown(directory), listed)
    return names


def _names_and_others(directory: str) -> tuple[list[str], list[str]]:
    """Return the names of a directory's HDF5 files, and of everything else that is not hidden."""
    inside = os.path.realpath(directory)
    names = []
    others = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # such as ._1.h5, macOS's notes on 1.h5
                continue
            if os.path.splitext(entry.name)[1] in _ENDINGS or _begins_like_hdf5(entry, inside):
                names.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                others.append(f"{entry.name}/")
            else:
                others.append(entry.name)
    return names, others


def _begins_like_hdf5(entry: os.DirEntry[str], inside: str) -> bool:
    """Return whether it is a regular file with HDF5's signature. No link out of the directory is followed."""
    where = f"file={shown(entry.path)}"
    if entry.is_symlink() and not lies_in(inside, os.path.realpath(entry.path)):
        log.warning("%s: a link out of the directory, left out. If it is meant, name the file itself", where)
        return False
    try:
        return entry.is_file() and _has_signature(entry.path)
    except OSError as error:
        failure = stand_in(error, where)
        if not isinstance(failure, (NoInput, NotPermitted)):
            raise failure from error  # a failing disk would look like other content
        log.warning("%s: %s, left out", where, error.strerror)
        return False


def _has_signature(path: str) -> bool:
    descriptor = FILES.open(path)
    try:
        status = FILES.fstat(descriptor)
        return stat.S_ISREG(status.st_mode) and signature_at(descriptor, status.st_size) is not None
    finally:
        FILES.close(descriptor)


def lies_in(directory: str, path: str) -> bool:
    """Whether a path lies in a directory or below, both as `os.path.realpath` has them."""
    return os.path.commonpath([directory, path]) == directory


def _kept_inside(directory: str, entries: list[Path]) -> list[Path]:
    """The entries, unless a link leads out of the directory: whoever may write there would choose what is read."""
    inside = os.path.realpath(directory)
    for entry in entries:
        place = os.path.realpath(entry)
        if not lies_in(inside, place):
            raise NotPermitted(
                f"file={shown(entry)}: a link out of the directory {shown(directory or '.')} to {shown(place)}, "
                "expected files that lie in it. If it is meant, name the file itself with --input."
            )
    return entries


def _parts(directory: Path) -> list[Source]:
    """What an output directory's manifest names: whatever else lies there was never finished."""
    where = f"input={shown(directory)}"
    try:
        lines = read_manifest(directory)["parts"]
        parts = [Source(directory / line["file"], *map(line.get, ("n_rows", "n_bytes", "blake3"))) for line in lines]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: its manifest names no proper parts: {error!r}") from error
    for part in parts:
        # A manifest may have been forged, and parts been put in the place of ours: nothing outside is read by it.
        inside = part.path.relative_to(directory)
        if ".." in inside.parts or any(os.path.islink(directory / each) for each in (inside, *inside.parents[:-1])):
            raise NotPermitted(f"{where}: its part {shown(inside)} leads elsewhere, expected a file in the directory")
    if not parts:
        raise DataError(f"{where}: its manifest names no parts, expected one at least")
    return parts


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which digits count as numbers."""
    # Whether it is a number comes first, so that numbers are compared with numbers; its spelling last (010, 10).
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
