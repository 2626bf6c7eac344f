"""Whole runs on failing disks, killed, cut off from power, and typed again: the commit protocol from end to end.

The ordeals go through every call that a run makes of its disk; `tests/support/soak_protocol.py` has the rest of them.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import runlog
from pipeline.errors import DataError
from pipeline.features import open_features
from pipeline.formats import pack, seal, unpack
from pipeline.output.lock import locked
from pipeline.output.records import Record, read_manifest
from pipeline.scan import ranges
from tests.support.faulty import Broken, Watched, forked, small_disk
from tests.support.helpers import write_shard
from tests.support.soak_protocol import (
    KINDS,
    Trial,
    bad_nights,
    broken_promises,
    cut_power,
    fail_every_call,
    fail_every_write,
    kill_at_every_call,
    leftovers,
    named,
    records,
)
from tests.support.standin import Night, features_of, install

STEPS = ["--checkpoint-minutes", "0"]
OTHER = ["--seed", "1"]
N_CHECKPOINTS = 4  # two epochs of two steps


# -- every call, in turn -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trial]]:
    """A kind of run, and what it makes undisturbed."""
    known: dict[str, Trial] = {}

    def of_kind(kind: str) -> Trial:
        if kind not in known:
            known[kind] = Trial(tmp_path_factory.mktemp("trial") / kind, kind)
        return known[kind]

    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        yield of_kind


def some(first: int, stride: int) -> slice:
    return slice(first, None, stride)


def test_d10_every_call_fails_for_good(trial: Callable[[str], Trial]) -> None:
    codes = fail_every_call(trial("new"), errno.ENOSPC, for_good=True)
    assert set(codes) == {73, 74}
    assert codes.total() == len(trial("new").calls) > 150


@pytest.mark.parametrize(
    ("code", "for_good", "done", "first"),
    [
        (errno.ENOSPC, False, False, 0),
        (errno.EIO, False, False, 1),
        (errno.EIO, True, False, 2),
        (errno.EIO, False, True, 3),
    ],
    ids=["no space once", "storage error once", "storage error for good", "done nevertheless"],
)
def test_d10_some_calls_fail(trial: Callable[[str], Trial], code: int, for_good: bool, done: bool, first: int) -> None:
    assert fail_every_call(trial("new"), code, for_good, done, some(first, 8)).total() > 20


def test_d14_some_calls_find_too_many_open_files(trial: Callable[[str], Trial]) -> None:
    assert fail_every_call(trial("new"), errno.EMFILE, for_good=False, of=some(4, 12))[71] > 15


@pytest.mark.parametrize("code", [0, errno.ENOSPC], ids=["once", "then no space"])
def test_d5_d10_every_write_is_short(trial: Callable[[str], Trial], code: int) -> None:
    assert fail_every_write(trial("new"), code).total() > 20


def test_p2_killed_after_every_call(trial: Callable[[str], Trial], capsys: pytest.CaptureFixture[str]) -> None:
    n_killed = kill_at_every_call(trial("new"), after=True)
    with capsys.disabled():
        print(f"\n  killed after {n_killed} calls: {dict(Counter(name for name, _ in trial('new').calls))}")
    assert n_killed == len(trial("new").calls)


def test_p2_killed_before_some_calls(trial: Callable[[str], Trial]) -> None:
    assert kill_at_every_call(trial("new"), after=False, of=some(0, 12)) > 15


def test_p8_power_cut_after_every_call(trial: Callable[[str], Trial]) -> None:
    kinds = cut_power(trial("new"), n_random=1)
    assert kinds.total() > 150
    assert set(kinds) == {"lost", "empty", "zeros", "mixed"}


AFTERWARDS = "single file afterwards"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("new", AFTERWARDS)])
def test_p2_p8_d10_runs_of_other_kinds(trial: Callable[[str], Trial], kind: str) -> None:
    assert fail_every_call(trial(kind), errno.ENOSPC, True, of=some(0, 12)).total() > 10
    assert fail_every_call(trial(kind), errno.EIO, False, of=some(4, 12)).total() > 10
    assert kill_at_every_call(trial(kind), after=True, of=some(8, 12)) > 10
    assert cut_power(trial(kind), n_random=1, of=some(0, 6)).total() > 20


def test_p2_p8_d5_d10_a_single_file_of_a_finished_run(trial: Callable[[str], Trial]) -> None:
    """Every one of the few calls."""
    n_calls = len(trial(AFTERWARDS).calls)
    assert fail_every_call(trial(AFTERWARDS), errno.ENOSPC, True).total() == n_calls
    assert fail_every_write(trial(AFTERWARDS)).total() > 10
    assert fail_every_write(trial(AFTERWARDS), errno.ENOSPC).total() > 10
    assert kill_at_every_call(trial(AFTERWARDS), after=True) == n_calls
    assert cut_power(trial(AFTERWARDS), n_random=1).total() > 20


def test_p2_p8_d10_bad_nights_one_after_the_other(trial: Callable[[str], Trial]) -> None:
    assert set(bad_nights(trial("new"), 25)) == {"fails", "is short", "killed", "power"}


# -- one night at a time -----------------------------------------------------------------------------------------


SIZES = (20, 0, 35)


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    install(monkeypatch)
    return Night(tmp_path, *SIZES)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., bytes]]:
    """What an undisturbed run with these flags makes of a night's shards."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        undisturbed = Night(tmp_path_factory.mktemp("undisturbed"), *SIZES)
        yield cache(partial(fresh, undisturbed))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Stopping(Watched):
    """No space any more once it has named a file of this kind so many times."""

    def __init__(self, kind: str, n_named: int) -> None:
        super().__init__()
        self._kind, self._left = kind, n_named

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if not self._left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = do(*arguments)
        if name == "replace" and self._kind in str(arguments[1]):
            self._left -= 1
        return result


def fresh(night: Night, *flags: str) -> bytes:
    """What an undisturbed run makes of its shards as they are now."""
    output = night.folder / f"fresh{len(list(night.folder.iterdir()))}"
    assert night.run(output, *flags) == 0
    return features_of(output)


def stamps(output: Path) -> dict[str, tuple[int, int]]:
    """By which every file is known to be the same one, not written to since."""
    found = {str(path.relative_to(output)): path.stat() for path in output.rglob("*") if path.is_file()}
    return {
        name: (status.st_ino, status.st_mtime_ns) for name, status in found.items() if name not in (".lock", "run.log")
    }


def parts(output: Path) -> list[str]:
    return [part["file"] for part in read_manifest(output)["parts"]]


def flip(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def first_feature(path: Path) -> int:
    with h5py.File(path) as file:
        place: int = file["features"].id.get_offset()
    return place


def test_d11_a_part_that_hdf5_cannot_read_again_ends_the_run_with_its_name(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it may be where only sizes are verified, on the way to the single file; the index opens no part."""
    assert night.run(out) == 0
    paths = parts(out)
    for path in paths:
        data = (out / path).read_bytes()
        (out / path).write_bytes(data[:96] + bytes(first_feature(out / path) - 96) + data[first_feature(out / path) :])
    (out / "manifest.json").unlink()
    assert night.run(out, "--verify", "sizes", "--single-file") == 74
    assert f"file={out / paths[0]}: cannot be read again" in caplog.text


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
}


def test_the_stand_in_makes_the_same_bits_whatever_the_blocks_and_threads(night: Night) -> None:
    expected = fresh(night)
    for flags in (["--threads", "3"], ["--block-rows", "1"], ["--block-rows", "1000"], STEPS):
        assert fresh(night, *flags) == expected
    assert fresh(night, "--seed", "1") != expected


# -- no space ----------------------------------------------------------------------------------------------------


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


def test_d14_a_run_has_few_files_open(night: Night, out: Path, expected: Callable[..., bytes]) -> None:

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return night.run(out, "--threads", "4")

    assert forked(run) == (0, 0)
    assert features_of(out) == expected()


class Reading(Exception):
    """Rows were read."""


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is read."""

    def read(*_arguments: object) -> None:
        raise Reading

    monkeypatch.setattr(ranges, "read", read)


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


# -- typed again -------------------------------------------------------------------------------------------------


def test_u4_a_finished_run_is_verified_and_nothing_is_written(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, watched = stamps(out), Watched()
    assert night.run(out, disk=watched) == 0
    assert watched.calls == []
    assert stamps(out) == before
    assert "Already complete: 55 rows x 4 columns -> 2 features" in (out / "run.log").read_text()


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("what", ["part", "index.h5", "model.h5", "encoder.npz", "report.json"])
def test_d11_of_a_finished_run_only_what_is_damaged_is_made_anew(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, what: str, how: str
) -> None:
    assert night.run(out) == 0
    expected, before = features_of(out), stamps(out)
    damaged = parts(out)[1] if what == "part" else what
    of_part = [str(path.relative_to(out)) for path in out.glob("commits/part-*") if damaged in path.read_text()]
    DAMAGE[how](out / damaged)
    caplog.clear()
    assert night.run(out) == 0
    assert f"file={out / damaged}: " in caplog.text
    assert "; it is made anew" in caplog.text
    assert "scan: an earlier run has finished it" in caplog.text
    assert "training: an earlier run has finished it" in caplog.text
    assert features_of(out) == expected
    assert broken_promises(out) == leftovers(out) == []
    changed = {name for name, stamp in before.items() if stamps(out).get(name) != stamp}
    assert {name for name in changed if "/" in name} == ({damaged, *of_part} if what == "part" else set())


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("what", ["stages/scan", "stages/model", "commits/scan", "commits/model", "commits/part"])
def test_d11_d12_what_an_unfinished_run_finds_damaged_is_made_anew(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, what: str, how: str
) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    (damaged, *_others) = sorted(out.glob(f"{what}*"))
    DAMAGE[how](damaged)
    caplog.clear()
    assert night.run(out) == 0
    # A record that is not there has never been.
    assert (f"file={damaged}: " in caplog.text) == (what.startswith("stages") or how != "deleted")
    assert features_of(out) == expected()
    assert broken_promises(out) == leftovers(out) == []


@pytest.mark.parametrize("how", DAMAGE)
def test_d12_without_its_manifest_a_run_is_finished_anew_from_its_parts(night: Night, out: Path, how: str) -> None:
    assert night.run(out) == 0
    expected, before = features_of(out), stamps(out)
    DAMAGE[how](out / "manifest.json")
    assert night.run(out) == 0
    assert features_of(out) == expected
    assert {name: stamps(out)[name] for name in before if "/" in name} == {
        name: stamp for name, stamp in before.items() if "/" in name
    }


def test_d11_sizes_only_find_what_has_another_size(night: Night, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert night.run(out) == 0
    flip(out / parts(out)[0], first_feature(out / parts(out)[0]))
    os.truncate(out / parts(out)[1], 100)
    caplog.clear()
    assert night.run(out, "--verify", "sizes") == 0
    assert f"file={out / parts(out)[0]}" not in caplog.text
    assert "100 bytes, expected" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", ".shardpress"])
def test_d12_what_a_later_version_wrote_is_left_alone(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    assert night.run(out) == 0
    (out / name).write_bytes(seal("shardpress-output/2", {"parts": []}))
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--epochs", "1"]):
        assert night.run(out, *flags) == 76
    assert stamps(out) == before
    assert "a later version of shardpress wrote it. Upgrade" in caplog.text


def test_s12_a_manifest_that_leads_elsewhere_ends_the_run(night: Night, out: Path, tmp_path: Path) -> None:
    assert night.run(out) == 0
    (tmp_path / "victim").write_bytes(b"precious")
    manifest = read_manifest(out)
    for line in manifest["files"]:
        line["file"] = "../victim"
    (out / "manifest.json").write_bytes(seal("shardpress-output/1", manifest))
    for flags in ([], ["--overwrite", "--epochs", "1"]):
        assert night.run(out, *flags) == 77
    assert (tmp_path / "victim").read_bytes() == b"precious"


# -- the single file ---------------------------------------------------------------------------------------------

SINGLE = ["--single-file"]


def single(output: Path) -> tuple[bytes, list[str]]:
    """Features in the single file, and the manifest's files."""
    with h5py.File(output / "single.h5") as file:
        return file["features"][()].tobytes(), named(output)


def test_a_finished_run_writes_its_single_file_without_computing_anything(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, expected = stamps(out), open_features(out).features.compute().tobytes()
    caplog.clear()
    assert night.run(out, *SINGLE) == 0
    assert "training: an earlier run has finished it" in caplog.text
    assert {name: stamp for name, stamp in stamps(out).items() if "/" in name} == {
        name: stamp for name, stamp in before.items() if "/" in name
    }
    assert single(out) == (expected, ["model.h5", "encoder.npz", "index.h5", "report.json", "single.h5"])


@pytest.mark.parametrize("flags", [[], SINGLE], ids=["without the flag", "with the flag"])
def test_u4_with_its_single_file_a_finished_run_is_complete(night: Night, out: Path, flags: list[str]) -> None:
    assert night.run(out, *SINGLE) == 0
    watched = Watched()
    assert night.run(out, *flags, disk=watched) == 0
    assert watched.calls == []
    assert named(out)[-1] == "single.h5"


@pytest.mark.parametrize("flags", [[], SINGLE], ids=["without the flag", "with the flag"])
@pytest.mark.parametrize("how", DAMAGE)
def test_d11_a_damaged_single_file_is_made_anew(night: Night, out: Path, flags: list[str], how: str) -> None:
    assert night.run(out, *SINGLE) == 0
    expected = single(out)
    DAMAGE[how](out / "single.h5")
    assert night.run(out, *flags) == 0
    assert single(out) == expected
    assert broken_promises(out) == []


def test_d11_a_single_file_that_is_whole_is_not_written_again(night: Night, out: Path) -> None:
    assert night.run(out, *SINGLE) == 0
    before = stamps(out)["single.h5"]
    flip(out / "model.h5")
    assert night.run(out) == 0
    assert stamps(out)["single.h5"] == before
    assert broken_promises(out) == []


def test_a_single_file_of_earlier_results_goes_with_them(night: Night, out: Path) -> None:
    assert night.run(out, *SINGLE) == 0
    assert night.run(out, *OTHER, "--overwrite") == 0
    assert not (out / "single.h5").exists()
    assert night.run(out, "--overwrite", *SINGLE) == 0
    assert single(out)[0] == open_features(out).features.compute().tobytes()


@pytest.mark.parametrize("n_free", [0, 1])
def test_d7_a_single_file_needs_its_space_before_anything_is_read(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, n_free: int
) -> None:
    assert night.run(out, *SINGLE, disk=Small(2 * 935 - 1 + n_free)) == (74, 0)[n_free]
    assert ("expected 1870 at least for the features" in caplog.text) == (not n_free)


# -- other settings, other inputs --------------------------------------------------------------------------------


def test_u3_a_finished_run_is_not_replaced_without_leave(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, watched = stamps(out), Watched()
    assert night.run(out, "--epochs", "3", "--out-of-range", "clip", disk=watched) == 78
    assert "this one differs: epochs 2 -> 3; out_of_range allow -> clip. Choose another --output" in caplog.text
    assert "--overwrite (what still fits is kept) or --restart" in caplog.text
    assert watched.calls == []
    assert stamps(out) == before


def test_u3_overwriting_keeps_what_fits(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    (scan_file,) = (name for name in before if name.startswith("stages/scan"))
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite") == 0
    assert "results are replaced, since: seed 0 -> 1" in caplog.text
    assert "scan: an earlier run has finished it" in caplog.text
    assert stamps(out)[scan_file] == before[scan_file]
    assert features_of(out) == expected(*OTHER)
    assert not [name for name in before if name.startswith(("parts/", "stages/model")) and name in stamps(out)]
    assert broken_promises(out) == leftovers(out) == []


def test_u3_other_settings_of_the_encoding_keep_the_model(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    caplog.clear()
    assert night.run(out, "--out-of-range", "clip", "--overwrite") == 0
    assert "training: an earlier run has finished it" in caplog.text
    assert features_of(out) == expected()


def test_u3_restarting_begins_again(night: Night, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert night.run(out) == 0
    expected, before = features_of(out), stamps(out)
    caplog.clear()
    assert night.run(out, "--restart") == 0
    assert "beginning again" in caplog.text
    assert "an earlier run" not in caplog.text
    assert features_of(out) == expected
    assert not {name for name in before if name.startswith(("parts/", "stages/"))} & set(stamps(out))


def test_u3_an_unfinished_run_goes_on_with_other_settings_and_back(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    first = {name for name in stamps(out) if name.startswith("parts/part")}
    assert len(first) == 2
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite", disk=Stopping("commits/part", 1)) == 74
    assert "this run differs from the last one here, and does anew what that touches: seed 0 -> 1" in caplog.text
    assert "scan: an earlier run has finished it" in caplog.text
    caplog.clear()
    assert night.run(out, "--overwrite") == 0
    assert "does anew what that touches: seed 1 -> 0" in caplog.text
    assert "training: an earlier run has finished it" in caplog.text
    assert "encoding: going on, an earlier run has committed " in caplog.text
    assert first <= set(parts(out))
    assert features_of(out) == expected()
    assert leftovers(out) == []


def test_u3_a_run_that_was_to_be_replaced_is_still_complete(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    assert night.run(out, *OTHER, "--overwrite", disk=Stopping("commits/part", 2)) == 74
    assert features_of(out) == expected()
    begun = {name: stamp for name, stamp in stamps(out).items() if not name.endswith(".writing")}
    assert night.run(out) == 0
    assert stamps(out) == begun, "and the new one may go on"
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite") == 0
    assert "encoding: going on" in caplog.text
    assert features_of(out) == expected(*OTHER)


EPOCHS = [*STEPS, "--epochs", "3"]


@pytest.mark.parametrize(
    ("kind", "n_named", "kept"),
    [
        ("commits/checkpoint", 2, "a checkpoint of 0 of 2 epochs, step 2"),
        ("commits/model", 1, "trained"),
        ("commits/part", 2, "trained, 20 rows encoded"),
    ],
)
def test_u3_an_unfinished_training_is_not_thrown_away_by_a_slip_of_the_finger(
    night: Night,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    n_named: int,
    kept: str,
) -> None:
    assert night.run(out, *STEPS, disk=Stopping(kind, n_named)) == 74
    before = stamps(out)
    caplog.clear()
    assert night.run(out, *EPOCHS) == 78
    assert f"holds an unfinished run ({kept}), and this one differs: epochs 2 -> 3. Set that back" in caplog.text
    assert {name: stamp for name, stamp in before.items() if not name.endswith(".writing")} == stamps(out)
    assert night.run(out, *STEPS) == 0
    assert features_of(out) == expected()


def test_u3_an_unfinished_run_of_other_inputs_is_not_thrown_away(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    (night.shards / "0.h5").rename(night.shards / "mine.h5")
    for flags in ([], ["--overwrite"]):
        caplog.clear()
        assert night.run(out, *flags) == 78
        assert "an unfinished run of other input files (trained, 20 rows encoded): input 0.h5 is gone" in caplog.text
    assert night.run(out, "--restart") == 0
    assert features_of(out) == fresh(night)


def test_u3_a_run_that_has_only_been_scanned_or_has_diverged_is_no_loss(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/scan", 1)) == 74
    assert night.run(out, *STEPS, "--optimizer", "momentum", disk=Stopping("commits/checkpoint", 2)) == 74
    (out / "model-last-good.h5").touch()  # as a training leaves it that diverges
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert "does anew what that touches: optimizer momentum -> adam" in caplog.text
    assert features_of(out) == expected()


def test_u3_what_was_trained_after_another_training_diverged_is_not_thrown_away(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, "--optimizer", "momentum", disk=Stopping("commits/checkpoint", 2)) == 74
    (out / "model-last-good.h5").touch()  # as a training leaves it that diverges
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    os.utime(out / "model-last-good.h5", ns=(0, (out / "run.json").stat().st_mtime_ns - 1))  # however fast this was
    caplog.clear()
    assert night.run(out, *EPOCHS) == 78
    assert "holds an unfinished run (a checkpoint of " in caplog.text


def test_how_far_a_checkpoint_is_stands_in_the_last_line(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    assert "stages done: scan; a checkpoint keeps 0 of 2 epochs, step 2; 0 of 55 rows" in caplog.records[-1].message


def test_a_model_is_not_replaced_by_what_it_makes_of_other_rows(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    for model in (out, out / "model.h5"):
        for flags in ([], ["--overwrite"], ["--restart"]):
            caplog.clear()
            assert night.run(out, "--model", str(model), *flags) == 78
            assert f"output={out}: holds the model itself and what it was trained on, expected ano" in caplog.text
    assert stamps(out) == before


def touch(night: Night) -> None:
    path = night.shards / "2.h5"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite(night: Night) -> None:
    write_shard(night.shards / "2.h5", np.ones((30, 4), np.float32), riders={"y": np.arange(30)})


INPUTS: dict[str, tuple[Callable[[Night], object], str]] = {
    "touched": (touch, "input 2.h5 (changed "),
    "rewritten": (rewrite, "input 2.h5 (shape [35, 4] -> [30, 4]; n_bytes "),
    "added": (lambda night: night.add_shard("3.h5", np.zeros((5, 4), np.float32)), "input 3.h5 is new"),
    "removed": (lambda night: (night.shards / "0.h5").unlink(), "input 0.h5 is gone"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_u3_a_changed_input_of_a_finished_run_is_noticed(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, words = INPUTS[kind]
    assert night.run(out) == 0
    change(night)
    assert night.run(out) == 78
    assert words in caplog.text
    assert night.run(out, "--restart" if kind == "removed" else "--overwrite") == 0
    assert features_of(out) == fresh(night)


def test_u3_results_of_other_inputs_are_not_overwritten(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wrote `--overwrite` into a script meant results of the same files."""
    assert night.run(out) == 0
    before, watched = stamps(out), Watched()
    (night.shards / "0.h5").rename(night.shards / "mine.h5")
    for flags in ([], ["--overwrite"], ["--overwrite", "--epochs", "1"]):
        caplog.clear()
        assert night.run(out, *flags, disk=watched) == 78
        assert "holds the results of other input files: input 0.h5 is gone; input mine.h5 is new" in caplog.text
        assert "Choose another --output, or throw them away with --restart" in caplog.text
    assert watched.calls == []
    assert stamps(out) == before
    assert night.run(out, "--restart") == 0
    assert features_of(out) == fresh(night)


def test_u3_another_nights_files_of_the_same_names_are_other_inputs(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, first = stamps(out), night.shards
    night.shards = first.with_name("next night")
    night.shards.mkdir()
    for path in first.iterdir():
        (night.shards / path.name).write_bytes(path.read_bytes())
    assert night.run(out, "--overwrite") == 78
    assert f"of other input files: the inputs lie in {night.shards}, not in {first}; input 0.h5 (changed" in caplog.text
    assert stamps(out) == before


def test_a_data_set_may_be_moved(night: Night, out: Path) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    night.shards = night.shards.rename(night.shards.with_name("moved"))
    assert night.run(out) == 0
    assert stamps(out) == before
    assert night.run(out, "--epochs", "1", "--overwrite") == 0


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "removed"])
def test_u3_a_changed_input_of_an_unfinished_run_makes_everything_anew(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, words = INPUTS[kind]
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    change(night)
    caplog.clear()
    assert night.run(out) == 0
    assert "does anew what that touches" in caplog.text
    assert words in caplog.text
    assert "an earlier run" not in caplog.text
    assert features_of(out) == fresh(night)
    assert leftovers(out) == []


@pytest.mark.parametrize("n_committed", [1, 3])
@pytest.mark.parametrize(
    "flags",
    [
        *(["--threads", "3"], ["--memory-budget", "16MiB"], ["--memory-budget", "8GiB"]),
        *(["--block-rows", "4"], ["--block-rows", "12"], ["--block-rows", "1000"], ["--device-memory-budget", "0"]),
    ],
    ids=" ".join,
)
def test_u3_parts_of_other_sizes_stay_and_the_features_are_the_same(
    night: Night,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    flags: list[str],
    n_committed: int,
) -> None:
    assert night.run(out, disk=Stopping("commits/part", n_committed)) == 74
    first = {record["entry"]["file"] for record in records(out) if record["key"].startswith("part")}
    assert len(first) == n_committed
    caplog.clear()
    assert night.run(out, *flags) == 0
    assert "this run differs" not in caplog.text
    assert first <= set(parts(out))
    assert features_of(out) == expected()
    caplog.clear()
    assert night.run(out) == 0
    assert caplog.records == [] or "Already complete" in (out / "run.log").read_text()


# -- checkpoints -------------------------------------------------------------------------------------------------


def checkpoints(output: Path) -> list[Path]:
    found = [record for record in records(output) if record["key"].startswith("checkpoint")]
    return [output / record["entry"]["file"] for record in sorted(found, key=lambda record: record["key"])]


@pytest.mark.parametrize("n_steps", range(1, N_CHECKPOINTS + 1))
def test_s15_a_training_goes_on_behind_its_last_checkpoint(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, n_steps: int
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", n_steps)) == 74
    assert len(checkpoints(out)) == min(n_steps, 3)
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert f"training: going on behind step {n_steps} of an earlier run" in caplog.text
    assert features_of(out) == expected()
    assert leftovers(out) == []


@pytest.mark.parametrize("how", DAMAGE)
def test_s15_behind_a_damaged_checkpoint_the_one_before_it_is_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    damaged = checkpoints(out)[-1]
    DAMAGE[how](damaged)
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert f"file={damaged}: " in caplog.text
    assert "training: going on behind step 2 of an earlier run" in caplog.text
    assert features_of(out) == expected()


@pytest.mark.parametrize("how", DAMAGE)
def test_s15_without_a_good_checkpoint_training_starts_anew(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    for path in checkpoints(out):
        DAMAGE[how](path)
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert "going on behind" not in caplog.text
    assert features_of(out) == expected()
    assert leftovers(out) == []


@pytest.mark.parametrize("flags", [["--n-features", "1"], ["--seed", "1"], ["--optimizer", "momentum"]], ids=" ".join)
def test_s15_a_checkpoint_of_other_settings_is_not_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    caplog.clear()
    assert night.run(out, *STEPS, *flags, "--overwrite") == 0
    assert "going on behind" not in caplog.text
    assert features_of(out) == expected(*flags)


def forged(data: bytes, kind: str) -> bytes:
    """A checkpoint's file with something about it changed."""
    arrays, about = unpack(data)
    if kind == "no archive":
        return b"nothing"
    if kind == "no progress":
        return pack(arrays, {**about, "progress": {}})
    if kind == "no number of steps":
        return pack(arrays, {"progress": about["progress"]})
    changes = {
        "of another width": {"parameters/W": np.zeros((4, 3), np.float32)},
        "not finite": {"best/W": np.full((4, 2), np.nan, np.float32)},
        "of another dtype": {"state/W_velocity": np.zeros((4, 2))},
        "more arrays": {"state/more": np.zeros(2, np.float32)},
    }
    return pack({**arrays, **changes[kind]}, about)


@pytest.mark.parametrize(
    "kind",
    [
        *("no archive", "no progress", "no number of steps"),
        *("of another width", "not finite", "of another dtype", "more arrays"),
    ],
)
def test_s15_a_checkpoint_that_makes_no_sense_is_not_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    with locked(out) as ledger:
        *_, last = ledger.records("checkpoint")
        data = ledger.load(last)
        ledger.drop(last)
        entry = ledger.write("stages/checkpoint", ".npz", forged(data, kind))
        ledger.commit(Record(last.key, last.fingerprint, entry))
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert "the one before it is taken" in caplog.text
    assert "training: going on behind step 2 of an earlier run" in caplog.text
    assert features_of(out) == expected()


# -- readers -----------------------------------------------------------------------------------------------------


def test_c6_a_reader_sees_whole_results_while_runs_replace_each_other(night: Night, out: Path) -> None:
    whole = set()
    for flags in ([], OTHER):
        assert night.run(out, *flags, "--overwrite") == 0
        whole.add(open_features(out).features.compute().tobytes())
    assert len(whole) == 2
    over, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not over.is_set() and not wrong:
            before = None
            try:
                before = read_manifest(out)
                seen.add(open_features(out).features.compute().tobytes())
            except (DataError, OSError) as error:
                # A part may go while it is read, but only when the manifest names others by then.
                if read_manifest(out) == before:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        n_runs = 0
        while not wrong and (n_runs < 10 or seen != whole):
            assert night.run(out, *([], OTHER)[n_runs % 2], "--overwrite") == 0
            n_runs += 1
    finally:
        over.set()
        reader.join()
    assert wrong == []
    assert seen == whole
