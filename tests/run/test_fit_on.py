"""Tests of `--fit-on`: rows that it leaves out are encoded, but have no influence on the model."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.commands.table import main as command
from shardpress.features import open_features
from shardpress.model import Model
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from shardpress.settings import replicas
from tests.run.test_cleaning import check_resumption, features_of
from tests.support.bad_shards import NO_LIMITS, Shards, encoded, errors
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

ON_TRAIN = ["--fit-on", "split==train"]
OPTIONS = (
    [],
    ["--scale", "std", "--impute", "median", "--missing-indicator"],
    ["--transform", "log1p", "--clip-quantile", "0.05"],
    ["--row-scale", "norm", "--scale", "auto", "shuffle_window=600"],
)


def is_train(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < 0.6


def add_split(shards: Shards, rows: np.ndarray, train: np.ndarray, n_first: int = 70) -> None:
    """Add rows in two shards, with the extra `split`."""
    for i, part in enumerate((slice(0, n_first), slice(n_first, None))):
        split = np.where(train[part], b"train", b"test")
        write_shard(shards.folder / f"{i}.h5", rows[part], extras={"split": split, "y": np.arange(len(rows))[part]})
        shards.arrays.append(rows[part])


def some_rows(seed: int = 0, n: int = 160) -> np.ndarray:
    return (10 * np.random.default_rng(seed).normal(size=(n, 4))).astype(np.float32)


def same_model(one: Model, other: Model) -> bool:
    arrays = [(model.scaler.minimum, model.scaler.maximum, *model.parameters.values()) for model in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


@pytest.mark.slow
def test_rows_that_are_left_out_do_not_change_the_model(shards: Shards) -> None:
    rows = some_rows()
    train = is_train(len(rows))
    changed = np.where(train[:, None], rows, 100 * some_rows(seed=1) + 7).astype(np.float32)
    for i, flags in enumerate(OPTIONS):
        with case(flags):
            gaps = np.random.default_rng(2).random(rows.shape) < 0.1 * ("--impute" in flags)
            models = []
            for name, values in (("before", rows), ("after", changed)):
                some = shards.another(f"{name}-{i}")
                values = np.where(gaps & train[:, None], np.nan, values)
                add_split(some, values, train)
                assert some.run(*ON_TRAIN, *flags) == 0
                models.append(load_model(some.output))
                assert not verify(str(some.output), 1000).faults
            assert same_model(*models)
            assert not np.isnan(open_features(some.output).features.compute()).any()


@pytest.mark.process
def test_the_range_is_that_of_the_selected_rows(shards: Shards) -> None:
    rows = some_rows()
    train = is_train(len(rows))
    add_split(shards, rows, train)
    assert shards.run(*ON_TRAIN, "--scale", "range") == 0
    model = load_model(shards.output)
    np.testing.assert_array_equal(model.scaler.minimum, rows[train].min(axis=0))
    np.testing.assert_array_equal(model.scaler.maximum, rows[train].max(axis=0))
    np.testing.assert_array_equal(open_features(shards.output).features.compute(), encoded(model, rows))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = some_rows()
    add_split(shards, rows, is_train(len(rows)))
    check_resumption(shards, ON_TRAIN, tmp_path, caplog)


@pytest.mark.slow
def test_blocks_threads_and_replicas_keep_the_rows_apart(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MIN_STEPS", 2), ("_MIN_ROUNDS", 6), ("_MIN_STEPS_PER_ROUND", 1)):
        monkeypatch.setattr(replicas, name, value)
    rows = some_rows(n=400)
    train = is_train(len(rows))
    add_split(shards, rows, train)
    assert shards.run(*ON_TRAIN) == 0
    for i, flags in enumerate((["block_rows=3", "--threads", "1"], ["block_rows=1000", "--threads", "3"])):
        output = tmp_path / str(i)
        assert shards.run(*ON_TRAIN, *flags, output=output) == 0
        assert features_of(output) == features_of(shards.output)
    other = shards.another("other")
    add_split(other, np.where(train[:, None], rows, 5).astype(np.float32), train)
    by_replicas = ["--replicas", "2", "--batch-size", "4"]
    for some in (shards, other):
        assert some.run(*ON_TRAIN, *by_replicas, output=some.folder.parent / "replicas") == 0
    assert same_model(*(load_model(some.folder.parent / "replicas") for some in (shards, other)))


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_worker_processes_train_on_the_same_rows(tmp_path: Path) -> None:
    from shardpress import cli

    folder = tmp_path / "shards"
    folder.mkdir()
    rows = some_rows(n=3000)
    split = np.where(is_train(3000), b"train", b"test")
    write_shard(folder / "0.h5", rows[:1000], extras={"split": split[:1000]})
    write_shard(folder / "1.h5", rows[1000:], extras={"split": split[1000:]})
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        settings = ["--n-features", "2", "--epochs", "2", *ON_TRAIN, *flags]
        assert cli.main("", ["--input", str(folder), "--output", str(tmp_path / name), *settings]) == 0
    assert features_of(tmp_path / "alone") == features_of(tmp_path / "workers")


def test_a_plan_counts_the_steps_of_the_selected_rows(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows()
    train = is_train(len(rows))
    add_split(shards, rows, train)
    flags = ["--n-features", "2", "--batch-size", "8", "--validation-fraction", "0", *ON_TRAIN]
    assert command(["plan", "--json", "--input", str(shards.folder), "--output", str(shards.output), *flags]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert mentions(planned["facts"]["model"], f"{-(-np.count_nonzero(train) // 8)} steps")


def test_bad_rows_count_whether_or_not_they_are_selected(shards: Shards) -> None:
    rows = some_rows()
    train = is_train(len(rows))
    bad = [int(np.flatnonzero(train)[3]), int(np.flatnonzero(~train)[5])]
    rows[bad, 1] = np.nan
    add_split(shards, rows, train)
    assert shards.run(*ON_TRAIN) == 65
    assert shards.run(*ON_TRAIN, "--on-bad-data", "skip", *NO_LIMITS) == 0
    assert np.flatnonzero(~open_features(shards.output).valid.compute()).tolist() == sorted(bad)


@pytest.mark.slow
def test_a_shard_without_the_extra_is_encoded_only(shards: Shards) -> None:
    rows = some_rows()
    add_split(shards, rows, np.ones(len(rows), dtype=bool))
    write_shard(shards.folder / "2.h5", 1000 * rows[:20], extras={"y": np.arange(20)})
    for condition in ("split==train", "split!=test"):
        output = shards.output.with_name(condition.replace("!", "not"))
        assert shards.run("--fit-on", condition, "--scale", "range", output=output) == 0
        model = load_model(output)
        np.testing.assert_array_equal(model.scaler.maximum, rows.max(axis=0))
        assert open_features(output).features.shape[0] == len(rows) + 20


@pytest.mark.process
def test_a_damaged_extra_leaves_its_shard_out(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = some_rows(n=60)
    for i in range(2):
        extras = {"y": np.arange(30 * i, 30 * i + 30)}
        path = shards.folder / f"{i}.h5"
        write_shard(path, rows[30 * i : 30 * i + 30], extras=extras)
        with h5py.File(path, "r+") as file:
            file.create_dataset("split", data=np.ones(30, np.int64), chunks=(10,), fletcher32=True)
    damage(shards.folder / "1.h5", "split", 2)
    assert shards.run("--fit-on", "split==1") == 65
    assert shards.run("--fit-on", "split==1", "--scale", "range", "--on-bad-data", "skip", *NO_LIMITS) == 0
    assert mentions(caplog.text, "fit_on", "1.h5", "split")
    np.testing.assert_array_equal(load_model(shards.output).scaler.maximum, rows[:30].max(axis=0))
    assert open_features(shards.output).valid.compute().all()


@pytest.mark.slow
def test_rows_outside_the_selected_ones_are_counted_or_clipped(shards: Shards, tmp_path: Path) -> None:
    rows = some_rows()
    train = is_train(len(rows))
    rows[~train] *= 10
    add_split(shards, rows, train)
    low = rows[train].min(axis=0)
    high = rows[train].max(axis=0)
    n_outside = int(((rows < low) | (rows > high)).any(axis=1).sum())
    for mode in ("pass", "clip"):
        output = tmp_path / mode
        assert shards.run(*ON_TRAIN, "--on-drift", mode, output=output) == 0
        assert Result.open(output).report()["drift"]["n_outside"] == n_outside
        expected = np.clip(rows, low, high) if mode == "clip" else rows
        np.testing.assert_array_equal(open_features(output).features.compute(), encoded(load_model(output), expected))
        assert not verify(str(output), 1000).faults
    assert shards.run(*ON_TRAIN, "--on-drift", "raise", output=tmp_path / "raise") == 65


@pytest.mark.slow
def test_another_condition_trains_another_model(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = some_rows()
    add_split(shards, rows, is_train(len(rows)))
    assert shards.run() == 0
    before = Result.open(shards.output).encoder
    assert shards.run(*ON_TRAIN) != 0  # the results are not replaced without --overwrite
    assert mentions(errors(caplog), "fit_on", "--overwrite")
    assert shards.run(*ON_TRAIN, "--overwrite") == 0
    assert Result.open(shards.output).encoder != before
    assert shards.run("--fit-on", "split ==  'train'") == 0  # the same condition


@pytest.mark.parametrize(
    ("condition", "code", "words"),
    [
        ("kind==train", 78, ["fit_on", "kind", "split, y"]),
        ("split==trian", 78, ["fit_on", "trian", "160"]),
        ("split<train", 78, ["fit_on", "split", "strings"]),
        ("y==train", 78, ["fit_on", "y", "a number"]),
        ("y==3", 65, ["1 usable row"]),
        ("split", 64, ["--fit-on", "split==train"]),
    ],
)
def test_useless_conditions_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, condition: str, code: int, words: list[str]
) -> None:
    rows = some_rows()
    add_split(shards, rows, is_train(len(rows)))
    assert shards.run("--fit-on", condition, "--batch-size", "1") == code
    assert mentions(caplog.text, *words)


def test_a_given_model_is_not_fitted(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = some_rows()
    add_split(shards, rows, is_train(len(rows)))
    assert shards.run() == 0
    assert shards.run(*ON_TRAIN, "--model", str(shards.output), output=shards.output.with_name("given")) == 64
    assert mentions(errors(caplog), "fit_on and model")


@pytest.mark.slow
def test_the_report_tests_on_the_rows_that_are_left_out(shards: Shards) -> None:
    rows = some_rows(n=300)
    train = is_train(len(rows))
    split = np.where(train, b"train", b"test")
    kind = np.arange(300) % 2
    rows[:, 2] += 60 * kind
    write_shard(shards.folder / "0.h5", rows, extras={"split": split, "y": kind})
    assert shards.run(*ON_TRAIN) == 0
    probe = Result.open(shards.output).report()["sample"]["probe"]
    assert (probe["n_train"], probe["n_test"]) == (train.sum(), (~train).sum())
