"""Detection of input files in an output directory, even by other paths such as symbolic links and bind mounts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from shardpress.output.folder import FOLDERS


def files_inside(directory: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the paths that a run in `directory` could remove or replace.

    A file is inside if one of its parent directories is the output directory or a folder of the output directory. These
    directories are compared by device and inode. The directory and the files may be missing.
    """
    folders = [directory, *(directory / name for name in FOLDERS)]
    identities = {_identity(folder) for folder in folders} - {None}
    resolved_directory = directory.resolve()

    @cache
    def is_own_folder(folder: Path) -> bool:
        return _identity(folder) in identities

    found_inside = []
    for path in paths:
        parents = {*path.absolute().parents, *path.resolve().parents}
        if resolved_directory in parents or any(map(is_own_folder, parents)):
            found_inside.append(path)
    return found_inside


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
