"""Tests of ``--append``: only new and changed files are encoded, and the results change in one commit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.result import INDEX, Result, Use
from tests.support.appends import add, add_extra, ids_of, write
from tests.support.bad_shards import errors
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.standin import Workspace

SKIP = ("--on-bad-data", "skip", "--max-bad", "50%")


def names_of_bad_shards(output: Path) -> list[str]:
    return [Path(bad["file"]).name for bad in Result.open(output).facts.bad_shards]


@pytest.mark.process
def test_features_of_each_append_can_be_opened_by_its_number(growing: Workspace, finished: Path) -> None:
    """Readers of an earlier result keep theirs."""
    opened = open_features(finished)
    before = stamps(finished / "parts")
    add(growing, "90.h5", n_rows=1)
    assert growing.run(finished, "--append", "--threads", "3") == 0
    add(growing, "9.h5", n_rows=2)  # sorts before the other one
    assert growing.run(finished, "--append") == 0
    assert before.items() <= stamps(finished / "parts").items()
    ids = np.array([0] * 44 + [1] + [2] * 2)
    assert ids_of(finished) == ids.tolist()
    features = open_features(finished).features.compute()
    np.testing.assert_array_equal(opened.features.compute(), features[ids == 0])
    for chosen in (0, [0, 2], (1, 2)):
        some = open_features(finished, appends=chosen)
        np.testing.assert_array_equal(some.features.compute(), features[np.isin(ids, chosen)])
    with pytest.raises(DataError, match="appends"):
        open_features(finished, appends=3)


# -- settings of the finished run ----------------------------------------------------------------------------------


def test_other_settings_are_refused(growing: Workspace, finished: Path) -> None:
    add(growing, "3.h5")
    before = stamps(finished)
    for flags in (["--seed", "1"], ["--storage-dtype", "float16"], ["--overwrite"]):
        assert growing.run(finished, "--append", *flags) in (64, 78)
    assert stamps(finished) == before


@pytest.mark.process
def test_results_of_a_given_model_are_extended_with_no_other_model(growing: Workspace, finished: Path) -> None:
    other = growing.folder / "other"
    again = growing.folder / "again"
    assert growing.run(other, "--seed", "1") == 0
    assert growing.run(again, "--model", str(finished)) == 0
    add(growing, "3.h5")
    assert growing.run(again, "--append", "--model", str(other)) == 78
    assert growing.run(again, "--append", "--model", str(shutil.copy(finished / INDEX, growing.folder))) == 0
    assert ids_of(again) == [0] * 44 + [1] * 7
    assert (Result.open(again).use() == Use.TRAINING).all()  # the rows of the training are unknown


def test_a_directory_without_a_finished_run_is_refused(growing: Workspace, out: Path) -> None:
    assert growing.run(out, "--append") == 66
    assert not out.exists()
    out.mkdir()
    assert growing.run(out, "--append") == 66
    assert list(out.iterdir()) == []


# -- extras --------------------------------------------------------------------------------------------------------


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
    add_extra(growing.shards / "1.h5", "obs/z", np.arange(9))
    assert growing.run(out, "--append", "--include", "obs/z") == 0
    extras = open_features(out).extras
    assert extras["y_present"].compute().tolist() == [True] * 29 + [False] * 6 + [True] * 2 + [False] * 6
    assert extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 14
    assert extras["z"].compute()[20:29].tolist() == list(range(9))


# -- files that are missing or bad ---------------------------------------------------------------------------------


def test_missing_files_are_an_error_unless_their_rows_are_dropped(growing: Workspace, finished: Path) -> None:
    before = stamps(finished)
    part = parts(finished)[0]
    gone = growing.shards / "0.h5"
    gone.rename(growing.folder / "0.h5")
    assert growing.run(finished) == 78
    assert growing.run(finished, "--append") == 66
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
