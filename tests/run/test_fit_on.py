"""Tests of `--fit-on`: rows that it leaves out are encoded, but have no influence on the model."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result, Use, load_model
from tests.support.bad_shards import SKIP, Shards, encoded
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions
from tests.support.standin import Workspace

N = 240
ON_TRAIN = ["--fit-on", "split==train"]
OPTIONS = (
    [],
    ["--scale", "std", "--impute", "median", "--missing-indicator", "--transform", "log1p"],
    ["--row-scale", "norm", "--scale", "auto", "--clip-quantile", "0.05", "shuffle_window=600"],
    ["--replicas", "2", "--batch-size", "4"],
)


def some_rows(seed: int = 0) -> np.ndarray:
    return (10 * np.random.default_rng(seed).normal(size=(N, 4))).astype(np.float32)


def add_split(shards: Shards, rows: np.ndarray) -> np.ndarray:
    """Add rows in two shards, with the extra `split`. Return the selected rows."""
    is_train = np.random.default_rng(0).random(len(rows)) < 0.6
    for i, part in enumerate((slice(0, 70), slice(70, None))):
        split = np.where(is_train[part], b"train", b"test")
        write_shard(shards.folder / f"{i}.h5", rows[part], extras={"split": split, "y": np.arange(len(rows))[part]})
    return is_train


@pytest.mark.slow
def test_rows_that_are_left_out_do_not_change_the_model(shards: Shards, replicas_of_few_rows: None) -> None:
    rows = some_rows()
    is_train = add_split(shards, rows)
    changed = np.where(is_train[:, None], rows, 100 * some_rows(seed=1) + 7).astype(np.float32)
    for i, flags in enumerate(OPTIONS):
        with case(flags):
            gaps = np.random.default_rng(2).random(rows.shape) < 0.1 * ("--impute" in flags)
            models = []
            for name, values in (("before", rows), ("after", changed)):
                some = shards.another(f"{name}-{i}")
                add_split(some, np.where(gaps & is_train[:, None], np.nan, values))
                assert some.run(*ON_TRAIN, *flags) == 0
                models.append(load_model(some.output))
                assert not verify(str(some.output), 1000).faults
            assert models[0].fingerprint == models[1].fingerprint
            assert not np.isnan(open_features(some.output).features.compute()).any()


@pytest.mark.process
def test_the_range_is_that_of_the_selected_rows(shards: Shards) -> None:
    """Rows outside of it are counted. A file without the extra is encoded only."""
    rows = some_rows()
    is_train = add_split(shards, rows)
    rows[~is_train] *= 10
    add_split(shards, rows)
    more = 1000 * rows[:20]
    write_shard(shards.folder / "2.h5", more, extras={"y": np.arange(20)})
    whole = np.concatenate([rows, more])
    low = rows[is_train].min(axis=0)
    high = rows[is_train].max(axis=0)
    n_outside = int(((whole < low) | (whole > high)).any(axis=1).sum())
    for condition, mode in (("split==train", "pass"), ("split!=test", "clip")):
        output = shards.output.with_name(mode)
        flags = ("--fit-on", condition, "--scale", "range", "--on-drift", mode)
        assert shards.run(*flags, output=output) == 0
        model = load_model(output)
        np.testing.assert_array_equal((model.scaler.minimum, model.scaler.maximum), (low, high))
        expected = np.clip(whole, low, high) if mode == "clip" else whole
        found = open_features(output)
        np.testing.assert_array_equal(found.features.compute(), encoded(model, expected))
        assert Result.open(output).facts.rows.drift.n_outside == n_outside
        assert not verify(str(output), 1000).faults
    assert shards.run(*ON_TRAIN, "--on-drift", "raise", output=shards.output.with_name("raise")) == 65


@pytest.mark.process
def test_a_damaged_extra_leaves_its_shard_out(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = some_rows()[:60]
    for i in range(2):
        path = shards.folder / f"{i}.h5"
        write_shard(path, rows[30 * i : 30 * i + 30])
        with h5py.File(path, "r+") as file:
            file.create_dataset("split", data=np.ones(30, np.int64), chunks=(10,), fletcher32=True)
    damage(shards.folder / "1.h5", "split", 2)
    assert shards.run("--fit-on", "split==1") == 65
    assert shards.run("--fit-on", "split==1", "--scale", "range", *SKIP) == 0
    assert mentions(caplog.text, "fit_on", "1.h5", "split")
    np.testing.assert_array_equal(load_model(shards.output).scaler.maximum, rows[:30].max(axis=0))
    assert open_features(shards.output).valid.compute().all()


def test_a_path_names_no_other_extra_with_the_same_last_part(workspace: Workspace, out: Path) -> None:
    for path in workspace.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["a/y"] = np.arange(len(file["X"])) % 2
            file["a/kind"] = np.arange(len(file["X"])) % 2
    for flags in (["--fit-on", "a/y==1"], ["--target", "a/y"], ["--labels", "a/y"]):
        with case(flags):
            assert workspace.run(out, *flags) == 78
    for path in ("a/kind", "kind", "/a/kind"):
        output = out.with_name(path.replace("/", "-"))
        assert workspace.run(output, "--include", "a/kind", "--fit-on", f"{path}==1") == 0
        assert Result.open(output).use().tolist().count(Use.LEFT_OUT) == np.count_nonzero(
            open_features(output).extras["kind"].compute() == 0
        )
