"""Tests of repeating a command: a finished run is complete, and only damaged results are recomputed.

Sample: the files of unfinished runs are damaged in two ways, and with TEST_CASES=all in every way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress import cli
from shardpress.features import open_features
from shardpress.result import INDEX, Result
from shardpress.sealed import FORMAT
from tests.support.cases import ALL_CASES
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import (
    DAMAGE,
    SIZES,
    STEPS,
    FullAfter,
    flip,
    parts,
    results,
    stamps,
    undisturbed_features,
)
from tests.support.logged import COMPLETE, mentions, n_recomputed, reuses_anything
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import UnsyncedDisk, Workspace, features_of


def some_damage(*files: str) -> list[tuple[str, list[str]]]:
    """Return each file with two kinds of damage in turn."""
    kinds = [*DAMAGE]
    return [(file, kinds if ALL_CASES else kinds[i % 2 :: 2]) for i, file in enumerate(files)]


@pytest.mark.slow
def test_blocks_and_threads_change_no_bit_of_the_stand_in(workspace: Workspace) -> None:
    expected = undisturbed_features(workspace)
    for flags in (["--threads", "3"], ["block_rows=1"], ["block_rows=1000"], STEPS):
        assert undisturbed_features(workspace, *flags) == expected
    assert undisturbed_features(workspace, "--seed", "1") != expected


def test_a_finished_run_is_verified_and_nothing_is_written(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    recording = RecordingDisk()
    assert workspace.run(out, disk=recording) == 0
    assert recording.calls == []
    assert stamps(out) == before
    assert mentions((out / "run.log").read_text(), COMPLETE, 55, 4, 2)


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


@pytest.mark.parametrize("name", [INDEX, ".shardpress"])
def test_results_of_a_later_version_are_not_touched(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    assert workspace.run(out) == 0
    data = (out / name).read_bytes()
    start, _, end = data.rpartition(FORMAT.encode())
    (out / name).write_bytes(start + LATER.encode() + end)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--epochs", "1"], ["--append"], ["--restart"]):
        assert workspace.run(out, *flags) == 76
    assert stamps(out) == before
    assert mentions(caplog.text, "OtherVersion", LATER)


def make_earlier_output(out: Path) -> list[str]:
    """Write a finished output directory as an earlier version did, with files of the user. Return the latter."""
    unique = "0123456789abcdef" * 2
    part = f"parts/part-000000-000000000000-{unique}.h5"
    sealed = json.dumps({"format": EARLIER, "seal": "0"})
    for name in (
        *(".shardpress", ".lock", "run.json", part, f"stages/scan-{unique}.npz"),
        *(f"stages/model-{unique}.h5", f"commits/part-{unique}.json"),
        *(f"published/{unique}/{each}" for each in ("index.h5", "manifest.json", "model.h5", "report.html")),
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(sealed)
    (out / "published/current").symlink_to(unique)
    for name in ("index.h5", "manifest.json", "model.h5", "report.html"):
        (out / name).symlink_to(f"published/current/{name}")
    own = ["notes.md", "stages/notes.md", "parquet/part.parquet"]
    for name in own:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    return own


def test_results_of_an_earlier_version_are_replaced_by_a_restart(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = make_earlier_output(out)
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--append"]):
        caplog.clear()
        assert workspace.run(out, *flags) == 76
        assert mentions(caplog.text, "EarlierVersion", "--restart", "--output")
    assert stamps(out) == before
    assert workspace.run(out, "--restart", disk=FullAfter("part", 2)) == 74
    assert before.items() <= {**stamps(out), ".shardpress": before[".shardpress"]}.items(), "nothing is removed yet"
    assert workspace.run(out, "--restart") == 0
    features = features_of(out)
    result = Result.open(out)
    expected = [*own, *result.files, INDEX, "report.html", ".shardpress", "run.log", "work/lock", "work/journal.jsonl"]
    expected += [name for name in stamps(out) if name.startswith("work/scan-")]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()) == sorted(expected)
    for name in own:
        assert (out / name).read_text() == "mine"
    assert workspace.run(out) == 0
    assert features_of(out) == features


def test_user_files_with_names_of_an_earlier_version_stay(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    for name in ("manifest.json", "model.h5", "report.json"):
        (out / name).write_text("mine")
    for flags in ([], ["--overwrite", "--epochs", "1"], ["--restart"]):
        assert workspace.run(out, *flags) == 0
        assert (out / "manifest.json").read_text() == "mine"
        assert (out / "model.h5").read_text() == "mine"


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
def test_a_new_shard_is_encoded_with_the_earlier_model(
    workspace: Workspace, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    new = workspace.add_shard("z.h5", np.random.default_rng(5).normal(size=(30, 4)).astype(np.float32))
    assert workspace.run(out) == 78
    assert stamps(out) == before
    assert mentions(caplog.text, "z.h5", "--model", out, "--overwrite")
    # The advice can be followed.
    more = tmp_path / "more"
    assert cli.main("", ["--input", str(new), "--model", str(out), "--output", str(more)], UnsyncedDisk()) == 0
    joined = open_features([out, more])
    assert joined.features.shape[0] == sum(SIZES) + 30
    caplog.clear()
    assert workspace.run(out, "--learning-rate", "0.5", "--seed", "3") == 78
    assert mentions(caplog.text, "z.h5", "--model", out)
    new.unlink()
    caplog.clear()
    assert workspace.run(out, "--seed", "3") == 78
    assert "--model" not in caplog.records[-2].message
