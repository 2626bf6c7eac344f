"""Tests of writing: files are complete or absent after any failure, and files of other users are never changed."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.errors import ShardpressError
from shardpress.output import disk
from shardpress.output.disk import PAGE, Disk, publish, remove
from tests.support.faulty import BrokenDisk, RecordingDisk, forked, small_disk
from tests.support.helpers import refused, without_privileges
from tests.support.logged import mentions

# Exit code and advice.
ADVICE = {
    errno.ENOSPC: (74, "bytes"),
    errno.EDQUOT: (74, "quota"),
    errno.EFBIG: (74, "ulimit -f"),
    errno.EROFS: (74, "writable"),
    errno.EIO: (74, "Check"),
    errno.ESTALE: (74, "Check"),
    errno.EMFILE: (71, "ulimit -n"),
    errno.ENFILE: (71, "ulimit -n"),
    errno.EACCES: (77, "writable"),
}
UNSUPPORTED = [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM]
WRITE_CALLS = ["create", "reserve", "write", "sync", "close"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_a_published_file_is_whole_and_alone(tmp_path: Path) -> None:
    for data in (b"", b"x", b"x" * 10**6, b""):  # in place of the previous file
        publish(Disk(), tmp_path / "part.h5", data)
        assert contents(tmp_path) == {"part.h5": data}, len(data)


def test_data_are_synced_before_the_rename_and_the_name_after_it(tmp_path: Path) -> None:
    recording = RecordingDisk()
    publish(recording, tmp_path / "part.h5", b"x")
    assert recording.names == [*WRITE_CALLS, "replace", "sync_directory"]
    assert recording.calls[-1] == ("sync_directory", tmp_path)


def test_a_name_that_the_caller_will_sync_is_not_synced(tmp_path: Path) -> None:
    recording = RecordingDisk()
    publish(recording, tmp_path / "part.h5", b"x", name_is_synced=False)
    assert recording.names == [*WRITE_CALLS, "replace"]
    assert contents(tmp_path) == {"part.h5": b"x"}


# -- without the page cache --------------------------------------------------------------------------------------

LARGE = 300 * PAGE + 17


def large(start: int = 0) -> memoryview:
    """Return bytes that begin `start` bytes after the beginning of a page."""
    memory = np.zeros(LARGE + 2 * PAGE, dtype=np.uint8)
    first = -memory.ctypes.data % PAGE + start
    memory[first : first + LARGE] = np.random.default_rng(0).integers(0, 256, LARGE)
    return memory[first : first + LARGE].data


def test_an_aligned_large_file_bypasses_the_page_cache(tmp_path: Path) -> None:
    recording = RecordingDisk()
    publish(recording, tmp_path / "part.h5", large())
    assert contents(tmp_path) == {"part.h5": bytes(large())}
    assert recording.names[:6] == ["create", "reserve", "bypass_cache", "write", "bypass_cache", "write"]
    assert [len(what) for name, what in recording.calls if name == "write"] == [300 * PAGE, 17]  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [large(start=16), large()[: 2**17 - 1]], ids=["between pages", "small"])
def test_unaligned_or_small_files_use_the_page_cache(tmp_path: Path, data: memoryview) -> None:
    recording = RecordingDisk()
    publish(recording, tmp_path / "part.h5", data)
    assert contents(tmp_path) == {"part.h5": bytes(data)}
    assert recording.names[:4] == WRITE_CALLS[:4]


def test_the_page_cache_is_used_if_it_cannot_be_bypassed(tmp_path: Path) -> None:
    for code in UNSUPPORTED:
        publish(BrokenDisk(code, "bypass_cache"), tmp_path / "part.h5", large())
        assert contents(tmp_path) == {"part.h5": bytes(large())}, errno.errorcode[code]
        (tmp_path / "part.h5").unlink()


@pytest.mark.parametrize(
    "answers",
    [
        (OSError(errno.EINVAL, "requires larger multiples"),),
        (PAGE, OSError(errno.EINVAL, "requires larger multiples")),
        (PAGE, 7 * PAGE),
        (PAGE + 1,),
    ],
    ids=["EINVAL", "EINVAL later", "half-way", "in a page"],
)
def test_an_interrupted_bypass_of_the_cache_is_completed(tmp_path: Path, answers: tuple[int | OSError, ...]) -> None:
    class Cached(Answering):
        """Disk that always writes through the page cache, so writes can end within a page."""

        def bypass_cache(self, descriptor: int, bypasses: bool) -> None:
            os.fstat(descriptor)

    publish(Cached(*answers), tmp_path / "part.h5", large())
    assert contents(tmp_path) == {"part.h5": bytes(large())}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_an_error_while_bypassing_the_cache_is_reported(tmp_path: Path, code: int) -> None:
    answering = Answering(PAGE, OSError(code, os.strerror(code)))
    with refused(74, os.strerror(code), str(LARGE)):
        publish(answering, tmp_path / "part.h5", large())
    assert (contents(tmp_path), answering.names.count("write")) == ({}, 2)


# -- failing disks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITE_CALLS, "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    target = tmp_path / "part.h5"
    target.write_bytes(b"old")
    for code, (exit_code, advice) in ADVICE.items():
        what = f"file={target}: {os.strerror(code)}"
        with refused(exit_code, what, "100", advice):
            publish(BrokenDisk(code, name), target, b"x" * 100)
        assert contents(tmp_path) == {"part.h5": b"old"}, errno.errorcode[code]


@pytest.mark.parametrize("name", ["sync", "close"])
def test_a_failed_sync_or_close_is_not_repeated(tmp_path: Path, name: str) -> None:
    """After a failed fsync the kernel may have dropped the data, although a second fsync succeeds."""
    broken = BrokenDisk(errno.EIO, name)
    with refused(74, os.strerror(errno.EIO)):
        publish(broken, tmp_path / "part.h5", b"x")
    assert broken.names.count(name) == 1
    assert "replace" not in broken.names


def test_a_failed_sync_of_a_name_is_an_error_but_keeps_the_file(tmp_path: Path) -> None:
    with refused(74, os.strerror(errno.EIO), "part.h5"):
        publish(BrokenDisk(errno.EIO, "sync_directory"), tmp_path / "part.h5", b"data")
    assert contents(tmp_path) == {"part.h5": b"data"}


def test_an_error_while_cleaning_up_does_not_hide_the_first_one(tmp_path: Path) -> None:
    with refused(74, os.strerror(errno.ENOSPC)):
        publish(BrokenDisk(errno.ENOSPC, "write", "close", "remove"), tmp_path / "part.h5", b"x")
    assert not (tmp_path / "part.h5").exists()


def test_nothing_is_written_without_space_for_all_of_it(tmp_path: Path) -> None:
    broken = BrokenDisk(errno.ENOSPC, "reserve")
    with refused(74, os.strerror(errno.ENOSPC), "bytes"):
        publish(broken, tmp_path / "part.h5", b"x" * 100)
    assert "write" not in broken.names


def test_a_file_system_without_reservation_is_supported(tmp_path: Path) -> None:
    for code in UNSUPPORTED:
        publish(BrokenDisk(code, "reserve"), tmp_path / "part.h5", b"data")
        assert contents(tmp_path) == {"part.h5": b"data"}, errno.errorcode[code]
        (tmp_path / "part.h5").unlink()


@pytest.mark.parametrize("answers", [[1], [1, 2, 3, 4]], ids=["short", "shorter"])
def test_short_writes_are_continued(tmp_path: Path, answers: list[int | OSError]) -> None:
    publish(Answering(*answers), tmp_path / "part.h5", b"0123456789")
    assert contents(tmp_path) == {"part.h5": b"0123456789"}


def test_a_write_of_zero_bytes_is_an_error(tmp_path: Path) -> None:
    with refused(74, f"file={tmp_path / 'part.h5'}: "):
        publish(Answering(4, 0), tmp_path / "part.h5", b"0123456789")
    assert contents(tmp_path) == {}


def test_a_rename_to_another_file_system_is_an_error(tmp_path: Path) -> None:
    broken = BrokenDisk(errno.EXDEV, "replace")
    with refused(74, "cross-device link"):
        publish(broken, tmp_path / "part.h5", b"data")
    assert contents(tmp_path) == {}
    assert broken.names.count("create") == 1


def test_unsupported_directory_syncs_cause_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "parts").mkdir()
    for code in UNSUPPORTED:
        disk._warned.clear()
        caplog.clear()
        for name in ("parts/1.h5", "2.h5", "parts/3.h5"):
            publish(BrokenDisk(code, "sync_directory"), tmp_path / name, b"data")
        assert [record.levelname for record in caplog.records] == ["WARNING"], errno.errorcode[code]
        assert f"output={tmp_path}" in caplog.text


def test_an_interrupt_leaves_nothing_and_is_raised(tmp_path: Path) -> None:
    class Interrupting(RecordingDisk):
        def sync(self, descriptor: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(Interrupting(), tmp_path / "part.h5", b"x")
    assert contents(tmp_path) == {}


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with refused(74, "no\\n", os.strerror(errno.ENOENT)):
        publish(Disk(), tmp_path / "no\n" / "part.h5", b"x")


# -- real limits -------------------------------------------------------------------------------------------------


def failing(act: Callable[[], object]) -> list[Any]:
    """Return the exit code and the message of the error that `act` raises."""
    try:
        act()
    except ShardpressError as error:
        return [error.exit_code, str(error)]
    return [0, ""]


@pytest.mark.process
def test_a_real_limit_of_file_sizes_is_a_write_error(tmp_path: Path) -> None:
    def write() -> list[Any]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        publish(Disk(), tmp_path / "small.h5", b"x" * 1000)
        return failing(lambda: publish(Disk(), tmp_path / "part.h5", b"x" * 1001))

    code, (exit_code, sentence) = forked(write)
    assert (code, exit_code) == (0, 74), "SIGXFSZ did not end the process"
    assert "ulimit -f" in sentence
    assert contents(tmp_path) == {"small.h5": b"x" * 1000}


@pytest.mark.process
def test_a_real_limit_of_open_files_is_a_system_limit(tmp_path: Path) -> None:
    def write() -> list[Any]:
        lowest = os.dup(0)  # all lower numbers are in use
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
        return failing(lambda: publish(Disk(), tmp_path / "part.h5", b"x"))

    code, (exit_code, sentence) = forked(write)
    assert (code, exit_code) == (0, 71)
    assert "ulimit -n" in sentence
    assert contents(tmp_path) == {}


@pytest.mark.process
def test_a_real_full_disk_is_a_write_error(tmp_path: Path) -> None:
    """If the machine does not allow mounts, a disk that returns the error replaces it."""

    def write() -> list[Any]:
        is_real = small_disk(tmp_path, 64 * 2**10)
        publish(Disk(), tmp_path / "small.h5", b"x" * 2**12)
        found = failing(
            lambda: publish(
                Disk() if is_real else BrokenDisk(errno.ENOSPC, "reserve"), tmp_path / "part.h5", b"x" * 2**17
            )
        )
        return [*found, sorted(os.listdir(tmp_path))]

    code, (exit_code, sentence, remaining) = forked(write)
    assert (code, exit_code) == (0, 74)
    assert mentions(sentence, f"file={tmp_path / 'part.h5'}", os.strerror(errno.ENOSPC), 2**17)
    assert remaining == ["small.h5"]


@pytest.mark.process
@pytest.mark.parametrize("act", ["publish", "remove"])
def test_a_directory_without_permission_is_refused(open_path: Path, act: str) -> None:
    folder = open_path / "closed"
    folder.mkdir()
    (folder / "part.h5").write_bytes(b"old")
    folder.chmod(0o555)
    acts = {
        "publish": lambda: publish(Disk(), folder / "part.h5", b"x"),
        "remove": lambda: remove(Disk(), folder / "part.h5"),
    }
    exit_code, sentence = without_privileges(acts[act])
    assert exit_code == 77, sentence
    assert f"file={folder / 'part.h5'}: {os.strerror(errno.EACCES)}" in sentence
    assert contents(folder) == {"part.h5": b"old"}


# -- links -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["symbolic", "hard"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a foreign file that ``part.h5`` links to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    {"symbolic": os.symlink, "hard": os.link}[request.param](victim, tmp_path / "part.h5")
    return victim


def test_publishing_replaces_a_link_and_keeps_its_target(victim: Path) -> None:
    publish(Disk(), victim.with_name("part.h5"), b"data")
    assert contents(victim.parent) == {"victim": b"precious", "part.h5": b"data"}
    assert not victim.with_name("part.h5").is_symlink()


def test_removing_a_link_keeps_its_target(victim: Path) -> None:
    remove(Disk(), victim.with_name("part.h5"))
    assert contents(victim.parent) == {"victim": b"precious"}


def test_a_link_in_place_of_a_temporary_file_is_not_followed(victim: Path) -> None:
    victim.with_name("dangling").symlink_to(victim.with_name("nowhere"))
    for name in ("part.h5", "dangling"):
        with pytest.raises(FileExistsError):
            Disk().create(victim.with_name(name))
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("nowhere").exists()


# -- removing ----------------------------------------------------------------------------------------------------


def test_removing_a_missing_file_is_no_error(tmp_path: Path) -> None:
    remove(Disk(), tmp_path / "part.h5")


def test_a_failed_removal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "part.h5").write_bytes(b"old")
    with refused(74, f"file={tmp_path / 'part.h5'}: {os.strerror(errno.EIO)}"):
        remove(BrokenDisk(errno.EIO, "remove"), tmp_path / "part.h5")
