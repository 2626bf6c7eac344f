"""Publication: the files of a finished run become visible together, by the rename of one symbolic link.

A run writes its manifest, model, index and reports into a directory of their own, ``published/<unique>/``. The link
``published/current`` names the publication that readers see, and the plain names in the output directory are links
through it::

    index.h5           ->  published/current/index.h5
    published/current  ->  0123456789abcdef0123456789abcdef

Renaming a new link over ``published/current`` therefore switches all files at the same moment. The steps before the
rename change nothing that a reader sees. The step after the rename removes files that the new manifest does not name.

``index.h5`` is a view of files in ``parts/``, which HDF5 looks for relative to the opened name and to the file itself.
Therefore the file is in the output directory, as ``index-<digest>.h5``, and the publication holds a link to it. It
can be opened by any name, including the one that ``os.path.realpath`` returns.

On a file system without symbolic links, files are written under the plain names, with the manifest last. Such an output
stays without links, even if it is moved.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardpress.errors import printable
from shardpress.formats import digest, seal
from shardpress.output.disk import (
    UNSUPPORTED,
    Disk,
    changing,
    publish,
    publish_link,
    remove,
    sync_directory,
    temporary_name,
)
from shardpress.output.records import (
    CURRENT,
    INDEX,
    MANIFEST,
    NAMES,
    OUTPUT,
    PUBLISHED,
    Entry,
    is_index,
    is_left,
    plain_name,
    publications,
)
from shardpress.processcache import ProcessCache

log = logging.getLogger(__name__)

_warned = ProcessCache[int, bool]()  # keys are the device numbers of file systems whose warning was logged


class Publication:
    """The files of one run, which `finish` makes visible together. All methods can raise the errors of `publish`."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk
        self._folder = f"{PUBLISHED}/{uuid.uuid4().hex}"
        self._names: list[str] = []
        with changing(directory / PUBLISHED, "making it"):
            self._has_links = self._begin()
        if not self._has_links:
            _warn_of_missing_links(directory)

    def write(self, name: str, data: bytes) -> Entry:
        """Write a file that readers find under its plain name, or a view that only the index names."""
        if not self._has_links or name not in NAMES:
            return self._write(name, data)
        self._names.append(name)
        if name != INDEX:
            return self._write(f"{self._folder}/{name}", data, name_is_synced=False)
        # The name depends on the content, so that the file never replaces another index.
        file = f"index-{digest([data])[:32]}.h5"
        entry = self._write(file, data)
        link = self._directory / self._folder / INDEX
        with changing(link, "linking it"):
            self._disk.symlink(f"../../{file}", link)
        return entry

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and make this publication the one that readers see."""
        data = seal(OUTPUT, manifest)
        if not self._has_links:
            self._write(MANIFEST, data)
            return
        # The manifest must not be on the disk before the files that it names.
        folder = self._directory / self._folder
        with changing(folder, "syncing it"):
            sync_directory(self._disk, folder)
        with changing(self._directory, "replacing files by links"):
            self._link_names()
        self._write(f"{self._folder}/{MANIFEST}", data)
        with changing(self._directory / CURRENT, "publishing the results"):
            publish_link(self._disk, folder.name, self._directory / CURRENT)
            sync_directory(self._disk, self._directory / PUBLISHED)

    def _begin(self) -> bool:
        """Create the directory of this publication; return whether the output has symbolic links."""
        published = self._directory / PUBLISHED
        if not published.is_dir():
            self._disk.make_directory(published)
            sync_directory(self._disk, self._directory)
        current = self._directory / CURRENT
        if _is_regular(self._directory / MANIFEST) and not current.is_symlink():
            return False
        self._disk.make_directory(self._directory / self._folder)
        sync_directory(self._disk, published)
        # A sweep removes this link if the run is killed here.
        trial_link = temporary_name(current)
        try:
            self._disk.symlink(Path(self._folder).name, trial_link)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._disk.remove_directory(self._directory / self._folder)
            return False
        self._disk.remove(trial_link)
        return True

    def _write(self, file: str, data: bytes, name_is_synced: bool = True) -> Entry:
        publish(self._disk, self._directory / file, data, name_is_synced)
        return Entry(file, len(data), digest([data]))

    def _link_names(self) -> None:
        """Make plain names links to the current publication. Readers see the same run as before."""
        if not (self._directory / MANIFEST).is_symlink():
            # A user has removed or replaced the manifest, and a sweep may have removed files of that publication.
            withdraw(self._directory, self._disk)
        for name in (MANIFEST, *sorted(self._names)):
            path = self._directory / name
            if not _is_our_link(path):
                publish_link(self._disk, f"{CURRENT}/{name}", path)
        sync_directory(self._disk, self._directory)


def withdraw(directory: Path, disk: Disk) -> None:
    """Unpublish the finished run, in one step for all readers."""
    with changing(directory, "removing the published results"):
        if _is_regular(directory / MANIFEST):
            remove(disk, directory / MANIFEST)
            sync_directory(disk, directory)
        if (directory / CURRENT).is_symlink():
            remove(disk, directory / CURRENT)
            sync_directory(disk, directory / PUBLISHED)


def sweep_publications(directory: Path, disk: Disk, named: set[str]) -> None:
    """Remove publications except the current one and those with a file in `named`, and links to removed files."""
    used_folders = {file.rpartition("/")[0] for file in named}
    current = directory / CURRENT
    if current.is_symlink():
        used_folders.add(f"{PUBLISHED}/{os.readlink(current)}")
    for folder in publications(directory):
        if f"{PUBLISHED}/{folder.name}" not in used_folders:
            _remove_publication(disk, folder)
    for name in NAMES:
        path = directory / name
        if _is_our_link(path) and not path.exists():
            remove(disk, path)


def _remove_publication(disk: Disk, folder: Path) -> None:
    with changing(folder, "removing it"):
        for name in sorted(os.listdir(folder)):
            path = folder / name
            is_own = name in NAMES or is_left(name)
            if is_own and (path.is_symlink() or not path.is_dir()):
                remove(disk, path)
        try:
            disk.remove_directory(folder)
        except OSError as error:
            # The directory has a file of the user, or it is gone.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def misplaced_names(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the plain names that do not lead to the files that a manifest names."""
    files: dict[str, list[str]] = {}
    for line in manifest["files"]:
        file = str(line["file"])
        name = INDEX if is_index(file) else plain_name(file)
        if name in NAMES:
            files.setdefault(name, []).append(file)
    # The name of the index leads to one of its views.
    return [name for name, found in files.items() if not any(_are_same(directory, name, file) for file in found)]


def _are_same(directory: Path, name: str, file: str) -> bool:
    try:
        return os.path.samefile(directory / name, directory / file)
    except OSError:
        return False


def _is_our_link(path: Path) -> bool:
    try:
        return os.readlink(path) == f"{CURRENT}/{path.name}"
    except OSError:
        return False


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _warn_of_missing_links(directory: Path) -> None:
    if _warned.put_if_new(os.stat(directory).st_dev, True):
        log.warning(
            "output=%s: without symbolic links, files are replaced one by one. While a run replaces the results of "
            "another run, readers may see files of both",
            printable(directory),
        )
