"""Tests of ``--append``: extras that are added to finished results, whose features stay the same."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.result import Result
from tests.support.appends import N_ROWS, add, add_extra, write
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import stamps
from tests.support.logged import mentions
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow


def add_to_all(runs: Workspace, name: str) -> list[int]:
    """Write an extra, the number of the file, into each file of the first run. Return its values."""
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, name, np.full(N_ROWS[number], number))
    return [0] * 20 + [1] * 9 + [2] * 15


@pytest.mark.process
def test_extras_can_be_included_later(growing: Workspace, out: Path) -> None:
    values = add_to_all(growing, "obs/z")
    assert growing.run(out) == 0
    before = open_features(out).features.compute()
    use = Result.open(out).use()
    plan = growing.plan(out, "--include", "obs/z")
    assert plan.problems == []
    assert {stage.name for stage in plan.stages} == {"start", "encoding", "report"}
    assert growing.run(out, "--include", "obs/z") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    np.testing.assert_array_equal(opened.result.use(), use)
    assert opened.extras["z"].compute().tolist() == values
    recording = RecordingDisk()
    for again in (["--append"], ["--append", "--include", "obs/z"], ["--include", "obs/z"]):  # append keeps the extra
        assert growing.run(out, *again, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out, "--append", "--include", "obs/nothing") == 65
    add(growing, "1.h5", n_rows=N_ROWS[1], seed=5)
    assert growing.run(out, "--include", "obs/z") == 78, "changed rows are not encoded without --append"


def test_no_run_without_a_flag_removes_extras(growing: Workspace, out: Path) -> None:
    add_to_all(growing, "obs/z")
    add_to_all(growing, "obs/late")
    assert growing.run(out, "--include", "obs/z") == 0
    assert growing.run(out) == 78
    assert growing.run(out, "--include", "obs/late") == 78
    assert growing.run(out, "--append") == 0
    write(growing.shards / "3.h5", y=np.array([b"text"] * 6), **{"obs/z": np.arange(6), "obs/late": np.arange(6)})
    assert growing.run(out, "--append", "--include", "obs/late") == 65  # no dtype holds all values of y
    assert set(open_features(out).extras) == {"y", "z"}
    (growing.shards / "3.h5").unlink()
    assert growing.run(out, "--overwrite") == 0
    assert set(open_features(out).extras) == {"y"}


@pytest.mark.process
def test_labels_of_some_files_are_added_with_a_mask(growing: Workspace, finished: Path) -> None:
    add_extra(growing.shards / "1.h5", "obs/z", np.arange(9))
    assert growing.run(finished, "--append", "--include", "obs/z") == 0
    opened = open_features(finished)
    assert opened.extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 15
    assert opened.extras["z"].compute()[20:29].tolist() == list(range(9))
    add(growing, "3.h5", n_rows=2)  # without the extra
    assert growing.run(finished, "--append") == 0
    assert open_features(finished).extras["z_present"].compute().tolist()[-2:] == [False, False]


def test_bad_rows_of_a_file_with_corrected_labels_are_no_new_ones(growing: Workspace, out: Path) -> None:
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["X"][4, 2] = np.nan
    flags = ("--on-bad-data", "skip", "--max-bad", "5%")
    assert growing.run(out, *flags) == 0
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["y"][2] = 70
    assert growing.run(out, "--append", *flags) == 0  # the row is one of nine in this file
    opened = open_features(out)
    assert opened.extras["y"].compute()[22] == 70
    assert np.flatnonzero(~opened.valid.compute()).tolist() == [24]
    assert Result.open(out).facts.appends == []


@pytest.mark.process
def test_features_of_a_file_that_became_unreadable_are_not_lost(
    growing: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%")
    add_to_all(growing, "obs/z")
    assert growing.run(out, *flags) == 0
    before = open_features(out).features.compute()
    (growing.shards / "1.h5").write_bytes(b"damaged")
    add_extra(add(growing, "3.h5", n_rows=4), "obs/z", np.full(4, 3))
    assert growing.run(out, "--append", *flags) == 0
    assert mentions(caplog.text, "1.h5")
    np.testing.assert_array_equal(open_features(out).features.compute()[:44], before)
    assert Result.open(out).facts.bad_shards == []
    published = stamps(out)
    assert growing.run(out, "--append", "--include", "obs/z", *flags) == 65  # all rows would be encoded again
    assert growing.run(out, "--overwrite", "--seed", "1", *flags) == 65
    assert stamps(out) == published
    (growing.shards / "1.h5").unlink()
    assert growing.run(out, "--append", "--drop-missing", "--include", "obs/z", *flags) == 0
    assert open_features(out).extras["z"].compute().tolist() == [0] * 20 + [2] * 15 + [3] * 4
    facts = Result.open(out).facts.appends[-1]
    assert (facts["n_new"], facts["n_changed"], facts["n_dropped"], facts["n_rows"]) == (0, 0, 1, 0)
