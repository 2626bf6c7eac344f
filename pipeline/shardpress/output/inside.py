"""Detection of input files in an output directory, even by other paths: bind mounts, symbolic and hard links."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from shardpress.output.files import FOLDERS

_Identity = tuple[int, int]
"""Device and inode."""


def files_inside(directory: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the paths that a run in `directory` could remove or replace.

    A file is inside if one of its parent directories is the output directory or a folder of the output directory. These
    directories are compared by device and inode. A file is also inside if it is another name of a file in them: a hard
    link, or a bind mount of a file. The directory and the files may be missing.
    """
    folders = [directory, *(directory / name for name in FOLDERS)]
    identities = {_identity(folder): folder for folder in folders}
    identities.pop(None, None)
    suspects = {path: _identity(path) for path in paths}
    other_names = _other_names(identities.values(), suspects.values())

    @cache
    def is_own_folder(folder: Path) -> bool:
        return _identity(folder) in identities

    resolved_directory = directory.resolve()
    found_inside = []
    for path in paths:
        parents = {*path.absolute().parents, *path.resolve().parents}
        if suspects[path] in other_names or resolved_directory in parents or any(map(is_own_folder, parents)):
            found_inside.append(path)
    return found_inside


def _other_names(folders: Iterable[Path], suspects: Iterable[_Identity | None]) -> set[_Identity]:
    """Return the identities of the suspects that have a name in one of the folders."""
    inodes = {identity[1] for identity in suspects if identity is not None}
    found = set()
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                # There may be a hundred thousand parts, and reading the inode alone takes no further system call.
                names = [entry.path for entry in entries if entry.inode() in inodes]
        except OSError:  # the run reports folders that cannot be read when it locks the directory
            continue
        for name in names:
            identity = _identity(Path(name))
            if identity is not None:
                found.add(identity)
    return found


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
