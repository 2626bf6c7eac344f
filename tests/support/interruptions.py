"""Interrupt runs of the stand-in, damage their files, and compare the results."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardpress.result.finished import Result
from tests.support.faulty import RecordingDisk
from tests.support.protocol import unreferenced
from tests.support.standin import Workspace, features_of

STEPS = ["checkpoint_seconds=0"]
OTHER = ["--seed", "1"]
SIZES = (20, 0, 35)  # rows of the shards


class FullDisk(RecordingDisk):
    """Disk that is full after it has renamed `n_named` files of a kind."""

    def __init__(self, kind: str, n_named: int) -> None:
        super().__init__()
        self._kind = kind
        self._left = n_named

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if self._left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = do(*arguments)
        self._left -= self._n_found(name, arguments)
        return result

    def _n_found(self, name: str, arguments: tuple[Any, ...]) -> int:
        return name == "replace" and self._kind in str(arguments[1])


class FullAfter(FullDisk):
    """Disk that is full after the journal has named `n_named` results of a kind, such as ``part``."""

    def _n_found(self, name: str, arguments: tuple[Any, ...]) -> int:
        mark = '"type": "part"' if self._kind == "part" else f'"key": "{self._kind}'
        return bytes(arguments[1]).count(mark.encode()) if name == "write" else 0


def undisturbed_features(workspace: Workspace, *flags: str) -> bytes:
    """Return the features of an undisturbed run over the current shards."""
    output = workspace.folder / f"fresh{len(list(workspace.folder.iterdir()))}"
    assert workspace.run(output, *flags) == 0
    return features_of(output)


def stamps(output: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of every file, to see which files were rewritten.

    Descriptions of input files are written again when the files have become old enough.
    """
    found = {str(path.relative_to(output)): path.stat() for path in output.rglob("*") if path.is_file()}
    return {
        name: (status.st_ino, status.st_mtime_ns)
        for name, status in found.items()
        if name not in ("work/lock", "run.log") and not name.startswith("work/descriptions-")
    }


def finished_stamps(output: Path) -> dict[str, tuple[int, int]]:
    """Return the stamps of finished results, without parts that were unfinished when the run ended."""
    unfinished = unreferenced(output)
    return {name: stamp for name, stamp in stamps(output).items() if name not in unfinished}


def parts(output: Path) -> list[str]:
    return [part.file for part in Result.open(output).parts]


def flip(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
}
