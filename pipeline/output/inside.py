"""Find files that lie in an output directory under another path: bind mounts, symbolic and hard links."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.output.records import FOLDERS, PUBLISHED, publications

__all__ = ["files_inside"]

_Identity = tuple[int, int]
"""Device and inode."""


def files_inside(directory: Path, paths: Sequence[Path]) -> list[Path]:
    """Return those of `paths` that a run in `directory` could remove or replace.

    A file lies inside if one of the directories above it is the output directory or one of its own folders, by device
    and inode, or if it is another name of a file in them (a hard link, or a bind mount of a file).

    Parameters
    ----------
    directory : Path
        An output directory, which need not exist.
    paths : sequence of Path
        Files that exist, as a rule; of others only the path is compared.
    """
    folders = [directory, *(directory / name for name in (*FOLDERS, PUBLISHED)), *publications(directory)]
    identities = {_identity(folder): folder for folder in folders}
    identities.pop(None, None)
    suspects = {path: _identity(path) for path in paths}
    names = _other_names(identities.values(), suspects.values())
    known: dict[Path, bool] = {}

    def is_ours(folder: Path) -> bool:
        if folder not in known:
            known[folder] = _identity(folder) in identities
        return known[folder]

    resolved_directory = directory.resolve()
    found = []
    for path in paths:
        above = {*path.absolute().parents, *path.resolve().parents}
        if suspects[path] in names or resolved_directory in above or any(map(is_ours, above)):
            found.append(path)
    return found


def _other_names(folders: Iterable[Path], suspects: Iterable[_Identity | None]) -> set[_Identity]:
    """Return which of these files have a name in one of the folders."""
    inodes = {identity[1] for identity in suspects if identity is not None}
    found = set()
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                # There may be a hundred thousand parts, and the inode alone needs no further system call.
                names = [entry.path for entry in entries if entry.inode() in inodes]
        except OSError:  # what is no directory, or may not be read, is refused when the run locks it
            continue
        found |= {identity for name in names if (identity := _identity(Path(name))) is not None}
    return found


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
