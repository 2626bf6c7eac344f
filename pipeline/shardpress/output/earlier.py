"""Removal of the files of an earlier version, whose results a run has replaced with ``--restart``."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from shardpress.output.disk import Disk, changing, publish, remove
from shardpress.output.files import MARKER
from shardpress.sealed import FORMAT

REPLACES = "replaces an earlier version\n"
"""Second line of the marker until the files of the earlier version are removed."""

# Only files with these names are removed.
_FOLDERS = ("stages", "commits", "published")
_IN_FOLDERS = re.compile(
    r"[a-z]+-[0-9-]*[0-9a-f]{32}\.(h5|npz|txt|json)|current|manifest\.json|report\.(json|html)|(model|index)\.h5"
    r"|bad_rows\.jsonl|encoder\.npz"
)
_TOP = re.compile(
    r"model(-last-good)?\.h5|(report|run|manifest)\.json|\.lock|index-[0-9a-f]{32}\.h5(\.[0-9a-f]{32}\.writing)?"
)
_PUBLICATION = re.compile("[0-9a-f]{32}")


def remove_earlier(directory: Path, disk: Disk) -> None:
    """Remove the files of an earlier version that the marker mentions. Folders in which users have put files stay."""
    text = ""
    with suppress(OSError):
        text = (directory / MARKER).read_text(errors="replace")
    if REPLACES not in text:  # then the user has written files with these names
        return
    published = directory / "published"
    if published.is_dir() and not published.is_symlink():
        for name in filter(_PUBLICATION.fullmatch, sorted(os.listdir(published))):
            _remove_folder(published / name, disk)
    for name in _FOLDERS:
        _remove_folder(directory / name, disk)
    for name in filter(_TOP.fullmatch, sorted(os.listdir(directory))):
        remove(disk, directory / name)
    publish(disk, directory / MARKER, f"{FORMAT}\n".encode())


def _remove_folder(folder: Path, disk: Disk) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in filter(_IN_FOLDERS.fullmatch, sorted(os.listdir(folder))):
        remove(disk, folder / name)
    if not os.listdir(folder):
        with changing(folder, "removing it"):
            disk.remove_directory(folder)
