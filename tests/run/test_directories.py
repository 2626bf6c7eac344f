"""Tests of output directories that a user copies, restores or partly deletes between two runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from shardpress.report.verify import verify
from shardpress.result.finished import Result
from tests.support.faulty import journal_lines
from tests.support.helpers import features_in
from tests.support.interruptions import OTHER, STEPS, FullAfter, FullDisk, flip, undisturbed_features
from tests.support.logged import resumed_step, reuses
from tests.support.protocol import edit, invalid_entries, leftovers, records, run_seen_by_readers
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def add_rows(workspace: Workspace) -> None:
    workspace.add_shard("new.h5", np.random.default_rng(5).normal(size=(9, 4)).astype(np.float32))


def is_clean(output: Path) -> bool:
    return invalid_entries(output) == leftovers(output) == []


@pytest.mark.process
def test_a_copy_is_a_result_and_the_base_of_an_append(workspace: Workspace, out: Path) -> None:
    """The index of three parts is nested, as those of many parts are."""
    assert workspace.run(out) == 0
    expected = run_seen_by_readers(out)
    before = features_in(out)
    copy = shutil.copytree(out, out.parent / "elsewhere" / "copy")
    shutil.rmtree(out)
    assert run_seen_by_readers(copy) == expected
    add_rows(workspace)
    assert workspace.run(copy, "--append") == 0
    np.testing.assert_array_equal(features_in(copy)[: len(before)], before)
    assert len(features_in(copy)) == len(before) + 9
    assert is_clean(copy)


def test_a_restored_index_is_repaired_by_its_command(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    """The parts of a replaced result are gone, and the model is in the index."""
    assert workspace.run(out) == 0
    shutil.copy(out / "index.h5", tmp_path / "backup.h5")
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    shutil.copy(tmp_path / "backup.h5", out / "index.h5")
    assert verify(str(out), 4).faults
    assert workspace.run(out) == 0
    assert features_of(out) == undisturbed_features(workspace)
    assert run_seen_by_readers(out) is not None
    assert is_clean(out)


def test_deleting_work_keeps_the_result(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert workspace.run(out, *OTHER) == 0
    before = run_seen_by_readers(out)
    assert workspace.run(out, "--overwrite", disk=FullDisk("parts/part", 2)) == 74
    shutil.rmtree(out / "work")
    assert run_seen_by_readers(out) == before
    caplog.clear()
    assert workspace.run(out, "--overwrite") == 0
    assert not reuses(caplog.text, "training")
    assert is_clean(out)
    first = out.with_name("first")  # a first run is discarded only with --restart
    assert workspace.run(first, disk=FullDisk("parts/part", 2)) == 74
    shutil.rmtree(first / "work")
    assert workspace.run(first) == 65
    assert workspace.run(first, "--restart") == 0
    assert features_of(first) == undisturbed_features(workspace)
    assert is_clean(first)


# -- interrupted runs ----------------------------------------------------------------------------------------------


def test_a_run_that_stops_right_after_its_commit_is_complete(workspace: Workspace, out: Path) -> None:
    """The disk is full, so that neither the new journal nor the report can be written."""
    assert workspace.run(out, *OTHER) == 0
    assert workspace.run(out, "--overwrite", disk=FullDisk("out/index.h5", 1)) == 74
    assert features_of(out) == undisturbed_features(workspace)
    assert records(out) == []
    before = (out / "index.h5").read_bytes()
    assert workspace.run(out) == 0
    assert (out / "index.h5").read_bytes() == before
    assert is_clean(out)
    assert Result.open(out).digest in (out / "report.html").read_text()


def test_extending_after_an_interrupted_restart_keeps_the_result(workspace: Workspace, out: Path) -> None:
    """Otherwise generations would be lost that the user has never discarded."""
    assert workspace.run(out, "--seed", "2") == 0
    assert workspace.run(out, *OTHER, "--retrain") == 0
    before = features_in(out)
    assert workspace.run(out, *STEPS, "--restart", disk=FullDisk("parts/part", 2)) == 74
    add_rows(workspace)
    assert workspace.run(out, "--append") == 0
    assert Result.open(out).facts.model.generation == 2
    np.testing.assert_array_equal(features_in(out)[: len(before)], before)
    assert (out / "generation-1.h5").exists()
    assert is_clean(out)


def test_a_restart_over_a_damaged_index_makes_progress(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With --restart, each attempt would start from nothing."""
    assert workspace.run(out, *OTHER) == 0
    flip(out / "index.h5")
    assert workspace.run(out) == 65
    assert workspace.run(out, *STEPS, "--restart", disk=FullDisk("work/checkpoint", 2)) == 74
    assert journal_lines((out / "work/journal.jsonl").read_bytes())[0]["restarts"]
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    assert resumed_step(caplog.text) is not None
    assert features_of(out) == undisturbed_features(workspace)
    assert is_clean(out)


def test_files_are_compared_with_those_of_the_finished_run(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    """An interrupted run has stored the digest of an edited file, but the result has features of the earlier rows."""
    assert workspace.run(out) == 0
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, "--overwrite", *OTHER, disk=FullAfter("part", 4)) == 74
    assert workspace.run(out) == 78, "the finished run had other rows"
    assert workspace.run(out, "--append") == 0
    assert workspace.run(tmp_path / "fresh", "--model", str(out)) == 0
    np.testing.assert_array_equal(features_in(out), features_in(tmp_path / "fresh"))
    assert is_clean(out)


def test_an_unfinished_run_survives_a_look_at_the_finished_one(workspace: Workspace, out: Path) -> None:
    """A user repeats the command of the finished run while another one is unfinished. An append discards it."""
    assert workspace.run(out) == 0
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullDisk("parts/part", 2)) == 74
    unfinished = records(out)
    assert workspace.run(out) == 0
    assert records(out) == unfinished
    add_rows(workspace)
    assert workspace.run(out, "--append") == 0
    assert records(out) == []
    assert is_clean(out)


def test_an_overwrite_after_an_append_of_edited_rows_trains_again(workspace: Workspace, out: Path) -> None:
    """The edited file has its earlier size and modification time, so that the model seems to fit."""
    assert workspace.run(out) == 0
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, "--append") == 0
    assert workspace.run(out, "--overwrite") == 0
    assert features_of(out) == undisturbed_features(workspace)
