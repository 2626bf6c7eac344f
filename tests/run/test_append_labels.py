"""Tests of ``--append``: extras that are added to finished results, whose features stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.result import Result
from tests.support.appends import N_ROWS, add, add_extra, ids_of, write
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, results, stamps
from tests.support.logged import mentions
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow


@pytest.mark.process
@pytest.mark.parametrize("storage", [[], ["--storage-dtype", "float16"], ["--compression", "gzip"]])
def test_labels_written_into_the_files_do_not_change_features(
    growing: Workspace, out: Path, storage: list[str]
) -> None:
    assert growing.run(out, *storage) == 0
    before = open_features(out).features.compute()
    errors = [part.max_error for part in Result.open(out).parts]
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.full(N_ROWS[number], number))
    assert growing.run(out, *storage) == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.features.dtype == before.dtype
    assert [part.max_error for part in Result.open(out).parts] == errors
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert Result.open(out).facts.appends == []
    assert run_seen_by_readers(out) is not None
    assert invalid_entries(out) == leftovers(out) == []
    recording = RecordingDisk()
    assert growing.run(out, "--append", disk=recording) == 0
    assert recording.calls == []


@pytest.mark.process
@pytest.mark.parametrize("flags", [["--append"], []], ids=["append", "plain"])
def test_extras_can_be_included_later(growing: Workspace, out: Path, flags: list[str]) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    assert growing.run(out) == 0
    before = open_features(out).features.compute()
    use = Result.open(out).use()
    assert growing.run(out, *flags, "--include", "obs/z") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    np.testing.assert_array_equal(opened.result.use(), use)
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert set(opened.extras) == {"y", "z"}
    recording = RecordingDisk()
    for again in (["--append"], ["--append", "--include", "obs/z"], ["--include", "obs/z"]):  # append keeps the extra
        assert growing.run(out, *again, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out) == 78  # it would remove the extra


def test_no_run_without_a_flag_removes_extras(growing: Workspace, out: Path) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
        add_extra(path, "obs/late", np.full(N_ROWS[number], number))
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


def test_extras_of_appended_files_can_be_included_later(growing: Workspace, finished: Path) -> None:
    add(growing, "0-before-others.h5", n_rows=3)
    assert growing.run(finished, "--append") == 0
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["obs/z"] = np.full(len(file["X"]), len(file["X"]))
    before = open_features(finished).features.compute()
    assert growing.run(finished, "--include", "obs/z") == 78  # would train on all rows
    assert growing.run(finished, "--append", "--include", "obs/z") == 0
    opened = open_features(finished)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.extras["z"].compute().tolist() == [20] * 20 + [9] * 9 + [15] * 15 + [3] * 3
    assert ids_of(finished) == [0] * 44 + [1] * 3
    assert len(opened.result.facts.appends) == 1


@pytest.mark.parametrize("change", ["rows", "file"])
def test_changed_rows_are_not_encoded_without_append(growing: Workspace, finished: Path, change: str) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    if change == "rows":
        add(growing, "1.h5", n_rows=N_ROWS[1], seed=5)
    else:
        add(growing, "3.h5")
    before = stamps(finished)
    assert growing.run(finished, "--include", "y") == 78
    assert mentions((finished / "run.log").read_text(), "--append")
    assert stamps(finished) == before
    assert growing.plan(finished, "--include", "y").problems[0]["exit_code"] == 78


def test_plan_recognizes_that_only_extras_are_added(growing: Workspace, out: Path) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    assert growing.run(out) == 0
    found = growing.plan(out, "--include", "obs/z")
    assert found.problems == []
    assert {stage.name for stage in found.stages} == {"start", "encoding", "report"}


@pytest.mark.process
def test_an_extra_that_does_not_exist_is_refused(growing: Workspace, finished: Path) -> None:
    before = stamps(finished)
    assert growing.run(finished, "--append", "--include", "obs/nothing") == 65
    assert stamps(finished) == before


@pytest.mark.process
def test_features_of_a_file_that_became_unreadable_are_not_lost(
    growing: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%")
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    assert growing.run(out, *flags) == 0
    before = open_features(out).features.compute()
    (growing.shards / "1.h5").write_bytes(b"damaged")
    add(growing, "3.h5", n_rows=4)
    add_extra(growing.shards / "3.h5", "obs/z", np.full(4, 3))
    assert growing.run(out, "--append", *flags) == 0
    assert mentions(caplog.text, "1.h5")
    np.testing.assert_array_equal(open_features(out).features.compute()[:44], before)
    assert Result.open(out).facts.bad_shards == []

    before_include = stamps(out)
    assert growing.run(out, "--append", "--include", "obs/z", *flags) == 65  # all rows would be encoded again
    assert growing.run(out, "--overwrite", "--seed", "1", *flags) == 65
    assert stamps(out) == before_include
    (growing.shards / "1.h5").unlink()
    assert growing.run(out, "--append", "--drop-missing", "--include", "obs/z", *flags) == 0
    assert open_features(out).extras["z"].compute().tolist() == [0] * 20 + [2] * 15 + [3] * 4
    facts = Result.open(out).facts.appends[-1]
    assert (facts["n_new"], facts["n_changed"], facts["n_dropped"], facts["n_rows"]) == (0, 0, 1, 0)
    assert run_seen_by_readers(out) is not None


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


def test_changed_rows_are_encoded_again_despite_new_labels(growing: Workspace, finished: Path) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["X"][0, 0] += 1
    before = open_features(finished).features.compute()
    assert growing.run(finished, "--append") == 0
    after = open_features(finished).features.compute()
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [20]
    assert ids_of(finished) == [0] * 20 + [1] * 9 + [0] * 15
    facts = Result.open(finished).facts.appends[-1]
    assert (facts["n_new"], facts["n_changed"], facts["n_rows"]) == (0, 1, 9)


def test_bad_rows_stay_when_labels_are_added(growing: Workspace, out: Path) -> None:
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["X"][4, 2] = np.nan
    flags = ("--on-bad-data", "skip", "--max-bad", "1")
    assert growing.run(out, *flags) == 0
    lines = (out / "bad_rows.jsonl").read_text()
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert growing.run(out, *flags) == 0
    assert (out / "bad_rows.jsonl").read_text() == lines
    assert open_features(out).extras["z"].compute().tolist() == [*range(20), *range(9), *range(15)]
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [24]


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


def test_a_damaged_part_is_encoded_again_with_new_labels(growing: Workspace, finished: Path) -> None:
    expected = open_features(finished).features.compute()
    (finished / parts(finished)[0]).write_bytes(b"damaged")
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert growing.run(finished) == 0
    np.testing.assert_array_equal(open_features(finished).features.compute(), expected)
    assert open_features(finished).extras["z"].compute().tolist() == [*range(20), *range(9), *range(15)]


@pytest.mark.parametrize("options", [{"chunks": (4, 4)}, {"chunks": (5, 2), "compression": "gzip", "shuffle": True}])
def test_rows_that_are_stored_in_another_way_are_the_same(
    growing: Workspace, finished: Path, options: dict[str, Any]
) -> None:
    before = results(stamps(finished))
    with h5py.File(growing.shards / "0.h5", "r+") as file:
        rows = file["X"][()]
        del file["X"]
        file.create_dataset("X", data=rows, **options)
    assert growing.run(finished) == 0
    assert results(stamps(finished)) == before
