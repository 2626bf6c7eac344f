"""Tests of ``--append``: extras that are added to finished results, whose features stay the same."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.result import Result
from shardpress.run.digests import digests_of_rows
from shardpress.shards.open import open_shards
from tests.support.appends import N_ROWS, add, add_extra, ids_of
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow


# -- labels that are added later -----------------------------------------------------------------------------------


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
    assert growing.run(out) == 78
    assert mentions((out / "run.log").read_text(), "--append")
    assert growing.run(out, "--append") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.features.dtype == before.dtype
    assert [part.max_error for part in Result.open(out).parts] == errors
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert ids_of(out) == [0] * 44
    assert Result.open(out).facts.appends[-1]["n_same"] == 3
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
    assert growing.run(out, *flags, "--include", "obs/z") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert set(opened.extras) == {"y", "z", "append_id"}
    recording = RecordingDisk()
    for again in (["--append"], ["--append", "--include", "obs/z"], ["--include", "obs/z"]):  # append keeps the extra
        assert growing.run(out, *again, disk=recording) == 0
    assert recording.calls == []


def test_extras_of_appended_files_can_be_included_later(growing: Workspace, finished: Path) -> None:
    add(growing, "0-before-others.h5", n_rows=3)
    assert growing.run(finished, "--append") == 0
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["obs/z"] = np.full(len(file["X"]), len(file["X"]))
    before = open_features(finished).features.compute()
    assert growing.run(finished, "--append") == 0  # the rows are the same
    assert growing.run(finished, "--include", "obs/z") == 0
    opened = open_features(finished)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.extras["z"].compute().tolist() == [20] * 20 + [9] * 9 + [15] * 15 + [3] * 3
    assert growing.run(finished, "--include", "obs/z") == 78  # would train on all rows


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
def test_an_unreadable_file_is_left_out_when_extras_are_added(growing: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%", "--verify", "sizes")
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    assert growing.run(out, *flags) == 0
    damaged = growing.shards / "1.h5"
    status = damaged.stat()
    damaged.write_bytes(bytes(status.st_size))
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))  # the file seems to be unchanged
    add(growing, "3.h5", n_rows=4)
    add_extra(growing.shards / "3.h5", "obs/z", np.full(4, 3))
    assert growing.run(out, "--append", "--include", "obs/z", *flags) == 0
    opened = open_features(out)
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [2] * 15 + [3] * 4
    facts = Result.open(out).facts.appends[-1]
    assert (facts["n_new"], facts["n_same"], facts["n_dropped"], facts["n_rows"]) == (1, 2, 1, 4)
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
    assert (facts["n_same"], facts["n_changed"], facts["n_rows"]) == (2, 1, 9)


def test_bad_rows_stay_when_labels_are_added(growing: Workspace, out: Path) -> None:
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["X"][4, 2] = np.nan
    assert growing.run(out, "--on-bad-data", "skip", "--max-bad", "1") == 0
    lines = (out / "bad_rows.jsonl").read_text()
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert growing.run(out, "--append") == 0
    assert (out / "bad_rows.jsonl").read_text() == lines
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [24]


def test_a_damaged_part_is_encoded_again_with_new_labels(growing: Workspace, finished: Path) -> None:
    expected = open_features(finished).features.compute()
    (finished / parts(finished)[0]).write_bytes(b"damaged")
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert growing.run(finished, "--append") == 0
    np.testing.assert_array_equal(open_features(finished).features.compute(), expected)
    assert Result.open(finished).facts.appends[-1]["n_same"] == 2


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 4)}, {"chunks": (5, 2), "compression": "gzip"}])
def test_the_digest_of_rows_ignores_other_datasets(tmp_path: Path, options: dict[str, object]) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    path = tmp_path / "0.h5"
    write_shard(path, rows, **options)
    (before,) = digests_of_rows(open_shards([str(path)]), 1)
    assert before is not None
    add_extra(path, "y", np.arange(20))
    assert digests_of_rows(open_shards([str(path)]), 1) == [before]
    with h5py.File(path, "r+") as file:
        file["X"][7, 2] += 1
    assert digests_of_rows(open_shards([str(path)]), 1) != [before]
    with h5py.File(path, "r+") as file:
        file["X"][7] = rows[7]
        del file["X"]
        file.create_dataset("X", data=rows.reshape(10, 8), **({} if not options else {"chunks": (5, 4)}))
    assert digests_of_rows(open_shards([str(path)], "X"), 1) != [before]
