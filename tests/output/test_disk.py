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
from tests.support.cases import case, each
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.helpers import refused

EXIT_CODES = {errno.ENOSPC: 74, errno.EROFS: 74, errno.EIO: 74, errno.EMFILE: 71, errno.EACCES: 77}
UNSUPPORTED = [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM]
WRITE_CALLS = ["create", "reserve", "write", "sync", "close"]
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
        if name != "write" or not self._answers:
            return do(*arguments)
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return do(arguments[0], arguments[1][:answer]) if answer else 0


# -- writing -------------------------------------------------------------------------------------------------


def test_data_are_synced_before_the_rename_and_the_name_after_it(tmp_path: Path) -> None:
    recording = RecordingDisk()
    publish(recording, tmp_path / "part.h5", b"x")
    assert contents(tmp_path) == {"part.h5": b"x"}
    assert recording.names == [*WRITE_CALLS, "replace", "sync_directory"]
    assert recording.calls[-1] == ("sync_directory", tmp_path)
    recording.calls.clear()
    publish(recording, tmp_path / "part.h5", b"x", name_is_synced=False)
    assert recording.names == [*WRITE_CALLS, "replace"]


def test_only_aligned_large_files_bypass_the_page_cache(tmp_path: Path) -> None:
    for data, sizes in (
        (large(), [300 * PAGE, 17]),
        (large(start=16), [LARGE]),
        (large()[: 2**17 - 1], [2**17 - 1]),
        (memoryview(b""), []),
    ):
        recording = RecordingDisk()
        publish(recording, tmp_path / "part.h5", data)
        assert contents(tmp_path) == {"part.h5": bytes(data)}
        assert [len(what) for name, what in recording.calls if name == "write"] == sizes  # type: ignore[arg-type]
        assert recording.names.count("bypass_cache") == 2 * (len(sizes) == 2)


@pytest.mark.parametrize(
    "answers",
    [
        (OSError(errno.EINVAL, "requires larger multiples"),),
        (PAGE, OSError(errno.EINVAL, "requires larger multiples")),
        (PAGE, 7 * PAGE),
        (PAGE + 1,),
        (1, 2, 3, 4),
    ],
    ids=["EINVAL", "EINVAL later", "half-way", "in a page", "short"],
)
def test_interrupted_and_short_writes_are_completed(tmp_path: Path, answers: tuple[int | OSError, ...]) -> None:
    class Cached(Answering):
        """Disk that always writes through the page cache, so writes can end within a page."""

        def bypass_cache(self, descriptor: int, bypasses: bool) -> None:
            os.fstat(descriptor)

    publish(Cached(*answers), tmp_path / "part.h5", large())
    assert contents(tmp_path) == {"part.h5": bytes(large())}


@each("code", UNSUPPORTED)
def test_missing_features_of_a_file_system_are_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Only if directories cannot be synced, there is one warning."""
    folder = tmp_path / str(code)
    (folder / "parts").mkdir(parents=True)
    disk._warned.clear()
    caplog.clear()
    for name in ("1.h5", "parts/2.h5"):
        publish(BrokenDisk(code, "bypass_cache", "reserve", "sync_directory"), folder / name, large())
        assert (folder / name).read_bytes() == bytes(large())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"output={folder}" in caplog.text


# -- failing disks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITE_CALLS, "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    target = tmp_path / "part.h5"
    target.write_bytes(b"old")
    for code, exit_code in EXIT_CODES.items():
        broken = BrokenDisk(code, name)
        with case(errno.errorcode[code]), refused(exit_code, f"file={target}: {os.strerror(code)}", "100"):
            publish(broken, target, b"x" * 100)
        assert contents(tmp_path) == {"part.h5": b"old"}, errno.errorcode[code]
        # After a failed fsync, the kernel may have dropped the data, although a second fsync succeeds.
        assert broken.names.count(name) == 1


def test_an_error_of_a_direct_write_is_reported(tmp_path: Path) -> None:
    answering = Answering(PAGE, OSError(errno.EIO, os.strerror(errno.EIO)))
    with refused(74, os.strerror(errno.EIO), str(LARGE)):
        publish(answering, tmp_path / "part.h5", large())
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
