"""Tests of output directories that a user copies, swaps, restores or partly deletes between two runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.output.lock import locked
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from tests.support.faulty import RecordingDisk, journal_lines
from tests.support.interruptions import OTHER, STEPS, FullAfter, FullDisk, flip, undisturbed_features
from tests.support.logged import mentions, resumed_step, reuses
from tests.support.soak_protocol import edit, invalid_entries, leftovers, records, run_seen_by_readers
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def add_rows(workspace: Workspace, name: str = "new.h5") -> None:
    workspace.add_shard(name, np.random.default_rng(5).normal(size=(9, 4)).astype(np.float32))


def features_in(output: Path) -> np.ndarray:
    return open_features(output).features.compute()


def is_clean(output: Path) -> bool:
    return invalid_entries(output) == leftovers(output) == []


# -- copies ------------------------------------------------------------------------------------------------------


def zipped(source: Path, target: Path) -> None:
    archive = shutil.make_archive(str(source.with_name("archive")), "zip", source)
    shutil.unpack_archive(archive, target)


def archived(source: Path, target: Path) -> None:
    subprocess.run(["tar", "-cf", str(target / "archive.tar"), "-C", str(source), "."], check=True)
    subprocess.run(["tar", "-xf", "archive.tar"], cwd=target, check=True)
    (target / "archive.tar").unlink()


def command(*words: str) -> Callable[[Path, Path], object]:
    return lambda source, target: subprocess.run([*words, f"{source}/.", str(target)], check=True)


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "cp -r": command("cp", "-r"),
    "cp -rL": command("cp", "-rL"),
    "tar": archived,
    "zip": zipped,
    "move": shutil.move,
}
if shutil.which("rsync"):
    COPIES["rsync -a"] = command("rsync", "-a")


@pytest.mark.process
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_a_result_and_the_base_of_an_append(workspace: Workspace, out: Path, how: str) -> None:
    """The index of three parts is nested, as those of many parts are."""
    assert workspace.run(out) == 0
    expected = run_seen_by_readers(out)
    before = features_in(out)
    copy = out.parent / "elsewhere" / "copy"
    copy.mkdir(parents=True)
    if how == "move":
        copy.rmdir()
    COPIES[how](out, copy)
    shutil.rmtree(out, ignore_errors=True)
    assert run_seen_by_readers(copy) == expected
    assert workspace.run(copy, disk=(disk := RecordingDisk())) == 0
    assert "create" not in disk.names
    add_rows(workspace)
    assert workspace.run(copy, "--append") == 0
    np.testing.assert_array_equal(features_in(copy)[: len(before)], before)
    assert len(features_in(copy)) == len(before) + 9
    assert is_clean(copy)


def test_a_copy_of_the_index_is_a_model(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    shutil.copy(out / "index.h5", tmp_path / "renamed.h5")
    assert load_model(tmp_path / "renamed.h5").fingerprint == Result.open(out).encoder
    assert workspace.run(tmp_path / "encoded", "--model", str(tmp_path / "renamed.h5")) == 0
    np.testing.assert_array_equal(features_in(tmp_path / "encoded"), features_in(out))


@pytest.mark.parametrize("moves_index_only", [False, True], ids=["directories", "indexes"])
def test_swapped_directories_have_an_obvious_outcome(
    workspace: Workspace, tmp_path: Path, moves_index_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    a = tmp_path / "a"
    b = tmp_path / "b"
    assert workspace.run(a) == workspace.run(b, *OTHER) == 0
    expected = {a: features_of(b), b: features_of(a)}
    name = "index.h5" if moves_index_only else ""
    for source, target in ((a, tmp_path / "c"), (b, a), (tmp_path / "c", b)):
        (source / name if source.is_dir() else source).rename(target / name if target.is_dir() else target)
    if moves_index_only:  # an index without its parts is damaged, and the same command repairs it
        assert verify(str(a), 4).faults
        with pytest.raises(DataError):
            features_in(a)
    caplog.clear()
    assert workspace.run(a, *OTHER) == workspace.run(b) == 0
    assert {output: features_of(output) for output in (a, b)} == expected
    assert is_clean(a)
    assert is_clean(b)
    assert not moves_index_only or caplog.text.count("it is recomputed") >= 2


# -- restored and lost files ---------------------------------------------------------------------------------------


def test_a_restored_index_is_repaired_by_its_command(
    workspace: Workspace, out: Path, tmp_path: Path, expected: Callable[..., bytes]
) -> None:
    """The parts of a replaced result are gone, and the model is in the index."""
    assert workspace.run(out) == 0
    shutil.copy(out / "index.h5", tmp_path / "backup.h5")
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    shutil.copy(tmp_path / "backup.h5", out / "index.h5")
    assert verify(str(out), 4).faults
    assert workspace.run(out) == 0
    assert features_of(out) == expected()
    assert run_seen_by_readers(out) is not None
    assert is_clean(out)


def test_an_index_from_before_an_append_is_complete(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    before = features_in(out)
    shutil.copy(out / "index.h5", tmp_path / "backup.h5")
    add_rows(workspace)
    assert workspace.run(out, "--append") == 0
    after = features_of(out)
    shutil.copy(tmp_path / "backup.h5", out / "index.h5")
    np.testing.assert_array_equal(features_in(out), before)
    assert workspace.run(out, "--append") == 0
    assert features_of(out) == after
    assert is_clean(out)


def test_deleting_work_keeps_the_result(
    workspace: Workspace, out: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = run_seen_by_readers(out)
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullDisk("parts/part", 2)) == 74
    shutil.rmtree(out / "work")
    assert run_seen_by_readers(out) == before
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert not reuses(caplog.text, "training")
    assert is_clean(out)


def test_deleting_work_of_a_first_run_discards_it_only_with_restart(
    workspace: Workspace, out: Path, expected: Callable[..., bytes]
) -> None:
    assert workspace.run(out, disk=FullDisk("parts/part", 2)) == 74
    shutil.rmtree(out / "work")
    parts = sorted((out / "parts").iterdir())
    assert workspace.run(out) == 65
    assert sorted((out / "parts").iterdir()) == parts
    assert workspace.run(out, "--restart") == 0
    assert features_of(out) == expected()
    assert is_clean(out)


def test_an_append_encodes_withdrawn_parts_again(workspace: Workspace, out: Path) -> None:
    """Their features were found to be wrong, although their digests are right."""
    assert workspace.run(out) == 0
    before = features_in(out)
    wrong = Result.open(out).parts[-1].file
    with locked(out) as journal:
        journal.withdraw_parts([wrong])
    assert workspace.run(out, "--append") == 0
    assert wrong not in [part.file for part in Result.open(out).parts]
    np.testing.assert_array_equal(features_in(out), before)
    assert is_clean(out)


# -- interrupted runs ----------------------------------------------------------------------------------------------


def test_a_run_that_stops_right_after_its_commit_is_complete(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full, so that neither the new journal nor the report can be written."""
    assert workspace.run(out, *OTHER) == 0
    assert workspace.run(out, "--overwrite", disk=FullDisk("out/index.h5", 1)) == 74
    assert features_of(out) == expected()
    assert records(out) == []
    before = (out / "index.h5").read_bytes()
    assert workspace.run(out) == 0
    assert (out / "index.h5").read_bytes() == before
    assert is_clean(out)
    assert Result.open(out).digest in (out / "report.html").read_text()


def interrupted_restart(workspace: Workspace, out: Path) -> None:
    """Finish a run, and interrupt another one that starts over, while it encodes."""
    assert workspace.run(out, *OTHER) == 0
    before = run_seen_by_readers(out)
    assert workspace.run(out, *STEPS, "--restart", disk=FullDisk("parts/part", 2)) == 74
    assert run_seen_by_readers(out) == before


def test_an_interrupted_restart_is_resumed_without_the_flag(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    interrupted_restart(workspace, out)
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    assert reuses(caplog.text, "training")
    assert features_of(out) == expected()
    assert is_clean(out)
    assert Result.open(out).facts.generation == 1


@pytest.mark.parametrize("flag", ["--append", "--retrain"])
def test_extending_after_an_interrupted_restart_keeps_the_result(workspace: Workspace, out: Path, flag: str) -> None:
    """Otherwise generations would be lost that the user has never discarded."""
    assert workspace.run(out, "--seed", "2") == 0
    assert workspace.run(out, *OTHER, "--retrain") == 0
    before = features_in(out)
    assert workspace.run(out, *STEPS, "--restart", disk=FullDisk("parts/part", 2)) == 74
    add_rows(workspace)
    if flag == "--append":
        assert workspace.run(out, "--append") == 0
        assert Result.open(out).facts.generation == 2
        np.testing.assert_array_equal(features_in(out)[: len(before)], before)
        assert (out / "generation-1.h5").exists()
    else:
        assert workspace.run(out, *STEPS, "--retrain") == 0
        assert Result.open(out).facts.generation == 3
        np.testing.assert_array_equal(open_features(out, generation=2).features.compute(), before)
    assert is_clean(out)
    assert run_seen_by_readers(out) is not None


def test_a_restart_over_a_damaged_index_makes_progress(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
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
    assert features_of(out) == expected()
    assert is_clean(out)


def test_an_append_discards_an_unfinished_run_when_it_is_complete(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullAfter("part", 1)) == 74
    assert len(records(out)) > 2
    add_rows(workspace)
    assert workspace.run(out, "--append") == 0
    assert records(out) == []
    assert is_clean(out)
    assert run_seen_by_readers(out) is not None


@pytest.mark.parametrize(
    ("n_parts", "flags"), [(3, ("--append",)), (4, ("--overwrite", *OTHER))], ids=["append", "overwrite"]
)
def test_files_are_compared_with_those_of_the_finished_run(
    workspace: Workspace, out: Path, tmp_path: Path, n_parts: int, flags: tuple[str, ...]
) -> None:
    """An interrupted run has stored the digest of an edited file, but the result has features of the earlier rows."""
    assert workspace.run(out) == 0
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, *flags, disk=FullAfter("part", n_parts)) == 74
    assert workspace.run(out) == 78, "the finished run had other rows"
    assert workspace.run(out, "--append") == 0
    assert workspace.run(tmp_path / "fresh", "--model", str(out)) == 0
    np.testing.assert_array_equal(features_in(out), features_in(tmp_path / "fresh"))
    assert is_clean(out)


@pytest.mark.parametrize("name", ["2.h5", "new.h5"], ids=["changed file", "new file"])
def test_an_append_notices_edits_after_an_interruption(
    workspace: Workspace, out: Path, tmp_path: Path, name: str
) -> None:
    """The interrupted append has encoded the file before it was edited again."""
    assert workspace.run(out) == 0
    add_rows(workspace)
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, "--append", disk=FullAfter("part", 4)) == 74
    edit(workspace.shards / name)
    assert workspace.run(out, "--append") == 0
    assert workspace.run(tmp_path / "fresh", "--model", str(out)) == 0
    np.testing.assert_array_equal(features_in(out), features_in(tmp_path / "fresh"))


def test_an_unfinished_run_survives_a_look_at_the_finished_one(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user repeats the command of the finished run while another one is unfinished."""
    assert workspace.run(out) == 0
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullDisk("parts/part", 2)) == 74
    unfinished = records(out)
    assert workspace.run(out) == 0
    assert records(out) == unfinished
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert reuses(caplog.text, "training")
    assert is_clean(out)


def test_the_first_command_after_an_append_is_refused_with_a_reason(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would train on all files."""
    assert workspace.run(out) == 0
    add_rows(workspace)
    assert workspace.run(out, "--append") == 0
    assert workspace.run(out) == 78
    assert mentions(caplog.text, "a different run", "appended", "--append", "--retrain")
    assert workspace.run(out, "--append") == 0


def test_touched_files_keep_the_training_of_an_unfinished_run(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Their rows are read again, and are the same."""
    assert workspace.run(out, disk=FullAfter("part", 1)) == 74
    for path in workspace.shards.iterdir():
        path.touch()
    caplog.clear()
    assert workspace.run(out) == 0
    assert reuses(caplog.text, "training")
    assert features_of(out) == expected()
    assert is_clean(out)


def test_an_overwrite_after_an_append_of_edited_rows_trains_again(workspace: Workspace, out: Path) -> None:
    """The edited file has its earlier size and modification time, so that the model seems to fit."""
    assert workspace.run(out) == 0
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, "--append") == 0
    assert workspace.run(out, "--overwrite") == 0
    assert features_of(out) == undisturbed_features(workspace)
