"""Tests of differences between a result and its files that earlier versions missed, or judged wrongly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.output.disk import Disk
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import STEPS, FullAfter
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow

N = 100  # rows of a file


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Return an empty folder of shards."""
    return make_workspace()


def some_rows(seed: int, n: int = N) -> np.ndarray:
    """Return rows that depend on two causes."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, 4))
    return (rng.normal(size=(n, 2)) @ mixing + 0.3 * rng.normal(size=(n, 4))).astype(np.float32)


def write_in_place(path: Path, rows: np.ndarray, first: int = 0) -> None:
    """Replace rows of a file without changing its size and modification time."""
    status = path.stat()
    with h5py.File(path, "r+") as file:
        file["X"][first : first + len(rows)] = rows
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def check_features(output: Path, *arrays: np.ndarray) -> None:
    """Check that the features are those of these rows, and that they can be verified."""
    found = open_features(output).features.compute()
    np.testing.assert_allclose(found, load_model(output).encode(np.concatenate(arrays)), atol=1e-5)
    assert not verify(str(output), n_rows=len(found)).faults


def drift_of(output: Path) -> dict[str, Any]:
    """Return the verdict on the rows of the last append."""
    found: dict[str, Any] = Result.open(output).facts.appends[-1]["drift"]
    return found


def reference_error(output: Path) -> float:
    """Return the mean squared error of the rows with which appended rows are compared."""
    (error,) = Result.open(output).statistics()["error/mean"]
    return float(error)


def validation_error(output: Path) -> float:
    training = Result.open(output).model.about["training"]
    return float(training["history"][training["best_epoch"]]["validation_cost"])


# -- the rows with which appended rows are compared ----------------------------------------------------------------


def test_bad_rows_do_not_move_the_validation_rows(workspace: Workspace, out: Path) -> None:
    for number in range(4):
        rows = some_rows(number)
        if number == 0:
            rows[:, 3] = np.nan
        workspace.add_shard(f"{number}.h5", rows)
    flags = ("--on-bad-data", "skip", "--max-bad", "60%", "--validation-fraction", "0.2")
    assert workspace.run(out, *flags) == 0
    workspace.add_shard("4.h5", some_rows(4))
    assert workspace.run(out, "--append") == 0
    assert reference_error(out) == pytest.approx(validation_error(out), rel=1e-5)


def test_changed_rows_do_not_change_what_new_rows_are_compared_with(workspace: Workspace, out: Path) -> None:
    for number in range(4):
        workspace.add_shard(f"{number}.h5", some_rows(number))
    assert workspace.run(out, "--validation-fraction", "0.2") == 0
    write_in_place(workspace.shards / "0.h5", some_rows(10))
    workspace.add_shard("4.h5", some_rows(4))
    assert workspace.run(out, "--append") == 0
    assert reference_error(out) == pytest.approx(validation_error(out), rel=1e-5)


def test_a_touched_file_does_not_change_the_verdict(workspace: Workspace, out: Path) -> None:
    for number in range(4):
        workspace.add_shard(f"{number}.h5", some_rows(number, n=300))
    assert workspace.run(out) == 0
    untouched = shutil.copytree(out, out.with_name("untouched"))
    os.utime(workspace.shards / "0.h5")
    assert workspace.run(out, "--append", "--on-append-drift", "fail") == 0
    assert Result.open(out).facts.appends == []
    noise = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
    workspace.add_shard("4.h5", some_rows(4, n=300) + noise)
    for output in (out, untouched):
        assert workspace.run(output, "--append", "--on-append-drift", "fail") == 80
        assert workspace.run(output, "--append") == 0
    assert drift_of(out) == drift_of(untouched)


@pytest.mark.parametrize("flags", [["--seed", "7"], ["--n-features", "3"]])
def test_a_retraining_does_not_stop_twice_because_of_an_edit(
    workspace: Workspace, out: Path, flags: Sequence[str]
) -> None:
    """With ``--verify sizes``, an edit that keeps the time is found only when the rows are encoded."""
    for number in range(3):
        workspace.add_shard(f"{number}.h5", some_rows(number))
    assert workspace.run(out, "--verify", "sizes") == 0
    write_in_place(workspace.shards / "1.h5", some_rows(10))
    codes = [workspace.run(out, "--retrain", *flags, "--verify", "sizes") for _ in range(2)]
    assert codes == [65, 0]
    check_features(out, some_rows(0), some_rows(10), some_rows(2))


# -- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_new_labels", [False, True])
def test_the_same_bytes_with_other_column_names_are_other_rows(
    workspace: Workspace, out: Path, has_new_labels: bool
) -> None:
    names = ["a", "b", "c", "d"]
    order = [3, 0, 1, 2]
    arrays = [some_rows(number) * np.arange(1, 5, dtype=np.float32) for number in range(5)]

    def write(number: int, columns: Sequence[str], **extras: object) -> None:
        path = workspace.shards / f"{number}.h5"
        write_shard(path, arrays[number], extras=extras)
        with h5py.File(path, "r+") as file:
            file["X"].attrs["columns"] = columns

    for number in range(5):
        write(number, names)
    flags = ("--match-columns", "name")
    assert workspace.run(out, *flags) == 0
    for number in range(5):
        extras = {"y": np.arange(N)} if has_new_labels else {}
        write(number, [names[i] for i in order] if number == 1 else names, **extras)
    include = ("--include", "y") if has_new_labels else ()
    assert workspace.run(out, "--append", *flags, *include) == 0
    arrays[1] = arrays[1][:, np.argsort(order)]
    check_features(out, *arrays)


# -- categories ----------------------------------------------------------------------------------------------------


class Labelled:
    """Files with a categorical extra, as AnnData writes it, and runs over them."""

    def __init__(self, workspace: Workspace, output: Path) -> None:
        self._workspace = workspace
        self._output = output
        self._labels: dict[int, list[str]] = {}

    def put(self, number: int, categories: str) -> None:
        """Write a file whose rows have these labels in turn."""
        labels = [categories[i % len(categories)] for i in range(N)]
        stored = sorted(categories)
        path = write_shard(self._workspace.shards / f"{number}.h5", some_rows(number))
        with h5py.File(path, "r+") as file:
            group = file.create_group("obs/kind")
            group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            group["codes"] = np.array([stored.index(label) for label in labels], np.int8)
            group["categories"] = stored
        self._labels[number] = labels

    def run(self, *flags: str, disk: Disk | None = None) -> int:
        return self._workspace.run(self._output, "--include", "obs/kind", *flags, disk=disk)

    def check(self) -> None:
        """Check the labels in every format."""
        expected = [label for _, labels in sorted(self._labels.items()) for label in labels]
        found = open_features(self._output)
        assert found.categories["kind"][found.extras["kind"].compute()].tolist() == expected
        assert found.to_pandas()["kind"].tolist() == expected
        with h5py.File(self._output / "index.h5") as index:
            categories = [each.decode() for each in index["kind"].attrs["categories"]]
            assert [categories[code] for code in index["kind"][()]] == expected
        points = Result.open(self._output).report()["sample"]["points"]
        assert set(points["names"]) == set(expected)


@pytest.fixture
def labelled(workspace: Workspace, out: Path) -> Labelled:
    return Labelled(workspace, out)


def test_labels_survive_new_categories_of_new_and_changed_files(labelled: Labelled) -> None:
    labelled.put(0, "ab")
    assert labelled.run() == 0
    labelled.check()
    for number, categories in ((1, "ac"), (0, "ad"), (2, "ae"), (1, "ba")):
        labelled.put(number, categories)
        assert labelled.run("--append") == 0
        labelled.check()


def test_labels_survive_if_new_categories_come_before_old_ones(labelled: Labelled) -> None:
    labelled.put(0, "ab")
    assert labelled.run() == 0
    labelled.put(1, "bd")
    labelled.put(2, "ab")
    assert labelled.run("--append") == 0
    labelled.check()


def test_labels_survive_new_categories_after_an_interruption(labelled: Labelled) -> None:
    labelled.put(0, "ab")
    assert labelled.run() == 0
    labelled.put(2, "ac")
    assert labelled.run("--append", disk=FullAfter("part", 2)) == 74
    labelled.put(1, "ad")
    assert labelled.run("--append") == 0
    labelled.check()


# -- files that are edited in place --------------------------------------------------------------------------------


def test_each_edit_in_place_is_found(workspace: Workspace, out: Path) -> None:
    rows = some_rows(0, n=500)
    path = workspace.add_shard("0.h5", rows)
    workspace.add_shard("1.h5", some_rows(1))
    assert workspace.run(out) == 0
    for first in (0, 10, 490):
        rows[first : first + 10] = some_rows(first + 1, n=10)
        write_in_place(path, rows[first : first + 10], first)
        assert workspace.run(out, "--append") == 0
        check_features(out, rows, some_rows(1))
    write_in_place(path, np.full((1, 4), np.nan, np.float32), 30)
    assert workspace.run(out, "--append") == 65


def test_edits_before_an_interrupted_training_are_found(workspace: Workspace, out: Path) -> None:
    arrays = [some_rows(number) for number in range(3)]
    for number, rows in enumerate(arrays):
        workspace.add_shard(f"{number}.h5", rows)
    assert workspace.run(out) == 0
    arrays[0] = 0.9 * arrays[0][::-1]
    write_in_place(workspace.shards / "0.h5", arrays[0])
    assert workspace.run(out, *STEPS, "--seed", "1", "--retrain", disk=FullAfter("checkpoint", 2)) == 74
    assert workspace.run(out, "--append") == 0
    check_features(out, *arrays)
    arrays.append(some_rows(3))
    workspace.add_shard("3.h5", arrays[3])
    assert workspace.run(out, "--append") == 0
    check_features(out, *arrays)


def test_edits_after_a_refused_append_are_found(workspace: Workspace, out: Path) -> None:
    arrays = [some_rows(number) for number in range(3)]
    for number, rows in enumerate(arrays):
        workspace.add_shard(f"{number}.h5", rows)
    assert workspace.run(out) == 0
    new = some_rows(3, n=400) + 3 * np.random.default_rng(5).normal(size=(400, 4)).astype(np.float32)
    path = workspace.add_shard("3.h5", new)
    assert workspace.run(out, "--append", "--on-append-drift", "fail") == 80
    new[:30] = some_rows(4, n=30)
    write_in_place(path, new[:30])
    assert workspace.run(out, "--append") == 0
    check_features(out, *arrays, new)
    recording = RecordingDisk()
    assert workspace.run(out, "--append", disk=recording) == 0
    assert recording.calls == []


# -- maps between generations --------------------------------------------------------------------------------------


def check_map(output: Path) -> None:
    """Check the map to the first generation, which was fitted to the rows of one file."""
    (found,) = Result.open(output).facts.maps
    assert found.n_rows == N
    assert min(r2 or 0.0 for r2 in found.r2) > 0.5  # with rows in another order, it would be about 0


def test_maps_are_fitted_to_rows_that_have_not_changed(workspace: Workspace, out: Path) -> None:
    for number in range(3):
        workspace.add_shard(f"{number}.h5", some_rows(number))
    assert workspace.run(out) == 0
    for number in range(2):
        write_in_place(workspace.shards / f"{number}.h5", some_rows(number)[::-1])
    assert workspace.run(out, "--seed", "1", "--retrain") == 0
    check_map(out)


@pytest.mark.parametrize("changed", ["shards", "others"])
def test_maps_do_not_confuse_files_with_the_same_name(workspace: Workspace, out: Path, changed: str) -> None:
    others = workspace.folder / "others"
    others.mkdir()
    for seed, folder in enumerate((workspace.shards, others)):
        write_shard(folder / "0.h5", some_rows(seed))
    flags = ("--input", str(others))
    assert workspace.run(out, *flags) == 0
    path = workspace.folder / changed / "0.h5"
    write_shard(path, some_rows(("shards", "others").index(changed))[::-1])
    assert workspace.run(out, *flags, "--seed", "1", "--retrain") == 0
    check_map(out)
