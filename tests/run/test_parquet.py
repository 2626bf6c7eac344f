"""Tests of `--format parquet`: each part gets a Parquet file, which is committed and verified like a part."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shardpress.features import open_features
from shardpress.output.records import read_manifest
from shardpress.report.verify import verify
from tests.support.cases import ALL_CASES
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import DAMAGE, OTHER, STEPS, FullDisk, flip, parts, results, stamps
from tests.support.logged import mentions, reuses
from tests.support.soak_protocol import invalid_entries, leftovers, records, without_links
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow

PARQUET = ["--format", "parquet"]
WITH_AND_WITHOUT = pytest.mark.parametrize("flags", [[], PARQUET], ids=["without the flag", "with the flag"])


def parquet_files(output: Path) -> list[str]:
    """Return the Parquet files that the manifest lists."""
    return [line["file"] for line in read_manifest(output)["files"] if line["file"].endswith(".parquet")]


def assert_complete(output: Path) -> None:
    """Check that the folder has the rows of the parts and no other files, and that nothing is damaged or left over."""
    files = parquet_files(output)
    assert [path.rpartition("-")[0] for path in files] == [path.rpartition("-")[0] for path in parts(output)]
    assert sorted(path.name for path in (output / "parquet").iterdir()) == sorted(Path(file).name for file in files)
    pd.testing.assert_frame_equal(pd.read_parquet(output / "parquet"), open_features(output).to_pandas())
    assert invalid_entries(output) == leftovers(output) == []


def test_pandas_reads_the_folder_as_the_frame_of_the_output(workspace: Workspace, out: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    rows[2, 1] = np.nan
    for i, width in enumerate((2, 5)):
        extras = {"y": np.arange(6), "name": np.array([b"a" * (j % 3) for j in range(6)], f"S{width}")}
        extras["differs"] = np.arange(6) if i else np.array([b"x"] * 6)
        write_shard(workspace.shards / f"more{i}.h5", rows, extras=extras)
    assert workspace.run(out, *PARQUET, "--on-bad-data", "skip", "--max-bad", "2") == 0
    assert_complete(out)
    frame = pd.read_parquet(out / "parquet")
    assert len(frame) == 67
    assert list(frame["valid"]).count(False) == 2
    assert {"y", "name"} < set(frame)
    assert "differs" not in frame


def test_parquet_files_can_be_added_without_recomputing(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    caplog.clear()
    assert workspace.run(out, *PARQUET) == 0
    for stage in ("scan", "training", "encoding"):
        assert reuses(caplog.text, stage)
    assert results(stamps(out)).items() >= results(before).items()
    assert_complete(out)


@WITH_AND_WITHOUT
def test_a_finished_run_with_parquet_files_is_complete(workspace: Workspace, out: Path, flags: list[str]) -> None:
    assert workspace.run(out, *PARQUET) == 0
    recording = RecordingDisk()
    assert workspace.run(out, *flags, disk=recording) == 0
    assert recording.calls == []
    assert_complete(out)


@WITH_AND_WITHOUT
def test_only_damaged_parquet_files_are_rewritten(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    for damage in DAMAGE if ALL_CASES else [*DAMAGE][len(flags) // 2 :: 2]:
        output = out.with_name(damage)
        assert workspace.run(output, *PARQUET) == 0, damage
        before = stamps(output)
        damaged = parquet_files(output)[1]
        DAMAGE[damage](output / damaged)
        assert [fault.file for fault in verify(str(output)).faults] == [damaged], damage
        caplog.clear()
        assert workspace.run(output, *flags) == 0, damage
        assert f"file={output / damaged}: " in caplog.text, damage
        assert reuses(caplog.text, "encoding"), damage
        assert_complete(output)
        kept = {
            name for name, stamp in before.items() if name.startswith("parts/") and stamps(output).get(name) == stamp
        }
        assert {name for name in before if name.startswith("parts/")} - kept == {damaged}, damage


def test_the_parquet_file_of_a_damaged_part_is_rewritten(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET) == 0
    before = parquet_files(out)
    flip(out / parts(out)[1])
    # The command is an attribute of a part, so the new part differs from the damaged one.
    assert workspace.run(out, *PARQUET, "--threads", "2") == 0
    assert set(before) - set(parquet_files(out)) == {before[1]}
    assert_complete(out)


def test_intact_parquet_files_are_not_rewritten(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET) == 0
    before = stamps(out)
    flip(out / "model.h5")
    assert workspace.run(out) == 0
    assert {name: stamps(out)[name] for name in parquet_files(out)} == {
        name: before[name] for name in parquet_files(out)
    }
    assert_complete(out)


@pytest.mark.slow
def test_parquet_files_are_removed_with_their_results(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET) == 0
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert list(out.rglob("*parquet*")) == []
    assert workspace.run(out, *PARQUET, "--overwrite") == 0
    assert_complete(out)
    assert workspace.run(out, "--restart") == 0
    assert list(out.rglob("*parquet*")) == []


@pytest.mark.parametrize("n_committed", [0, 1, 3])
def test_missing_parquet_files_are_written_after_an_interruption(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], n_committed: int
) -> None:
    disk = FullDisk("commits/parquet", n_committed) if n_committed else FullDisk("commits/part-", 5)
    assert workspace.run(out, *STEPS, *PARQUET, disk=disk) == 74
    assert len([record for record in records(out) if record["key"].startswith("parquet")]) == n_committed
    before = stamps(out)
    assert workspace.run(out, *STEPS, *PARQUET) == 0
    assert_complete(out)
    assert features_of(out) == expected()
    committed = {record["entry"]["file"] for record in records(out)} & before.keys()
    assert len([name for name in committed if name.endswith(".parquet")]) == n_committed


def test_uncommitted_parquet_files_are_removed_without_the_flag(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET, disk=FullDisk("commits/parquet", 2)) == 74
    assert list(out.glob("parts/*.parquet")) != []
    assert workspace.run(out) == 0
    assert list(out.rglob("*parquet*")) == []
    assert leftovers(out) == []


@pytest.mark.slow
def test_threads_and_blocks_change_no_byte_of_parquet_files(workspace: Workspace) -> None:
    contents = []
    for i, flags in enumerate([[], ["--threads", "3"], ["block_rows=4"]]):
        output = workspace.folder / f"out{i}"
        assert workspace.run(output, *PARQUET, *flags) == 0
        contents.append([(output / file).read_bytes() for file in parquet_files(output)])
    assert contents[0] == contents[1] == contents[2]


# -- copies and other directories ----------------------------------------------------------------------------------


def test_links_to_parquet_files_are_restored(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET) == 0
    without_links(out)
    assert workspace.run(out) == 0
    assert_complete(out)
    next((out / "parquet").iterdir()).unlink()
    assert workspace.run(out) == 0
    assert_complete(out)


def test_a_copy_that_followed_links_is_complete_and_can_be_replaced(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET) == 0
    copy = out.with_name("copy")
    shutil.copytree(out, copy)
    recording = RecordingDisk()
    assert workspace.run(copy, disk=recording) == 0
    assert "replace" not in recording.names
    flip(next((copy / "parquet").iterdir()))
    assert workspace.run(copy) == 0
    assert (copy / "parquet").is_symlink()
    assert_complete(copy)


def test_a_file_system_without_links_has_no_folder_of_links(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *PARQUET, disk=BrokenDisk(errno.EOPNOTSUPP, "symlink")) == 0
    assert not (out / "parquet").exists()
    frames = [pd.read_parquet(path) for path in sorted(out.glob("parts/*.parquet"))]
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), open_features(out).to_pandas())
    recording = RecordingDisk()
    assert workspace.run(out, *PARQUET, disk=recording) == 0
    assert recording.calls == []


@pytest.mark.parametrize("flags", [[], ["--restart"]], ids=["first run", "restart"])
def test_a_directory_of_the_user_is_not_touched(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    assert workspace.run(out) == 0
    (out / "parquet").mkdir()
    (out / "parquet/thesis.tex").write_bytes(b"precious")
    assert workspace.run(out, *PARQUET, *flags) == 73
    assert mentions(caplog.text, "CannotCreate", f"output={out / 'parquet'}")
    assert workspace.run(out, *flags) == 0
    assert (out / "parquet/thesis.tex").read_bytes() == b"precious"


# -- pyarrow is optional ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unread")
def test_missing_pyarrow_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert workspace.run(out, *PARQUET) == 69
    assert mentions(caplog.text, "DeviceError", "pyarrow", "pip install 'shardpress[parquet]'")
    assert not out.exists()


def test_damaged_parquet_files_are_removed_if_pyarrow_is_missing(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace.run(out, *PARQUET) == 0
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    flip(out / parquet_files(out)[0])
    assert workspace.run(out) == 0
    assert mentions(caplog.text, "pyarrow", "Parquet files")
    assert list(out.rglob("*parquet*")) == []
    assert invalid_entries(out) == leftovers(out) == []
