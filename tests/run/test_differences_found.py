"""Tests of differences between a result and its files that earlier versions missed, or judged wrongly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result, load_model
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.scan_stage import ScanStage
from tests.support.helpers import write_shard
from tests.support.interruptions import FullAfter, undisturbed_features
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow

N = 100  # rows of a file


def some_rows(seed: int, n: int = N) -> np.ndarray:
    """Return rows that depend on two causes."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, 4))
    return (rng.normal(size=(n, 2)) @ mixing + 0.3 * rng.normal(size=(n, 4))).astype(np.float32)


def write_in_place(path: Path, rows: np.ndarray) -> None:
    """Replace the first rows of a file without changing its size and modification time."""
    status = path.stat()
    with h5py.File(path, "r+") as file:
        file["X"][: len(rows)] = rows
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


# -- the rows with which appended rows are compared ----------------------------------------------------------------


def test_the_rows_of_the_comparison_are_those_of_the_validation(empty: Workspace, out: Path) -> None:
    """Neither bad rows nor an edited file nor a touched one move them."""
    arrays = [some_rows(number) for number in range(5)]
    arrays[0][:, 3] = np.nan
    for number in range(4):
        empty.add_shard(f"{number}.h5", arrays[number])
    flags = ("--on-bad-data", "skip", "--max-bad", "60%", "--validation-fraction", "0.2")
    assert empty.run(out, *flags) == 0
    os.utime(empty.shards / "1.h5")
    write_in_place(empty.shards / "2.h5", some_rows(10))
    empty.add_shard("4.h5", arrays[4])
    assert empty.run(out, "--append") == 0
    result = Result.open(out)
    training = result.model.about.training
    expected = training.history[training.best_epoch].validation_cost
    assert result.statistics()["error/mean"] == pytest.approx(expected, rel=1e-5)


def test_a_retraining_does_not_stop_twice_because_of_an_edit(empty: Workspace, out: Path) -> None:
    """With ``--verify sizes``, an edit that keeps the time is found only when the rows are encoded."""
    for number in range(3):
        empty.add_shard(f"{number}.h5", some_rows(number))
    assert empty.run(out, "--verify", "sizes") == 0
    write_in_place(empty.shards / "1.h5", some_rows(10))
    codes = [empty.run(out, "--retrain", "--seed", "7", "--verify", "sizes") for _ in range(2)]
    assert codes == [65, 0]
    found = open_features(out).features.compute()
    rows = np.concatenate([some_rows(0), some_rows(10), some_rows(2)])
    np.testing.assert_allclose(found, load_model(out).encode(rows), atol=1e-5)
    assert not verify(str(out), n_rows=len(found)).faults


@pytest.mark.parametrize(("stage", "is_restored"), [(ScanStage, False), (EncodingStage, True)])
def test_contents_that_change_during_a_run_stop_it(
    empty: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, is_restored: bool
) -> None:
    """Results of the stopped run are not used if they have rows of both contents."""
    path = empty.add_shard("0.h5", some_rows(0))
    make = stage.make

    def make_and_change(*arguments: Any) -> Any:
        found = make(*arguments)
        write_in_place(path, some_rows(10, n=1))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(stage, "make", make_and_change)
        assert empty.run(out) == 65
    if is_restored:
        write_in_place(path, some_rows(0))
    assert empty.run(out) == 0
    assert features_of(out) == undisturbed_features(empty)


# -- categories ----------------------------------------------------------------------------------------------------


def test_labels_survive_new_categories_after_an_interruption(empty: Workspace, out: Path) -> None:
    flags = ("--include", "obs/kind")
    labels = {}
    for number, categories, more, disk in (
        (0, "ab", [], None),
        (2, "ac", ["--append"], FullAfter("part", 2)),
        (1, "ad", ["--append"], None),
    ):
        labels[number] = [categories[i % 2] for i in range(N)]
        path = write_shard(empty.shards / f"{number}.h5", some_rows(number))
        with h5py.File(path, "r+") as file:
            group = file.create_group("obs/kind")
            group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            group["codes"] = np.arange(N, dtype=np.int8) % 2
            group["categories"] = list(categories)
        assert empty.run(out, *flags, *more, disk=disk) == (74 if disk else 0)
    expected = labels[0] + labels[1] + labels[2]
    assert open_features(out).to_pandas()["kind"].tolist() == expected
    with h5py.File(out / "index.h5") as index:
        names = [each.decode() for each in index["kind"].attrs["categories"]]
        assert [names[code] for code in index["kind"][()]] == expected


# -- maps between generations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", ["shards", "others"])
def test_maps_are_fitted_to_rows_that_have_not_changed(empty: Workspace, out: Path, changed: str) -> None:
    """Files with the same name in two folders are not confused."""
    others = empty.folder / "others"
    others.mkdir()
    for seed, folder in enumerate((empty.shards, others)):
        write_shard(folder / "0.h5", some_rows(seed))
    flags = ("--input", str(others))
    assert empty.run(out, *flags) == 0
    seed = ("shards", "others").index(changed)
    write_in_place(empty.folder / changed / "0.h5", some_rows(seed)[::-1])
    assert empty.run(out, *flags, "--seed", "1", "--retrain") == 0
    (found,) = Result.open(out).facts.model.maps
    assert found.n_rows == N
    assert min(r2 or 0.0 for r2 in found.r2) > 0.5  # with rows in another order, it would be about 0
