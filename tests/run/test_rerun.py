"""Tests of repeating a command: a finished run is complete, and only damaged results are recomputed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.sealed import FORMAT
from shardpress.output.journal import Journal
from shardpress.result.finished import INDEX, Result
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import DAMAGE, FullAfter, flip, parts, stamps, undisturbed_features
from tests.support.logged import mentions, reuses_anything
from tests.support.protocol import invalid_entries, leftovers
from tests.support.standin import Workspace, features_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damage"),
    [("work/scan-*", "deleted"), ("work/model-*", "truncated"), ("parts/*", "flipped")],
)
def test_damaged_files_of_an_unfinished_run_are_recomputed(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, pattern: str, damage: str
) -> None:
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    damaged = min(out.glob(pattern))
    DAMAGE[damage](damaged)
    caplog.clear()
    assert workspace.run(out) == 0
    assert f"file={damaged}: " in caplog.text
    assert features_of(out) == undisturbed_features(workspace)
    assert invalid_entries(out) == leftovers(out) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_only_replaced_by_a_restart(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    assert workspace.run(out) == 0
    expected = features_of(out)
    DAMAGE[damage](out / INDEX)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--retrain"]):
        assert workspace.run(out, *flags) == 65, flags
    assert workspace.run(out, "--append") == (66 if damage == "deleted" else 65)
    assert stamps(out) == before
    caplog.clear()
    assert workspace.run(out, "--restart") == 0
    assert not reuses_anything(caplog.text)
    assert features_of(out) == expected
    assert invalid_entries(out) == leftovers(out) == []


@pytest.mark.parametrize("flags", [["--append"], ["--retrain"], ["--overwrite", "--row-error"]])
def test_the_result_that_a_run_commits_is_the_one_in_the_file(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """Its tables are not read again, so what the run knows must be what a reader finds."""
    assert workspace.run(out) == 0
    results: list[Result] = []
    commit = Journal.commit

    def commit_and_keep(*arguments: Any, **keywords: Any) -> Result:
        results.append(commit(*arguments, **keywords))
        return results[-1]

    monkeypatch.setattr(Journal, "commit", commit_and_keep)
    workspace.add_shard("later.h5", np.ones((7, 4), np.float32))
    assert workspace.run(out, *flags) == 0
    (committed,) = results
    found = Result.open(out)
    assert (committed.path, committed.data) == (found.path, found.data)
    assert committed.facts == found.facts
    assert committed.parts == found.parts


def test_a_derived_file_is_written_again_and_nothing_else(workspace: Workspace, out: Path) -> None:
    skip = ("--on-bad-data", "skip", "--max-bad", "9")
    with h5py.File(workspace.shards / "0.h5", "r+") as file:
        file["X"][3] = np.nan
    assert workspace.run(out, *skip) == 0
    before = stamps(out)
    for name in ("report.html", "bad_rows.jsonl"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(b"of another run\n")
        recording = RecordingDisk()
        assert workspace.run(out, *skip, disk=recording) == 0
        assert [argument for call, argument in recording.calls if call == "replace"] == [out / name]
        assert (out / name).read_bytes() == content
        before[name] = stamps(out)[name]
        assert stamps(out) == before


def test_verifying_sizes_finds_only_truncated_files(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    with h5py.File(out / parts(out)[0]) as file:
        first_feature = file["features"].id.get_offset()
    flip(out / parts(out)[0], first_feature)
    os.truncate(out / parts(out)[1], 100)
    caplog.clear()
    assert workspace.run(out, "--verify", "sizes") == 0
    assert f"file={out / parts(out)[0]}" not in caplog.text
    assert mentions(caplog.text, "100 bytes")


_NAME, _, _VERSION = FORMAT.partition("/")
LATER = f"{_NAME}/{int(_VERSION) + 1}"


def test_results_of_another_version_are_not_touched(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    data = (out / INDEX).read_bytes()
    start, _, end = data.rpartition(FORMAT.encode())
    (out / INDEX).write_bytes(start + LATER.encode() + end)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--epochs", "1"], ["--append"], ["--restart"]):
        assert workspace.run(out, *flags) == 76
    assert stamps(out) == before


def test_a_required_device_that_is_the_cpu_is_warned_about(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, "--require-device") == 0
    assert any(record.levelname == "WARNING" and "--require-device" in record.message for record in caplog.records)
