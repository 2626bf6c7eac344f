"""Tests of repeating a command: a finished run is complete, and only damaged results are recomputed.

Sample: the files of unfinished runs are damaged in two ways, and with TEST_CASES=all in every way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.result import INDEX
from shardpress.sealed import FORMAT
from tests.support.cases import ALL_CASES
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import (
    DAMAGE,
    SIZES,
    FullAfter,
    flip,
    parts,
    results,
    stamps,
)
from tests.support.logged import COMPLETE, mentions, n_recomputed, reuses_anything
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace, features_of


def some_damage(*files: str) -> list[tuple[str, list[str]]]:
    """Return each file with two kinds of damage in turn."""
    kinds = [*DAMAGE]
    return [(file, kinds if ALL_CASES else kinds[i % 2 :: 2]) for i, file in enumerate(files)]


@pytest.mark.slow
def test_only_damaged_parts_of_a_finished_run_are_recomputed(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for damage in DAMAGE:
        output = out.with_name(damage)
        assert workspace.run(output) == 0, damage
        expected = features_of(output)
        before = stamps(output)
        damaged = parts(output)[1]
        DAMAGE[damage](output / damaged)
        caplog.clear()
        assert workspace.run(output) == 0, damage
        assert f"file={output / damaged}: " in caplog.text, damage
        assert n_recomputed(caplog.text) == 1, damage
        assert "training:" not in caplog.text, damage
        assert features_of(output) == expected, damage
        assert run_seen_by_readers(output) is not None, damage
        assert invalid_entries(output) == leftovers(output) == [], damage
        first = {name: stamp for name, stamp in results(before).items() if not name.startswith("work/scan")}
        changed = {name for name, stamp in first.items() if stamps(output).get(name) != stamp}
        assert changed == {damaged}, damage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damages"), some_damage("work/scan-*", "work/model-*", "parts/*", "work/journal.jsonl")
)
def test_damaged_files_of_an_unfinished_run_are_recomputed(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    pattern: str,
    damages: list[str],
) -> None:
    for damage in damages:
        output = out.with_name(damage)
        assert workspace.run(output, disk=FullAfter("part", 2)) == 74, damage
        damaged = min(output.glob(pattern))
        DAMAGE[damage](damaged)
        caplog.clear()
        if "journal" in pattern and damage in ("deleted", "emptied"):  # then nothing says what the parts are
            assert workspace.run(output) == 65, damage
            assert mentions(caplog.text, "DataError", f"output={output}", "--restart"), damage
            assert workspace.run(output, "--restart") == 0, damage
        else:
            assert workspace.run(output) == 0, damage
            assert (f"file={damaged}: " in caplog.text) == ("journal" not in pattern), damage
        assert features_of(output) == expected(), damage
        assert invalid_entries(output) == leftovers(output) == [], damage


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_only_replaced_by_a_restart(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    assert workspace.run(out) == 0
    expected = features_of(out)
    DAMAGE[damage](out / INDEX)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--retrain"]):
        caplog.clear()
        assert workspace.run(out, *flags) == 65, flags
        assert mentions(caplog.text, "DataError", INDEX, "--restart"), flags
    assert workspace.run(out, "--append") == (66 if damage == "deleted" else 65)
    assert stamps(out) == before
    caplog.clear()
    assert workspace.run(out, "--restart") == 0
    assert not reuses_anything(caplog.text)
    assert features_of(out) == expected
    assert invalid_entries(out) == leftovers(out) == []


@pytest.mark.parametrize("name", ["report.html", "bad_rows.jsonl"])
@pytest.mark.parametrize("state", ["missing", "stale"])
def test_a_derived_file_is_written_again_and_nothing_else(
    workspace: Workspace, out: Path, name: str, state: str
) -> None:
    skip = ("--on-bad-data", "skip", "--max-bad", "9")
    with h5py.File(workspace.shards / "0.h5", "r+") as file:
        file["X"][3] = np.nan
    assert workspace.run(out, *skip) == 0
    before = stamps(out)
    content = (out / name).read_bytes()
    (out / name).unlink()
    if state == "stale":
        (out / name).write_bytes(b"of another run\n")
    recording = RecordingDisk()
    assert workspace.run(out, *skip, disk=recording) == 0
    assert [argument for call, argument in recording.calls if call == "replace"] == [out / name]
    assert (out / name).read_bytes() == content
    assert {**stamps(out), name: before[name]} == before


def test_verifying_sizes_finds_only_truncated_files(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    flip(out / parts(out)[0], first_feature(out / parts(out)[0]))
    os.truncate(out / parts(out)[1], 100)
    caplog.clear()
    assert workspace.run(out, "--verify", "sizes") == 0
    assert f"file={out / parts(out)[0]}" not in caplog.text
    assert mentions(caplog.text, "100 bytes")


_NAME, _, _VERSION = FORMAT.partition("/")
LATER = f"{_NAME}/{int(_VERSION) + 1}"
EARLIER = f"{_NAME}/{int(_VERSION) - 1}"


@pytest.mark.parametrize(("name", "other"), [(INDEX, LATER), (".shardpress", LATER), (".shardpress", EARLIER)])
def test_results_of_another_version_are_not_touched(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, name: str, other: str
) -> None:
    assert workspace.run(out) == 0
    data = (out / name).read_bytes()
    start, _, end = data.rpartition(FORMAT.encode())
    (out / name).write_bytes(start + other.encode() + end)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--epochs", "1"], ["--append"], ["--restart"]):
        assert workspace.run(out, *flags) == 76
    assert stamps(out) == before
    assert mentions(caplog.text, "OtherVersion", other)


def first_feature(path: Path) -> int:
    with h5py.File(path) as file:
        place: int = file["features"].id.get_offset()
    return place


def test_a_part_that_hdf5_cannot_read_is_named(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This can happen if only sizes are verified, when features of some rows are read for the report."""
    assert workspace.run(out, "--verify", "sizes", disk=FullAfter("part", 3)) == 74
    (path, *_others) = sorted(out.glob("parts/*"))
    data = path.read_bytes()
    path.write_bytes(data[:96] + bytes(first_feature(path) - 96) + data[first_feature(path) :])
    assert workspace.run(out, "--verify", "sizes") == 79
    assert mentions(caplog.text, "VerificationFailed", f"file={path}")
    assert workspace.run(out, "--verify", "sizes") == 0  # it was recomputed


@pytest.mark.process
def test_the_advice_about_a_new_shard_can_be_followed(
    workspace: Workspace, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    recording = RecordingDisk()
    assert workspace.run(out, disk=recording) == 0
    assert recording.calls == []
    assert mentions((out / "run.log").read_text(), COMPLETE, 55, 4, 2)
    new = workspace.add_shard("z.h5", np.random.default_rng(5).normal(size=(30, 4)).astype(np.float32))
    assert workspace.run(out) == 78
    assert stamps(out) == before
    assert mentions(caplog.text, "z.h5", "--model", out, "--overwrite")
    more = tmp_path / "more"
    assert workspace.run_on([new], more, "--model", str(out)) == 0
    assert open_features([out, more]).features.shape[0] == sum(SIZES) + 30
    new.unlink()
    caplog.clear()
    assert workspace.run(out, "--seed", "3") == 78
    assert "--model" not in caplog.text
