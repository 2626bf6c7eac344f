"""The output directory: whose it is, and how a file comes to stand in it.

A file is written whole under a temporary name beside its target, synced, and renamed: under its own name it is either
not there or complete. ``manifest.json`` comes last and names every part; a run without one is not finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import CannotCreate, DataError, NoInput, NotPermitted, TryAgain, WriteFailed, shown

__all__ = ["MANIFEST", "claim", "clear", "finish", "publish", "publish_json", "read_manifest"]

MANIFEST = "manifest.json"
_MARKER = ".shardpress"
_LOCK = ".lock"
_FORMAT = "shardpress-output/1"
_TEMPORARY = ".writing"
_RESULT = re.compile(
    r"(parts/part-\d{5,}\.h5|model\.h5|model-last-good\.h5|encoder\.npz|index\.h5|report\.json)(\.[0-9a-f]{32}\.writing)?"
)


@contextmanager
def claim(directory: Path, overwrite: bool) -> Iterator[None]:
    """Make `directory` ours for as long as the context lasts, or refuse before anything is read.

    The kernel holds the lock, and frees it when the process ends, however it ends: no lock is ever stale.

    Parameters
    ----------
    directory : Path
        Made with its parents when it is not there.
    overwrite : bool
        Whether the results of a finished run may be replaced.

    Raises
    ------
    CannotCreate
        When it cannot be made, is no directory, holds files that are not ours, or results that may not be replaced.
    NotPermitted
        When nothing can be written there.
    TryAgain
        When another run holds it, or its file system knows no locks.
    """
    where = f"output={shown(directory)}"
    with ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()) and not (directory / _MARKER).exists():
                raise CannotCreate(
                    f"{where}: holds files that are not of shardpress, expected a new or empty directory. Choose "
                    "another --output."
                )
            publish_json(directory / _MARKER, {"format": _FORMAT})
            held.enter_context(_locked(directory))
            if (directory / MANIFEST).exists() and not overwrite:
                raise CannotCreate(
                    f"{where}: holds the results of another run. Choose another --output, or replace them with "
                    "--overwrite."
                )
            (directory / "parts").mkdir(exist_ok=True)
        except PermissionError as error:
            raise NotPermitted(f"{where}: {error.strerror}. Choose an --output that you may write to.") from error
        except (OSError, WriteFailed) as error:
            raise CannotCreate(f"{where}: {error}. Choose another --output.") from error
        yield


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run's lock. What the file says is for people; only the kernel's lock decides."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = shown(os.read(descriptor, 1000).decode(errors="replace").strip())
            raise TryAgain(
                f"output={shown(directory)}: another run is at work there ({holder}). Type the same command again "
                "when it has ended, or choose another --output."
            ) from error
        except OSError as error:
            raise TryAgain(
                f"output={shown(directory)}: cannot be locked: {error.strerror}. Choose an --output on a file system "
                "that knows locks."
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {platform.node()} since {since}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def clear(directory: Path) -> None:
    """Take away what an earlier run left, the manifest first, so that a reader never sees a mixture.

    Only names that a run gives are touched. It is called once there is something to put in their place.

    Raises
    ------
    WriteFailed
    """
    try:
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in [*directory.iterdir(), *(directory / "parts").iterdir()]:
            if _RESULT.fullmatch(str(path.relative_to(directory))):
                path.unlink()
    except OSError as error:
        raise WriteFailed(f"output={shown(directory)}: cannot remove earlier results: {error}") from error


def publish(path: Path, data: bytes) -> None:
    """Put a whole file at `path`, replacing what was there.

    Raises
    ------
    WriteFailed
        When it cannot be written; nothing stands at `path` then that was not there before.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        advice = (
            "Free some space and start again." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the disk."
        )
        raise WriteFailed(f"file={shown(path)}: {error.strerror} while writing {len(data)} bytes. {advice}") from error


def publish_json(path: Path, content: Mapping[str, Any]) -> None:
    """Put a JSON file at `path`; raises like `publish`."""
    publish(path, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises
    ------
    NoInput
        When `directory` holds no finished run.
    DataError
        When its manifest is of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise NoInput(
            f"file={shown(path)}: {error.strerror}, expected the output directory of a finished run"
        ) from error
    except ValueError as error:
        raise DataError(f"file={shown(path)}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"file={shown(path)}: expected format {_FORMAT!r}")
    return manifest


def finish(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest: from here on the run is complete."""
    publish_json(directory / MANIFEST, {"format": _FORMAT, **manifest})


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
