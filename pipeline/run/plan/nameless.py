"""Files that have no name and are gone once they are closed: what writing takes is measured, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.output.disk import Disk

__all__ = ["Nameless"]


class Nameless(Disk):
    """Writes and syncs for real, on the disk of `folder`; where that cannot be, or must not be, to memory.

    Parameters
    ----------
    folder : Path or None
        A directory that is there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def create(self, path: Path) -> int:
        """Open a file that never has a name."""
        if self._folder is not None:
            try:
                return os.open(self._folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError:  # not every file system knows these
                pass
        return os.memfd_create("shardpress", os.MFD_CLOEXEC)

    def replace(self, source: Path, target: Path) -> None:
        """Neither has a name."""

    def remove(self, path: Path) -> None:
        """There is none, and whatever is called so stays."""

    def make_directory(self, path: Path) -> None:
        """No file has need of one."""

    def sync_directory(self, path: Path) -> None:
        """No name has come to it."""
