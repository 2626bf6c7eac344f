"""Which files are read: those that patterns name, or that an output directory's manifest names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError, NoInput, NotPermitted, shown
from pipeline.ledger import read_manifest

__all__ = ["Source", "distinct", "find", "natural_key"]

_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
_MARKER, _INDEX = ".shardpress", "index.h5"


@dataclass(frozen=True)
class Source:
    """A file to open, and what its manifest, or the master that stacks it, says of it.

    Attributes
    ----------
    path : Path
    n_rows, n_bytes : int, optional
    blake3 : str, optional
        None where there is no manifest, or where it does not say.
    master : Path, optional
        The file that stacks this one.
    dataset : str, optional
        Which of its datasets.
    shape : tuple of int, optional
        What that dataset is said to have.
    """

    path: Path
    n_rows: int | None = None
    n_bytes: int | None = None
    blake3: str | None = None
    master: Path | None = None
    dataset: str | None = None
    shape: tuple[int, ...] | None = None


def find(patterns: Sequence[str]) -> list[Source]:
    """Files that patterns name, in the order given, and in natural order of the names (9 before 10) within each.

    Parameters
    ----------
    patterns : sequence of str
        Files, directories (their files ending in .h5, .hdf5, .hdf or .he5) and globs. An output directory of
        shardpress, or the index in it, stands for the parts that its manifest names.

    Raises
    ------
    NoInput
        When one of them matches nothing.
    NotPermitted
        When a directory may not be listed, or a link in it leads elsewhere.
    DataError
        When one file is found twice, since its rows would count double.
    """
    return distinct((source, pattern) for pattern in patterns for source in _matches(pattern))


def distinct(named: Iterable[tuple[Source, str]]) -> list[Source]:
    """The sources, each with what names it, once none is found twice.

    Raises
    ------
    DataError
        When one file is found twice, since its rows would count double.
    """
    found: dict[object, str] = {}
    sources = []
    for source, name in named:
        key = _same_file(source.path)
        if key in found:
            raise DataError(
                f"file={shown(source.path)}: found twice (as {shown(found[key])} and by {shown(name)}), "
                "expected each shard once: its rows would count double. Drop one of the inputs."
            )
        found[key] = str(source.path)
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
    ours = path.parent if path.name == _INDEX else path
    if os.path.lexists(ours / _MARKER):
        return _parts(ours)
    if os.path.isdir(pattern):
        try:
            matches = _kept_inside(pattern, [entry for entry in path.iterdir() if entry.suffix in _SUFFIXES])
        except PermissionError as error:
            raise NotPermitted(f"input={shown(pattern)}: {error.strerror}, expected a directory to list") from error
    elif os.path.lexists(pattern):
        matches = [path]
    else:
        root = os.path.dirname(pattern[: re.search(r"[*?[]|$", pattern).start()])  # type: ignore[union-attr]
        matches = _kept_inside(root, [Path(name) for name in glob.glob(pattern)])
    if not matches:
        raise NoInput(
            f"input={shown(pattern)}: no file matches, expected at least one HDF5 file. Check --input "
            "(scripts/make_data.py writes sample shards to data/)."
        )
    return [Source(match) for match in sorted(matches, key=lambda match: natural_key(str(match)))]


def _kept_inside(directory: str, entries: list[Path]) -> list[Path]:
    """The entries, unless a link leads out of the directory: whoever may write there would choose what is read."""
    inside = os.path.realpath(directory)
    for entry in entries:
        found = os.path.realpath(entry)
        if os.path.commonpath([inside, found]) != inside:
            raise NotPermitted(
                f"file={shown(entry)}: a link out of the directory {shown(directory or '.')} to {shown(found)}, "
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
        inside = part.path.relative_to(directory)
        if ".." in inside.parts or any(os.path.islink(directory / each) for each in (inside, *inside.parents[:-1])):
            raise NotPermitted(f"{where}: its part {shown(inside)} leads elsewhere, expected a file in the directory")
    if not parts:
        raise DataError(f"{where}: its manifest names no parts, expected one at least")
    return parts


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which digits count as numbers."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
