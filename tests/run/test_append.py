"""Tests of ``--append``: only new and changed files are encoded, and the results change in one commit."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.result.features import open_features
from shardpress.result.finished import Result
from tests.support.bad_shards import errors
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.standin import Workspace, install

SKIP = ("--on-bad-data", "skip", "--max-bad", "50%")


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a data set to which tests append files."""
    install(monkeypatch)
    return Workspace(tmp_path, 20, 9, 15)


@pytest.fixture
def finished(growing: Workspace, out: Path) -> Path:
    """Return the output directory of a finished run over the data set `growing`."""
    assert growing.run(out) == 0
    return out


def add(runs: Workspace, name: str, n_rows: int = 7) -> Path:
    """Write another file, or replace one."""
    return runs.add_shard(name, np.random.default_rng(1).normal(size=(n_rows, 4)).astype(np.float32))


def write(path: Path, n_inputs: int = 4, **extras: object) -> None:
    """Write a file of six rows with other columns or extras."""
    write_shard(path, np.random.default_rng(2).normal(size=(6, n_inputs)).astype(np.float32), extras=extras)


def ids_of(output: Path) -> list[int]:
    """Return the number of the append of each row."""
    found: list[int] = open_features(output).extras["append_id"].compute().tolist()
    return found


def names_of_bad_shards(output: Path) -> list[str]:
    return [Path(bad.file).name for bad in Result.open(output).facts.rows.bad_shards]


def test_a_file_that_was_left_out_before_is_no_warning(growing: Workspace, out: Path) -> None:
    (growing.shards / "y-bad.h5").write_bytes(b"no HDF5 file")
    assert growing.run(out, *SKIP) == 0
    assert files_in_warnings(out) == {"y-bad.h5"}
    add(growing, "z-0.h5")
    assert growing.run(out, "--append", *SKIP) == 0
    assert names_of_bad_shards(out) == ["y-bad.h5"]
    assert files_in_warnings(out) == set()
    (growing.shards / "z-bad.h5").write_bytes(b"no HDF5 file")
    add(growing, "z-1.h5")
    assert growing.run(out, "--append", *SKIP) == 0
    assert files_in_warnings(out) == {"z-bad.h5"}


def test_folders_that_no_earlier_run_searched_are_named(
    growing: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert growing.run(out) == 0
    add(growing, "z-0.h5")
    for name in ("z/1.h5", "z/2.h5"):
        (growing.shards / "z").mkdir(exist_ok=True)
        growing.add_shard(name, np.full((7, 4), int(name[2]), np.float32))
    caplog.clear()
    assert growing.run(out, "--append") == 0
    assert open_features(out).features.shape[0] == 44 + 3 * 7
    assert mentions(caplog.text, growing.shards / "z", "2 files")
    assert growing.run(out, "--append") == 0
    assert caplog.text.count(f"{growing.shards / 'z'} (2 files)") == 1


def files_in_warnings(output: Path) -> set[str]:
    """Return the names of the bad files that the warnings of a run name."""
    warnings = Result.open(output).facts.details.warnings.first
    return set(re.findall(r"[yz]-bad\.h5", " ".join(warnings)))


# -- settings of the finished run ----------------------------------------------------------------------------------


@pytest.mark.process
def test_other_settings_and_missing_results_are_refused(growing: Workspace, finished: Path) -> None:
    add(growing, "3.h5")
    empty = growing.folder / "empty"
    assert growing.run(empty, "--append") == 66
    assert not empty.exists()
    other = growing.folder / "other"
    assert growing.run(other, "--seed", "1") == 0
    before = stamps(finished)
    for flags in (
        ["--seed", "1"],
        ["--storage-dtype", "float16"],
        ["--overwrite"],
        ["--model", str(other)],
        ["--orientation", "columns"],
    ):
        assert growing.run(finished, "--append", *flags) in (64, 78)
    assert stamps(finished) == before
    assert growing.run(finished, "--append", "--orientation", "rows") == 0


# -- extras --------------------------------------------------------------------------------------------------------


def test_an_extra_keeps_the_path_of_its_values(growing: Workspace, out: Path) -> None:
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["a/label"] = np.zeros(len(file["X"]))
            file["b/label"] = np.ones(len(file["X"]))
    assert growing.run(out, "--include", "a/label") == 0
    before = stamps(out)

    assert growing.run(out, "--append", "--include", "b/label") == 78
    assert stamps(out) == before


def test_no_run_without_a_flag_removes_an_extra(growing: Workspace, out: Path) -> None:
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["obs/z"] = file["y"][()] + 1
    assert growing.run(out) == 0
    assert growing.run(out, "--append", "--include", "obs/z") == 0
    recording = RecordingDisk()
    for flags in (["--append"], ["--include", "obs/z"]):
        assert growing.run(out, *flags, disk=recording) == 0
    assert recording.calls == []
    extras = open_features(out).extras
    np.testing.assert_array_equal(extras["z"].compute(), extras["y"].compute() + 1)
    assert growing.run(out) == 78
    assert growing.run(out, "--append", "--include", "obs/nothing") == 65
    assert growing.run(out, "--overwrite") == 0
    assert set(open_features(out).extras) == {"y"}


@pytest.mark.slow
def test_rows_without_a_value_stay_marked(growing: Workspace, out: Path) -> None:
    write(growing.shards / "2.h5")  # without labels
    assert growing.run(out) == 0
    add(growing, "3.h5", n_rows=2)
    write(growing.shards / "4.h5")
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["obs/z"] = np.arange(9)
    assert growing.run(out, "--append", "--include", "obs/z") == 0
    extras = open_features(out).extras
    assert extras["y_present"].compute().tolist() == [True] * 29 + [False] * 6 + [True] * 2 + [False] * 6
    assert extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 14
    assert extras["z"].compute()[20:29].tolist() == list(range(9))


# -- files that are missing or bad ---------------------------------------------------------------------------------


def test_missing_files_are_an_error_unless_their_rows_are_dropped(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = stamps(finished)
    part = parts(finished)[0]
    gone = growing.shards / "0.h5"
    gone.rename(growing.folder / "0.h5")
    for flags, code in (([], 78), (["--append"], 66)):
        caplog.clear()
        assert growing.run(finished, *flags) == code
        for way in ("--drop-missing", f"--model {finished} ", f"open_features(['{finished}', "):
            assert way in errors(caplog)
    assert stamps(finished) == before
    assert growing.run(finished, "--append", "--drop-missing") == 0
    assert len(open_features(finished).features) == 24
    assert not (finished / part).exists()
    (growing.folder / "0.h5").rename(gone)  # a file that returns is new
    assert growing.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 24 + [2] * 20


def test_a_bad_new_file_is_recorded_once_until_it_is_repaired(growing: Workspace, out: Path) -> None:
    assert growing.run(out, *SKIP) == 0
    before = parts(out)
    (growing.shards / "3.h5").write_bytes(b"bad")
    assert growing.run(out, "--append", *SKIP) == 0
    assert parts(out) == before
    assert names_of_bad_shards(out) == ["3.h5"]
    assert Result.open(out).facts.appends == []
    recording = RecordingDisk()
    assert growing.run(out, "--append", *SKIP, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out, "--append", "--on-bad-data", "skip", "--max-bad", "0") == 65
    add(growing, "3.h5", n_rows=5)
    assert growing.run(out, "--append", *SKIP) == 0
    assert names_of_bad_shards(out) == []
    assert ids_of(out) == [0] * 44 + [1] * 5


def test_damaged_files_are_named_with_flags_that_continue(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(growing.shards / "0.h5", n_inputs=5)  # the first file does not decide on the number of columns
    truncated = add(growing, "3.h5")
    truncated.write_bytes(truncated.read_bytes()[:-100])
    (growing.shards / "4.h5").write_bytes(b"bad")
    add(growing, "5.h5")
    add(growing, "6.h5", n_rows=0)
    write(growing.shards / "7.h5")  # lacks the extra y
    write(growing.shards / "8.h5", y=np.arange(6.0))  # not of the dtype of y
    before = stamps(finished)
    assert growing.run(finished, "--append") == 65
    message = errors(caplog)
    assert mentions(message, "5 of 9 files", "0.h5", "3.h5", "4.h5", "7.h5", "8.h5")
    assert stamps(finished) == before
    (flags,) = re.findall(r"--on-bad-data skip --max-bad \d+%", message)
    assert growing.run(finished, "--append", *flags.split()) == 0
    assert ids_of(finished) == [0] * 44 + [1] * 7
    assert names_of_bad_shards(finished) == ["3.h5", "4.h5", "7.h5", "8.h5"]


@pytest.mark.slow
def test_rows_of_damaged_files_stay_until_they_are_dropped(growing: Workspace, finished: Path) -> None:
    skip = ("--on-bad-data", "skip")  # no limit refers to these files
    before = open_features(finished).features.compute()
    (growing.shards / "0.h5").write_bytes(b"bad")
    (growing.shards / "2.h5").write_bytes(b"bad")
    add(growing, "3.h5")
    assert growing.run(finished, "--append", "--drop-missing") == 65
    assert growing.run(finished, "--append", "--drop-missing", *skip) == 0
    np.testing.assert_array_equal(open_features(finished).features.compute()[:44], before)
    published = stamps(finished)
    assert growing.run(finished, "--overwrite", "--seed", "1", *SKIP) == 65, "all rows would be encoded again"
    assert stamps(finished) == published
    (growing.shards / "0.h5").unlink()
    assert growing.run(finished, "--append", *skip, "--drop-missing") == 0
    np.testing.assert_array_equal(open_features(finished).features.compute()[:24], before[20:])
