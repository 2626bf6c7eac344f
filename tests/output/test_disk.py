"""Tests of writing: files are complete or absent after any failure, and files of other users are never changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.output import disk
from shardpress.output.disk import PAGE, Disk, publish, remove
from tests.support.cases import each
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.helpers import refused

LARGE = 300 * PAGE + 17


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def large(start: int = 0) -> memoryview:
    """Return bytes that begin `start` bytes after the beginning of a page."""
    memory = np.zeros(LARGE + 2 * PAGE, dtype=np.uint8)
    first = -memory.ctypes.data % PAGE + start
    memory[first : first + LARGE] = np.random.default_rng(0).integers(0, 256, LARGE)
    return memory[first : first + LARGE].data


class Answering(RecordingDisk):
    """Disk whose first writes have predefined results: a maximum number of bytes, or an error. Later writes succeed."""

    def __init__(self, *answers: int | OSError) -> None:
        super().__init__()
        self._answers = list(answers)

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if name == "bypass_cache":  # so that writes can end within a page
            return None
        if name != "write" or not self._answers:
            return do(*arguments)
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return do(arguments[0], arguments[1][:answer]) if answer else 0


# -- writing -------------------------------------------------------------------------------------------------


@each(
    "answers",
    [
        (PAGE, OSError(errno.EINVAL, "requires larger multiples")),
        (PAGE, 7 * PAGE),
        (1, 2, 3, 4),
    ],
)
def test_interrupted_and_short_writes_are_completed(tmp_path: Path, answers: tuple[int | OSError, ...]) -> None:
    publish(Answering(*answers), tmp_path / "part.h5", large())
    assert contents(tmp_path) == {"part.h5": bytes(large())}


def test_missing_features_of_a_file_system_are_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only if directories cannot be synced, there is one warning."""
    (tmp_path / "parts").mkdir()
    disk._warned.clear()
    for name in ("1.h5", "parts/2.h5"):
        broken = BrokenDisk(errno.EOPNOTSUPP, "bypass_cache", "reserve", "sync_directory")
        publish(broken, tmp_path / name, large(start=16))
        assert (tmp_path / name).read_bytes() == bytes(large(start=16))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"output={tmp_path}" in caplog.text


# -- failing disks -----------------------------------------------------------------------------------------------


def test_an_error_of_a_write_is_reported(tmp_path: Path) -> None:
    answering = Answering(PAGE, OSError(errno.EIO, os.strerror(errno.EIO)))
    with refused(74, os.strerror(errno.EIO), str(LARGE)):
        publish(answering, tmp_path / "part.h5", large())
    with refused(77, f"file={tmp_path / 'part.h5'}: "):
        publish(BrokenDisk(errno.EACCES, "create"), tmp_path / "part.h5", b"0123456789")
    with refused(74, f"file={tmp_path / 'part.h5'}: "):
        publish(Answering(4, 0), tmp_path / "part.h5", b"0123456789")  # no byte is written
    assert (contents(tmp_path), answering.names.count("write")) == ({}, 2)


# -- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_the_target_of_a_link_is_never_changed(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("published.h5", "removed.h5"):
        make(victim, tmp_path / name)
        with pytest.raises(FileExistsError):
            Disk().create(tmp_path / name)
    publish(Disk(), tmp_path / "published.h5", b"data")
    remove(Disk(), tmp_path / "removed.h5")
    assert contents(tmp_path) == {"victim": b"precious", "published.h5": b"data"}
    assert not (tmp_path / "published.h5").is_symlink()
