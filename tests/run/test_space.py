"""What a run meets before and while it writes: no space, limits, directories that it may not have."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import runlog
from pipeline.errors import WriteFailed
from pipeline.output.disk import Disk, publish
from pipeline.output.lock import locked
from tests.support.faulty import Broken, Watched, forked, small_disk
from tests.support.nights import STEPS, Stopping
from tests.support.soak_protocol import (
    broken_promises,
    leftovers,
    records,
)
from tests.support.standin import Night, features_of


@pytest.mark.parametrize(
    "name", ["run.json", "stages/scan", "commits/scan", "checkpoint", "model", "parts/", "commits/part", "manifest"]
)
def test_d1_d2_no_space_for_one_file(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    class Full(Watched):
        def between(self, number: int, call: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            if call == "create" and name in str(arguments[0].relative_to(out)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return do(*arguments)

    assert night.run(out, *STEPS, disk=Full()) == 74
    assert "WriteFailed: file=" in caplog.text
    assert "No space left on device while writing" in caplog.text
    assert "bytes are free there. Free some space, then type the same command again" in caplog.text
    assert caplog.records[-1].message.endswith("Type the same command again to go on; what was finished stays.")
    assert broken_promises(out) == []
    assert night.run(out, *STEPS) == 0
    assert features_of(out) == expected()


def test_d2_a_log_on_a_full_disk_does_not_stop_the_run(
    night: Night, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: runlog.RunLog, directory: Path) -> None:
        self._descriptor = os.open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(runlog.RunLog, "start", start)
    assert night.run(out) == 0


class Small(Watched):
    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self._n_bytes = n_bytes

    def free_bytes(self, path: Path) -> int:
        return self._n_bytes


@pytest.mark.usefixtures("unread")
def test_d7_too_little_space_is_told_before_anything_is_read(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Small(934)) == 74
    assert f"output={out}: 934 bytes are free there, expected 935 at least for the features" in caplog.text


def test_d7_enough_space_is_enough(night: Night, out: Path) -> None:
    assert night.run(out, disk=Small(935)) == 0


def test_d7_parts_that_are_there_need_no_space_again(night: Night, out: Path) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    assert night.run(out, disk=Small(0)) == 0


def test_d7_a_finished_run_needs_no_space(night: Night, out: Path) -> None:
    assert night.run(out) == 0
    assert night.run(out, disk=Small(0)) == 0


@pytest.mark.process
def test_d1_a_real_full_disk_that_is_made_larger(night: Night, expected: Callable[..., bytes], tmp_path: Path) -> None:
    """Where the machine lets nobody mount one, a disk that says so."""
    whole, folder = expected(), tmp_path / "disk"
    folder.mkdir()

    def runs() -> list[Any]:
        is_real = small_disk(folder, 150 * 2**10)
        first = night.run(folder / "out", *STEPS, disk=None if is_real else Stopping("commits/part", 1))
        broken, committed = broken_promises(folder / "out"), len(records(folder / "out"))
        if is_real:
            assert small_disk(folder, 10 * 2**20)
        second = night.run(folder / "out", *STEPS)
        same = features_of(folder / "out") == whole
        return [first, broken, committed > 2, second, same, leftovers(folder / "out")]

    assert forked(runs) == (0, [74, [], True, 0, True, []])


@pytest.mark.process
def test_too_few_inodes_are_reported_before_anything_is_read(night: Night, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()

    def run() -> Any:
        if not small_disk(folder, 10 * 2**20, n_inodes=20):
            return None
        code = night.run(folder / "out", *STEPS)
        return code, "free inodes there, expected at least" in (folder / "out/run.log").read_text()

    code, found = forked(run)
    if found is None:
        pytest.skip("missing on this machine: the right to mount a file system")
    assert (code, found) == (0, [74, True])


@pytest.mark.process
def test_a_lack_of_inodes_is_not_called_a_lack_of_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()

    def fill() -> Any:
        if not small_disk(folder, 2**20, n_inodes=5):
            return None
        try:
            for number in range(5):
                publish(Disk(), folder / str(number), b"x")
        except WriteFailed as error:
            return "no free inodes (5 files at most)" in str(error), "bytes are free" in str(error)
        return "no error"

    code, found = forked(fill)
    if found is None:
        pytest.skip("missing on this machine: the right to mount a file system")
    assert (code, found) == (0, [True, False])


def test_a_file_system_without_an_inode_limit_is_not_refused(night: Night, out: Path) -> None:
    class Unlimited(Watched):
        def free_inodes(self, path: Path) -> int | None:
            return None

    class Full(Watched):
        def free_inodes(self, path: Path) -> int | None:
            return 8

    assert night.run(out, disk=Full()) == 74
    assert night.run(out, disk=Unlimited()) == 0
    assert night.run(out, disk=Full()) == 0, "a finished run creates no files"


@pytest.mark.process
def test_d3_a_real_limit_of_the_size_of_files(night: Night, out: Path, expected: Callable[..., bytes]) -> None:

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return night.run(out)

    assert forked(run) == (0, 74), "SIGXFSZ did not end the process"
    assert "The file-size limit is too low. Raise it (ulimit -f unlimited)" in (out / "run.log").read_text()
    assert broken_promises(out) == []
    assert len(records(out)) == 2, "the scan and the model are small"
    assert night.run(out) == 0
    assert features_of(out) == expected()


@pytest.mark.process
def test_d14_a_run_has_few_files_open(night: Night, out: Path, expected: Callable[..., bytes]) -> None:

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return night.run(out, "--threads", "4")

    assert forked(run) == (0, 0)
    assert features_of(out) == expected()


@pytest.mark.usefixtures("unread")
def test_d6_what_cannot_be_written_is_told_before_anything_is_read(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Broken(errno.EROFS, "create")) == 73
    assert night.run(out, disk=Broken(errno.EACCES, "create")) == 77
    assert caplog.text.count(f"output={out}: ") == 2
    assert caplog.records[-1].message.startswith("Nothing was started. Mend what the line above says")


@pytest.mark.usefixtures("unread")
def test_d13_a_directory_of_others_is_told_before_anything_is_read(night: Night, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_bytes(b"precious")
    for flags in ([], ["--overwrite"], ["--restart"]):
        assert night.run(out, *flags) == 73
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("thesis.tex", b"precious")]


@pytest.mark.usefixtures("unread")
def test_c1_another_run_at_work_is_told_before_anything_is_read(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(out):
        assert night.run(out) == 75
    assert "another run is at work there" in caplog.text
    assert caplog.records[-1].message == "Nothing was started. The line above says what there is to wait for."


@pytest.mark.parametrize("n_free", [0, 1])
def test_d7_a_single_file_needs_its_space_before_anything_is_read(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, n_free: int
) -> None:
    assert night.run(out, "--single-file", disk=Small(2 * 935 - 1 + n_free)) == (74, 0)[n_free]
    assert ("expected 1870 at least for the features" in caplog.text) == (not n_free)
