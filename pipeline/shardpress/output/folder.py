"""Files in an output directory: their names, and how they are written and checked."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from shardpress.base.errors import ReadFailed, printable
from shardpress.base.formats import PieceDigest, digest
from shardpress.output.disk import TEMPORARY, Content, Disk, publish, write_error
from shardpress.result.records import Entry

PARTS = "parts"
WORK = "work"
FOLDERS = (PARTS, WORK)
REPORT = "report.html"
BAD_ROWS = "bad_rows.jsonl"
JOURNAL = f"{WORK}/journal.jsonl"
DESCRIPTIONS = f"{WORK}/descriptions-{{}}.msgpack"
"""Name of the file with the descriptions of the input files, by the digest of the index. Each run can do without."""
MARKER = ".shardpress"
LAST_GOOD = f"{WORK}/model-last-good.h5"
"""Model of the last finite parameters of a training run that diverged."""

# Error numbers of `open` and `read` that concern the file itself.
_ABOUT_THE_FILE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
)
_PIECE = 2**20  # bytes read at once, so that verifying large parts takes little memory
# Only files with these names are ever removed. All others belong to the user.
_RESULT = re.compile(
    r"parts/part-[0-9-]*[0-9a-f]{32}\.h5|work/(scan|checkpoint|model|probe)-[0-9a-f]{32}\.(h5|npz|txt)"
    r"|work/model-last-good\.h5|generation-[0-9]+\.h5"
)
_DESCRIPTIONS = re.compile(DESCRIPTIONS.format("[0-9a-f]{64}"))
_FIXED = r"index\.h5|report\.html|bad_rows\.jsonl|\.shardpress|work/journal\.jsonl"
_TEMPORARY = re.compile(rf"({_FIXED}|{_RESULT.pattern}|{_DESCRIPTIONS.pattern})\.[0-9a-f]{{32}}\{TEMPORARY}")


def unique_name(stem: str, suffix: str) -> str:
    """Return a name that no other file has, independently of clocks and seeds."""
    return f"{stem}-{uuid.uuid4().hex}{suffix}"


def write_file(directory: Path, disk: Disk, name: str, data: bytes | memoryview | Content) -> Entry:
    """Write a file that counts only when the journal or an index names it. The directory is not synced.

    Any thread or process can call this. It raises like `shardpress.output.disk.publish`.
    """
    if isinstance(data, Content):
        content = PieceDigest(data.pieces)
        publish(disk, directory / name, Content(data.n_bytes, content), name_is_synced=False)
        return Entry(name, content.n_bytes, content.blake3)
    publish(disk, directory / name, data, name_is_synced=False)
    return Entry(name, len(data), digest([data]))


def is_ours(path: str) -> bool:
    """Return whether a relative path has the name of a result, of an earlier generation, or of a temporary file."""
    return any(pattern.fullmatch(path) for pattern in (_TEMPORARY, _RESULT, _DESCRIPTIONS))


def is_result(path: str) -> bool:
    """Return whether the journal may name a file."""
    return bool(_RESULT.fullmatch(path))


def check_limits(error: OSError, path: Path) -> None:
    """Raise `SystemLimit` if a file could not be read because too many files are open."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise write_error(error, path, "reading it") from error


def check_storage(error: OSError, path: Path) -> None:
    """Raise `ReadFailed` or `SystemLimit`, unless `error` concerns the file itself, such as a missing file.

    A result that is temporarily unreadable is not damaged. It is neither removed nor recomputed.
    """
    check_limits(error, path)
    if error.errno not in _ABOUT_THE_FILE:
        raise ReadFailed(
            f"file={printable(path)}: {error.strerror} while reading it. Check the storage, then run the same command "
            "again. If only this file remains unreadable, delete it; it is then recomputed."
        ) from error


def fault_of(directory: Path, entry: Entry, digests: bool = True) -> str | None:
    """Return the fault of a file; None if it is unchanged. Without `digests`, compare only its size.

    Raise `ReadFailed` or `SystemLimit` if the storage or the system fails.
    """
    path = directory / entry.file
    try:
        # Links are not followed, and opening a FIFO does not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fault = _difference(descriptor, entry, digests)
        finally:
            os.close(descriptor)
    except OSError as error:
        check_storage(error, path)
        fault = f"cannot be read: {error.strerror}"
    return None if fault is None else f"file={printable(path)}: {fault}"


def _difference(descriptor: int, entry: Entry, digests: bool) -> str | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "no longer a regular file"
    if status.st_size != entry.n_bytes:
        return f"{status.st_size} bytes, expected {entry.n_bytes} as when it was written"
    if digests:
        pieces = iter(partial(os.read, descriptor, _PIECE), b"")
        if digest(pieces) != entry.blake3:
            return "its content has changed: the BLAKE3 digest differs from that of the written file"
    return None


def files_inside(directory: Path, paths: Sequence[str]) -> list[str]:
    """Return the paths that a run in `directory` could remove or replace.

    A file is inside if one of its parent directories is the output directory or a folder of the output directory. These
    directories are compared by device and inode. The directory and the files may be missing.
    """
    folders = [directory, *(directory / name for name in FOLDERS)]
    identities = {_identity(folder) for folder in folders} - {None}
    resolved_directory = directory.resolve()

    @cache  # many files are in few folders
    def is_inside(folder: str) -> bool:
        starts = (Path(folder).absolute(), Path(folder).resolve())
        folders = {path for start in starts for path in (start, *start.parents)}
        return resolved_directory in folders or any(_identity(path) in identities for path in folders)

    def folders_of(path: str) -> Iterator[str]:
        yield os.path.dirname(path)
        if os.path.islink(path):
            yield os.path.dirname(os.path.realpath(path))

    return [path for path in paths if any(map(is_inside, folders_of(path)))]


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
