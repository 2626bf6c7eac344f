"""Tests of ``--append``: only new and changed files are encoded, and the results change in one commit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import ConfigError, DataError
from shardpress.features import open_features
from shardpress.result import INDEX, Result
from tests.support.appends import N_ROWS, add, ids_of
from tests.support.cases import case
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, stamps
from tests.support.logged import COMPLETE, mentions
from tests.support.soak_protocol import invalid_entries, leftovers
from tests.support.standin import Workspace, features_of

# -- the same results as a run with the model ----------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(
    ("n_steps", "flags"),
    [
        (4, []),
        pytest.param(30, [], marks=pytest.mark.slow),
        pytest.param(4, ["--threads", "3"], marks=pytest.mark.slow),
    ],
)
def test_appends_give_the_bits_of_one_run_with_the_model(
    growing: Workspace, finished: Path, n_steps: int, flags: list[str]
) -> None:
    model = shutil.copy(finished / INDEX, growing.folder / "trained.h5")
    for step in range(n_steps):
        add(growing, f"{len(N_ROWS) + step}.h5", n_rows=1 + step, seed=step)
        assert growing.run(finished, "--append", *flags) == 0
    whole = growing.folder / "whole"
    assert growing.run(whole, "--model", str(model)) == 0
    assert features_of(finished) == features_of(whole)
    assert invalid_entries(finished) == leftovers(finished) == []
    appended, expected = open_features(finished), open_features(whole)
    assert appended.extras.keys() - expected.extras.keys() == {"append_id"}
    assert ids_of(finished) == [0] * sum(N_ROWS) + [1 + i for i in range(n_steps) for _ in range(1 + i)]


def test_earlier_parts_are_not_written_again(growing: Workspace, finished: Path) -> None:
    before = stamps(finished)
    add(growing, "3.h5")
    assert growing.run(finished, "--append") == 0
    after = stamps(finished)
    kept = {name: stamp for name, stamp in before.items() if name.startswith("parts/")}
    assert kept.items() <= after.items()


@pytest.mark.process
@pytest.mark.parametrize("scale", ["std", "range"])
def test_the_report_names_the_scaling_of_the_model(growing: Workspace, out: Path, scale: str) -> None:
    """The new rows alone may suggest another one, and without a training there may be no scan."""
    assert growing.run(out, "--scale", scale) == 0
    add(growing, "3.h5")
    assert growing.run(out, "--append", "--scale", scale) == 0
    assert Result.open(out).report()["scan"]["scale"] == scale
    encoded = growing.folder / "encoded"
    assert growing.run(encoded, "--model", str(out)) == 0
    assert Result.open(encoded).report()["scan"] == {"scale": scale}


@pytest.mark.slow
def test_a_training_does_not_use_the_scan_of_an_append(growing: Workspace, out: Path) -> None:
    """The scan of an append lacks what only a training needs."""
    assert growing.run(out, "--scale", "std") == 0
    add(growing, "3.h5", n_rows=30)
    assert growing.run(out, "--scale", "std", "--append") == 0
    for i in range(len(N_ROWS)):
        (growing.shards / f"{i}.h5").unlink()
    assert growing.run(out, "--scale", "std", "--retrain", "--drop-missing") == 0
    alone = growing.folder / "alone"
    assert growing.run(alone, "--scale", "std") == 0
    assert Result.open(out).report()["scan"] == Result.open(alone).report()["scan"]
    assert features_of(out) == features_of(alone)


def test_without_new_files_nothing_is_written(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = stamps(finished)
    recording = RecordingDisk()
    assert growing.run(finished, "--append", disk=recording) == 0
    assert recording.calls == []
    assert stamps(finished) == before
    assert mentions((finished / "run.log").read_text(), COMPLETE, 44, 4, 2)


def test_rows_are_in_the_order_of_arrival(growing: Workspace, finished: Path) -> None:
    add(growing, "00.h5", n_rows=3)  # sorts before all others
    assert growing.run(finished, "--append") == 0
    labels = open_features(finished).extras["y"].compute()
    assert labels[-3:].tolist() == [0, 1, 2]
    assert labels[:20].tolist() == list(range(20))


def test_features_of_some_appends_can_be_opened(growing: Workspace, finished: Path) -> None:
    for i in (3, 4):
        add(growing, f"{i}.h5", n_rows=i)
        assert growing.run(finished, "--append") == 0
    whole = open_features(finished)
    ids = whole.extras["append_id"].compute()
    for chosen in (0, 1, [0, 2], (1, 2)):
        with case(str(chosen)):
            some = open_features(finished, appends=chosen)
            expected = whole.features.compute()[np.isin(ids, chosen)]
            np.testing.assert_array_equal(some.features.compute(), expected)
            assert some.manifest["n_rows"] == len(expected)
    with pytest.raises(DataError, match="appends"):
        open_features(finished, appends=3)
    with h5py.File(finished / "index.h5") as index:
        np.testing.assert_array_equal(index["append_id"][()], ids)


# -- changed, missing and damaged files ----------------------------------------------------------------------------


def test_a_file_that_grew_replaces_its_rows(growing: Workspace, finished: Path) -> None:
    add(growing, "0.h5", n_rows=33)
    assert growing.run(finished, "--append") == 0
    assert ids_of(finished) == [1] * 33 + [0] * 24


def test_a_file_edited_in_place_is_encoded_again(growing: Workspace, finished: Path) -> None:
    path = growing.shards / "2.h5"
    status = os.stat(path)
    with h5py.File(path, "r+") as file:
        file["X"][3, 1] += 1
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert growing.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 29 + [1] * 15


def test_copies_of_files_with_parts_of_other_sizes_are_recognized(growing: Workspace, out: Path) -> None:
    for path in list(growing.shards.iterdir()):
        path.unlink()
    for number, flags in enumerate(([], ["block_rows=12", "--append"])):
        add(growing, f"{number}.h5", n_rows=50, seed=number)
        assert growing.run(out, *flags) == 0
    before = parts(out)
    for path in sorted(growing.shards.iterdir()):
        shutil.copyfile(path, growing.shards / f"copy{path.name}")
        path.unlink()
    assert growing.run(out, "--append") == 0
    assert parts(out) == before


@pytest.mark.parametrize("flags", [[], ["--append"]], ids=["plain", "append"])
def test_a_touched_or_moved_data_set_is_not_encoded_again(growing: Workspace, finished: Path, flags: list[str]) -> None:
    before = parts(finished)
    features = features_of(finished)
    for path in growing.shards.iterdir():
        path.touch()
    assert growing.run(finished, *flags) == 0
    moved = growing.folder / "moved"
    growing.shards.rename(moved)
    growing.shards = moved
    (moved / "0.h5").rename(moved / "last.h5")
    assert growing.run(finished, *flags) == 0
    assert parts(finished) == before
    assert features_of(finished) == features
    result = Result.open(finished)
    assert result.facts.appends == []
    assert {shard.path for shard in result.shards} == {str(path) for path in moved.iterdir()}
    recording = RecordingDisk()
    assert growing.run(finished, *flags, disk=recording) == 0
    assert recording.calls == []


def test_a_moved_file_is_found_although_a_bad_one_takes_its_place(growing: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%")
    assert growing.run(out, *flags) == 0
    before = features_of(out)
    (growing.shards / "1.h5").rename(growing.shards / "moved.h5")
    (growing.shards / "1.h5").write_bytes(b"bad")
    assert growing.run(out, "--append", *flags) == 0
    assert features_of(out) == before
    assert [Path(bad["file"]).name for bad in Result.open(out).facts.bad_shards] == ["1.h5"]


def test_missing_files_are_an_error_unless_their_rows_are_dropped(growing: Workspace, finished: Path) -> None:
    before = stamps(finished)
    part = parts(finished)[0]
    gone = growing.shards / "0.h5"
    gone.rename(growing.folder / "0.h5")
    assert growing.run(finished, "--append") == 66
    assert mentions((finished / "run.log").read_text(), "0.h5", "--drop-missing")
    assert growing.run(finished) == ConfigError.exit_code
    assert mentions((finished / "run.log").read_text(), "0.h5", "--append --drop-missing")
    assert stamps(finished) == before
    assert growing.run(finished, "--append", "--drop-missing") == 0
    assert len(open_features(finished).features) == 24
    assert not (finished / part).exists()
    assert invalid_entries(finished) == leftovers(finished) == []
    (growing.folder / "0.h5").rename(gone)  # a file that returns is new
    assert growing.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 24 + [2] * 20


def test_dropping_all_rows_is_refused(growing: Workspace, finished: Path) -> None:
    for path in list(growing.shards.iterdir()):
        path.unlink()
    add(growing, "9.h5")
    before = stamps(finished)
    assert growing.run(finished, "--append") == 66
    assert stamps(finished) == before


@pytest.mark.parametrize("is_deleted", [False, True])
def test_damaged_parts_are_encoded_again(growing: Workspace, finished: Path, is_deleted: bool) -> None:
    expected = features_of(finished)
    part = finished / parts(finished)[1]
    if is_deleted:
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    assert growing.run(finished, "--append") == 0
    assert features_of(finished) == expected
    assert invalid_entries(finished) == leftovers(finished) == []
