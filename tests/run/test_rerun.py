"""Tests of repeating a command: a finished run is complete, and only damaged results are recomputed.

Sample: parts are damaged in every way, and each other file in two ways; with TEST_CASES=all in every way.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress import cli
from shardpress.features import open_features
from shardpress.formats import seal
from shardpress.output.records import OUTPUT, read_manifest
from tests.support.cases import ALL_CASES
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.interruptions import (
    DAMAGE,
    SIZES,
    STEPS,
    FullDisk,
    flip,
    parts,
    results,
    stamps,
    undisturbed_features,
)
from tests.support.logged import COMPLETE, mentions, n_recomputed, reuses
from tests.support.soak_protocol import (
    invalid_entries,
    leftovers,
    run_seen_by_readers,
    unreferenced,
)
from tests.support.standin import UnsyncedDisk, Workspace, features_of


def some_damage(*files: str) -> list[tuple[str, list[str]]]:
    """Return each file with two kinds of damage in turn."""
    kinds = [*DAMAGE]
    return [(file, kinds if ALL_CASES or file == "part" else kinds[i % 2 :: 2]) for i, file in enumerate(files)]


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


def test_a_finished_run_without_links_is_complete(workspace: Workspace, out: Path) -> None:
    """On a file system without symbolic links, the index is a file next to the views that it refers to."""
    assert workspace.run(out, disk=BrokenDisk(errno.EOPNOTSUPP, "symlink")) == 0
    assert len(list(out.glob("index-*.h5"))) > 1
    recording = RecordingDisk()
    assert workspace.run(out, disk=recording) == 0
    assert recording.calls == []


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "kinds"), some_damage("part", "view", "index.h5", "model.h5", "report.html"))
def test_only_damaged_files_of_a_finished_run_are_recomputed(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, pattern: str, kinds: list[str]
) -> None:
    for damage in kinds:
        output = out.with_name(damage)
        assert workspace.run(output) == 0, damage
        expected = features_of(output)
        before = stamps(output)
        view = next(name for name in before if name.startswith("index-"))
        damaged = {"part": parts(output)[1], "view": view}.get(pattern, pattern)
        of_part = [
            str(path.relative_to(output)) for path in output.glob("commits/part-*") if damaged in path.read_text()
        ]
        # A file that was deleted by its plain name still exists under the target of the link.
        path = output / damaged if damage == "deleted" else (output / damaged).resolve()
        DAMAGE[damage](output / damaged)
        caplog.clear()
        assert workspace.run(output) == 0, damage
        assert f"file={path}: " in caplog.text, damage
        assert n_recomputed(caplog.text) > 0, damage
        assert reuses(caplog.text, "scan"), damage
        assert reuses(caplog.text, "training"), damage
        assert features_of(output) == expected, damage
        assert invalid_entries(output) == leftovers(output) == [], damage
        changed = {name for name, stamp in results(before).items() if stamps(output).get(name) != stamp}
        assert changed == ({damaged, *of_part} if pattern == "part" else set()), damage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "kinds"), some_damage("stages/scan", "stages/model", "commits/scan", "commits/model", "commits/part")
)
def test_damaged_files_of_an_unfinished_run_are_recomputed(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    pattern: str,
    kinds: list[str],
) -> None:
    for damage in kinds:
        output = out.with_name(damage)
        assert workspace.run(output, disk=FullDisk("commits/part", 2)) == 74, damage
        damaged, *_others = sorted(output.glob(f"{pattern}*"))
        DAMAGE[damage](damaged)
        caplog.clear()
        assert workspace.run(output) == 0, damage
        # A missing record means that the result never existed.
        assert (f"file={damaged}: " in caplog.text) == (pattern.startswith("stages") or damage != "deleted"), damage
        assert features_of(output) == expected(), damage
        assert invalid_entries(output) == leftovers(output) == [], damage


@pytest.mark.slow
def test_a_damaged_manifest_is_restored_from_the_parts(workspace: Workspace, out: Path) -> None:
    for damage in DAMAGE:
        output = out.with_name(damage)
        assert workspace.run(output) == 0, damage
        expected = features_of(output)
        before = stamps(output)
        DAMAGE[damage](output / "manifest.json")
        assert workspace.run(output) == 0, damage
        assert features_of(output) == expected, damage
        assert results(stamps(output)) == results(before), damage


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


@pytest.mark.parametrize("name", ["manifest.json", ".shardpress"])
def test_results_of_a_later_version_are_not_touched(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    assert workspace.run(out) == 0
    (out / name).write_bytes(seal("shardpress-output/3", {"parts": []}))
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--epochs", "1"]):
        assert workspace.run(out, *flags) == 76
    assert stamps(out) == before
    assert mentions(caplog.text, "OtherVersion", f"file={out / name}")


def test_results_of_an_earlier_version_are_refused_until_a_restart(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    sealed = [".shardpress", "manifest.json", "run.json", *(str(path) for path in (out / "commits").iterdir())]
    for name in sealed:
        path = (out / name).resolve()
        content = json.loads(path.read_text())
        form = content.pop("format").replace("/2", "/1")
        del content["seal"]
        path.write_bytes(seal(form, content))
    before = stamps(out)
    for flags in ([], ["--overwrite"], ["--append"]):
        assert workspace.run(out, *flags) == 76
    assert mentions(caplog.text, "EarlierVersion", "--restart", "--output")
    assert stamps(out) == before
    assert workspace.run(out, "--restart", "--seed", "1") == 0
    assert workspace.run(out, "--seed", "1") == 0
    assert unreferenced(out) == set()


def test_a_manifest_with_paths_outside_the_output_is_refused(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    (tmp_path / "victim").write_bytes(b"precious")
    manifest = read_manifest(out)
    for line in manifest["files"]:
        line["file"] = "../victim"
    (out / "manifest.json").write_bytes(seal(OUTPUT, manifest))
    for flags in ([], ["--overwrite", "--epochs", "1"]):
        assert workspace.run(out, *flags) == 77
    assert (tmp_path / "victim").read_bytes() == b"precious"


def first_feature(path: Path) -> int:
    with h5py.File(path) as file:
        place: int = file["features"].id.get_offset()
    return place


def test_a_part_that_hdf5_cannot_read_is_named(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This can happen if only sizes are verified, when features of some rows are read for the report."""
    assert workspace.run(out) == 0
    paths = parts(out)
    for path in paths:
        data = (out / path).read_bytes()
        (out / path).write_bytes(data[:96] + bytes(first_feature(out / path) - 96) + data[first_feature(out / path) :])
    (out / "manifest.json").unlink()
    assert workspace.run(out, "--verify", "sizes") == 79
    assert mentions(caplog.text, "VerificationFailed", f"file={out / paths[0]}")
    assert workspace.run(out, "--verify", "sizes") == 0  # all of them were recomputed


def test_links_that_a_copy_lost_are_restored(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    expected = features_of(out)
    for path in [path for path in out.rglob("*") if path.is_symlink()]:
        path.unlink()
    assert workspace.run(out) == 0
    assert features_of(out) == expected
    assert results(stamps(out)) == results(before)
    assert run_seen_by_readers(out) is not None
    assert leftovers(out) == []


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
