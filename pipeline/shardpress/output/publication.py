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

A copy that follows links (``cp -rL``) contains regular files under the plain names. Before such results are replaced,
`settle` replaces the files by links, in an order that keeps every state consistent. On a file system without symbolic
links, files are written under the plain names, with the manifest last.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from shardpress.errors import CannotCreate, DataError, NoInput, printable
from shardpress.formats import digest, seal
from shardpress.output.disk import (
    UNSUPPORTED,
    Disk,
    publish,
    publish_copy,
    publish_link,
    remove,
    sync_directory,
    temporary_name,
    write_error,
)
from shardpress.output.records import (
    CURRENT,
    INDEX,
    MANIFEST,
    NAMES,
    OUTPUT,
    PUBLISHED,
    Entry,
    fault_of,
    files_of,
    is_index,
    is_left,
    manifest_path,
    plain_name,
    publications,
    read_manifest,
)
from shardpress.processcache import ProcessCache

log = logging.getLogger(__name__)

_warned = ProcessCache[int, bool]()  # keys are the device numbers of file systems whose warning was logged


class Publication:
    """The files of one run, which `finish` makes visible together.

    Parameters
    ----------
    directory : Path
        The output directory.
    disk : Disk

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
        If a file cannot be written; all methods can raise these errors.
    CannotCreate
        If ``published`` is a link.
    """

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk
        self._folder = f"{PUBLISHED}/{uuid.uuid4().hex}"
        self._names: list[str] = []
        self._has_links = _change(directory / PUBLISHED, "making it", self._begin)

    def write(self, name: str, data: bytes) -> Entry:
        """Write a file that readers find under its plain name, or a view that only the index names."""
        if not self._has_links or name not in NAMES:
            return self._write(name, data)
        self._names.append(name)
        if name != INDEX:
            return self._write(f"{self._folder}/{name}", data, name_is_synced=False)
        file = _index_name(digest([data]))
        entry = self._write(file, data)
        self._link_index(self._folder, file)
        return entry

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and make this publication the one that readers see."""
        data = seal(OUTPUT, manifest)
        if not self._has_links:
            self._write(MANIFEST, data)
            return
        # The manifest must not be on the disk before the files that it names.
        self._sync(self._folder)
        settle(self._directory, self._disk, self._names)
        self._write(f"{self._folder}/{MANIFEST}", data)
        _switch(self._directory, self._disk, self._folder)

    def _begin(self) -> bool:
        """Create the directory of this publication; return whether the file system supports symbolic links."""
        _make_published(self._directory, self._disk)
        self._disk.make_directory(self._directory / self._folder)
        sync_directory(self._disk, self._directory / PUBLISHED)
        # A sweep removes this link if the run is killed here.
        trial_link = temporary_name(self._directory / CURRENT)
        try:
            self._disk.symlink(Path(self._folder).name, trial_link)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._disk.remove_directory(self._directory / self._folder)
            _warn_of_missing_links(self._directory)
            return False
        self._disk.remove(trial_link)
        return True

    def _write(self, file: str, data: bytes, name_is_synced: bool = True) -> Entry:
        publish(self._disk, self._directory / file, data, name_is_synced)
        return Entry(file, len(data), digest([data]))

    def _link_index(self, folder: str, file: str) -> None:
        path = self._directory / folder / INDEX
        _change(path, "linking it", partial(self._disk.symlink, f"../../{file}", path))

    def _sync(self, folder: str) -> None:
        path = self._directory / folder
        _change(path, "syncing it", partial(sync_directory, self._disk, path))


def settle(directory: Path, disk: Disk, names: Iterable[str] = ()) -> None:
    """Make plain names links to the current publication, so that one switch replaces all of them.

    Regular files, as in a copy that followed links, are first turned into a publication. At every step, readers see the
    same run as before.

    Parameters
    ----------
    names : iterable of str
        Plain names of the next publication, in addition to the manifest.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted, CannotCreate
    """
    _change(directory, "replacing files by links", partial(_settle, directory, disk, set(names)))


def _settle(directory: Path, disk: Disk, names: set[str]) -> None:
    _make_published(directory, disk)
    _move_copy_aside(directory / CURRENT, disk, directory / PUBLISHED)
    if not os.path.lexists(directory / MANIFEST):
        _settle_without_manifest(directory, disk)
    elif not (directory / MANIFEST).is_symlink():
        names |= _adopt(directory, disk)
    else:
        names |= _not_yet_linked(directory)
    # Replace the manifest first, since the new one does not name files by their plain names.
    for group in ([MANIFEST], sorted(names - {MANIFEST})):
        changed = [name for name in group if not _is_our_link(directory / name)]
        for name in changed:
            publish_link(disk, f"{CURRENT}/{name}", directory / name)
        if changed:
            sync_directory(disk, directory)


def _not_yet_linked(directory: Path) -> set[str]:
    """Return names of regular files that an interrupted run has adopted, but not yet replaced by links."""
    return {name for name in NAMES if _is_regular(directory / name) and os.path.lexists(directory / CURRENT / name)}


def _settle_without_manifest(directory: Path, disk: Disk) -> None:
    """Ensure that new links do not make a run without a manifest visible again."""
    found = manifest_path(directory)
    if found.parent != directory:
        # In a copy without links, readers have found this publication, and must still find it.
        publish_link(disk, f"{PUBLISHED}/{found.parent.name}/{MANIFEST}", directory / MANIFEST)
        sync_directory(disk, directory)
        _switch(directory, disk, f"{PUBLISHED}/{found.parent.name}")
    elif (directory / CURRENT).is_symlink():
        # A user has removed the manifest, and files that it named may be missing.
        remove(disk, directory / CURRENT / MANIFEST)
        sync_directory(disk, directory / CURRENT)


def _move_copy_aside(path: Path, disk: Disk, published: Path) -> None:
    """Move a directory away that is a link in the original of this copy. The next sweep removes it."""
    if path.is_dir() and not path.is_symlink():
        disk.replace(path, published / uuid.uuid4().hex)
        sync_directory(disk, published)


def _adopt(directory: Path, disk: Disk) -> set[str]:
    """Turn regular files under plain names into a publication, and switch to it; return their names."""
    try:
        manifest = read_manifest(directory)
    except (NoInput, DataError):
        _settle_without_manifest(directory, disk)
        return set()
    folder = f"{PUBLISHED}/{uuid.uuid4().hex}"
    disk.make_directory(directory / folder)
    sync_directory(disk, directory / PUBLISHED)
    paths = _adopt_files(directory, disk, folder, manifest)
    # In a copy that followed links, the manifest names the other files by their paths in a publication.
    others = [name for name in NAMES if name != MANIFEST and name not in paths and _is_regular(directory / name)]
    for name in others:
        _adopt_other(directory, disk, folder, name, manifest)
    files = []
    for line in manifest.get("files", []):
        files.append({**line, "file": paths.get(line["file"], line["file"])})
    sync_directory(disk, directory / folder)
    sync_directory(disk, directory)
    publish(disk, directory / folder / MANIFEST, seal(OUTPUT, {**manifest, "files": files}))
    _switch(directory, disk, folder)
    return {*paths, *others}


def _adopt_files(directory: Path, disk: Disk, folder: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Add the files that a manifest lists under plain names to a publication; return their new paths by name."""
    paths = {}
    for line in manifest.get("files", []):
        name = str(line["file"])
        if name in NAMES and _is_regular(directory / name):
            paths[name] = _adopt_file(directory, disk, folder, name, str(line["blake3"]))
    return paths


def _adopt_file(directory: Path, disk: Disk, folder: str, name: str, blake3: str) -> str:
    """Add a file to a publication; return its new path."""
    if name != INDEX:
        file = f"{folder}/{name}"
        publish_copy(disk, directory / name, directory / file)
        return file
    file = _index_name(blake3)
    if not os.path.lexists(directory / file):
        publish_copy(disk, directory / name, directory / file)
    disk.symlink(f"../../{file}", directory / folder / INDEX)
    return file


def _adopt_other(directory: Path, disk: Disk, folder: str, name: str, manifest: Mapping[str, Any]) -> None:
    if name != INDEX:
        publish_copy(disk, directory / name, directory / folder / name)
        return
    views = [file for file in files_of(manifest) if is_index(file)]
    equal_views = [file for file in views if _have_equal_content(directory / file, directory / INDEX)]
    if equal_views:
        disk.symlink(f"../../{equal_views[0]}", directory / folder / INDEX)


def _have_equal_content(path: Path, other: Path) -> bool:
    try:
        return path.read_bytes() == other.read_bytes()
    except OSError:
        return False


def withdraw(directory: Path, disk: Disk) -> None:
    """Unpublish the finished run, in one step for all readers.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted, CannotCreate
    """
    _change(directory, "removing the published results", partial(_withdraw, directory, disk))


def _withdraw(directory: Path, disk: Disk) -> None:
    current = directory / CURRENT
    is_link = (directory / MANIFEST).is_symlink()
    published = os.readlink(current) if is_link and current.is_symlink() else None
    # Without its manifest, the directory looks like a copy without links, whose publication with a manifest is used.
    for folder in publications(directory):
        if folder.name != published:
            remove(disk, folder / MANIFEST)
            sync_directory(disk, folder)
    if _is_regular(directory / MANIFEST):
        remove(disk, directory / MANIFEST)
        sync_directory(disk, directory)
    if current.is_symlink():
        remove(disk, current)
        sync_directory(disk, directory / PUBLISHED)


def sweep_publications(directory: Path, disk: Disk, named: set[str]) -> None:
    """Remove publications except the current one and those with a file in `named`.

    Parameters
    ----------
    named : set of str
        Files that the manifest names.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
    """
    used_folders = {file.rpartition("/")[0] for file in named}
    current = directory / CURRENT
    if current.is_symlink():
        used_folders.add(f"{PUBLISHED}/{os.readlink(current)}")
    folders = publications(directory)
    if current.is_dir() and not current.is_symlink() and not (directory / PUBLISHED).is_symlink():
        folders.append(current)  # a directory, in a copy that followed links
    for folder in folders:
        if f"{PUBLISHED}/{folder.name}" not in used_folders:
            _change(folder, "removing it", partial(_remove_publication, disk, folder))


def _remove_publication(disk: Disk, folder: Path) -> None:
    # Remove the manifest first, since a publication without one is never taken for a finished run.
    remove(disk, folder / MANIFEST)
    sync_directory(disk, folder)
    for name in sorted(os.listdir(folder)):
        path = folder / name
        is_own = name in NAMES or is_left(name)
        if is_own and (path.is_symlink() or not path.is_dir()):
            remove(disk, path)
    with suppress(FileNotFoundError):
        try:
            disk.remove_directory(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # it holds a file of the user
                raise


def sweep_links(directory: Path, disk: Disk) -> None:
    """Remove plain names that are dangling links of shardpress.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
    """
    for name in NAMES:
        path = directory / name
        if _is_our_link(path) and not path.exists():
            remove(disk, path)


def misplaced_names(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the plain names that do not lead to the files that a manifest names."""
    entries: dict[str, list[Entry]] = {}
    for line in manifest["files"]:
        file = str(line["file"])
        name = INDEX if is_index(file) else plain_name(file)
        if name in NAMES:
            entries.setdefault(name, []).append(Entry(file, line["n_bytes"], line["blake3"]))
    misplaced = []
    for name, candidates in entries.items():
        if not any(_leads_to(directory, name, entry) for entry in candidates):
            misplaced.append(name)
    return misplaced


def _leads_to(directory: Path, name: str, entry: Entry) -> bool:
    try:
        if os.path.samefile(directory / name, directory / entry.file):
            return True
    except OSError:
        return False
    # In a copy that followed links, these are two different files.
    return fault_of(directory, Entry(name, entry.n_bytes, entry.blake3)) is None


def _switch(directory: Path, disk: Disk, folder: str) -> None:
    """Make a publication the current one, by one rename."""
    path = directory / CURRENT

    def switch() -> None:
        publish_link(disk, Path(folder).name, path)
        sync_directory(disk, path.parent)

    _change(path, "publishing the results", switch)


def _make_published(directory: Path, disk: Disk) -> None:
    folder = directory / PUBLISHED
    if folder.is_symlink():
        # A sweep removes files in this directory. Through a link, it would remove files of another directory.
        raise CannotCreate(
            f"output={printable(directory)}: its {PUBLISHED} is a symbolic link, expected a directory. "
            "Remove the link, then run the same command again."
        )
    if not folder.is_dir():
        disk.make_directory(folder)
        sync_directory(disk, directory)


def _index_name(blake3: str) -> str:
    """Return the name of an index, which depends on its content, so that it never replaces another index."""
    return f"index-{blake3[:32]}.h5"


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
    file_system = os.stat(directory).st_dev
    if not _warned.put_if_new(file_system, True):
        return
    log.warning(
        "output=%s: this file system has no symbolic links, so files are replaced one by one. While a run replaces "
        "the results of another run, readers may see files of both",
        printable(directory),
    )


def _change(path: Path, operation: str, function: Callable[[], Any]) -> Any:
    """Call a function, and turn an `OSError` into the error for a failed change."""
    try:
        return function()
    except OSError as error:
        raise write_error(error, path, operation) from error
