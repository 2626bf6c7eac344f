"""Tests of `--target`: targets train the features of the selected rows, and no other row's target has any influence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from shardpress.commands.table import main as command
from shardpress.features import open_features
from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.report.baselines import BASELINES
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from shardpress.settings import replicas
from tests.run.test_cleaning import check_resumption, features_of
from tests.support import standin
from tests.support.bad_shards import NO_LIMITS, Shards, errors
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

N = 200
ON_TRAIN = ["--fit-on", "split==train"]
# The stand-in for the kernels always applies momentum.
LEARNING = ["--target", "kind", "--optimizer", "momentum", "--learning-rate", "0.05", "--epochs", "6"]

ON_SCORE = ["--target", "score", "--optimizer", "momentum"]


def add(shards: Shards, seed: int = 0, n: int = N, **changes: Any) -> dict[str, np.ndarray]:
    """Add two shards whose third column depends on the extra `kind`, and return all values."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    rows[:, 2] += kind
    values = {"rows": rows, "kind": kind, "split": np.where(rng.random(n) < 0.7, b"train", b"test"), "y": np.arange(n)}
    values |= changes
    for i, part in enumerate((slice(0, n // 3), slice(n // 3, None))):
        extras = {name: array[part] for name, array in values.items() if name != "rows"}
        write_shard(shards.folder / f"{i}.h5", values["rows"][part], extras=extras)
        shards.arrays.append(values["rows"][part])
    return values


def same(one: Model, other: Model) -> bool:
    return all(np.array_equal(array, other.parameters[name]) for name, array in one.parameters.items())


@pytest.mark.process
def test_the_model_has_no_head_but_says_what_it_was_trained_for(shards: Shards) -> None:
    add(shards)
    assert shards.run(*ON_TRAIN, *LEARNING) == 0
    model = load_model(shards.output)
    assert model.network.head is None
    assert set(model.parameters) == {"W", "b_hidden", "b_output"}
    target = model.about["training"]["target"]
    assert (target["name"], target["kind"], target["n_classes"]) == ("kind", "classes", 3)
    history = model.about["training"]["history"]
    assert len(history) == 6
    assert all(0 <= epoch["accuracy"] <= 1 and epoch["loss"] > 0 for epoch in history)
    assert not verify(str(shards.output), 1000).faults
    summary = Result.open(shards.output).report()["summary"]
    assert summary["cost"] == pytest.approx(history[-1]["validation_cost"])


@pytest.mark.slow
def test_targets_change_the_features(shards: Shards, tmp_path: Path) -> None:
    add(shards)
    models = []
    for name, flags in (("with", LEARNING), ("without", LEARNING[2:]), ("strong", [*LEARNING, "--target-weight", "5"])):
        assert shards.run(*ON_TRAIN, *flags, output=tmp_path / name) == 0
        models.append(load_model(tmp_path / name))
    assert not any(same(models[i], models[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.process
@pytest.mark.parametrize("stride", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_rows_and_targets_that_are_left_out_have_no_influence(shards: Shards, stride: int) -> None:
    """If only each tenth row has a target, the classes of other rows are estimated."""
    values = add(shards)
    is_test = values["split"] == b"test"
    has_target = np.arange(N) % stride == 0
    kinds = np.where(has_target, values["kind"], np.nan)
    add(shards, kind=kinds)
    other = shards.another("other")
    kinds = np.where(is_test, 2 - kinds, kinds)
    kinds[is_test.argmax()] = 77  # a class that no training row has
    rows = values["rows"].copy()
    rows[is_test] += 5
    add(other, kind=kinds, rows=rows)
    for some in (shards, other):
        assert some.run(*ON_TRAIN, *LEARNING) == 0
    assert load_model(shards.output).about["training"]["target"]["n_classes"] == 3
    assert same(load_model(shards.output), load_model(other.output))


@pytest.mark.slow
def test_rows_without_a_target_are_used_for_the_reconstruction(shards: Shards, tmp_path: Path) -> None:
    score = np.random.default_rng(0).normal(size=N)
    score[::2] = np.nan
    values = add(shards, score=score)
    assert shards.run(*ON_SCORE, output=tmp_path / "some") == 0
    target = load_model(tmp_path / "some").about["training"]["target"]
    assert (target["kind"], target["share"]) == ("numbers", pytest.approx(0.5))
    other = shards.another("other")
    rows = values["rows"].copy()
    rows[1] += 3  # in the range of the others
    add(other, score=score, rows=np.clip(rows, values["rows"].min(axis=0), values["rows"].max(axis=0)))
    assert other.run(*ON_SCORE) == 0
    assert not same(load_model(tmp_path / "some"), load_model(other.output))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(shards)
    check_resumption(shards, [*ON_TRAIN, *LEARNING], tmp_path, caplog)


@pytest.mark.slow
def test_blocks_threads_and_the_order_of_reading_change_no_bit(shards: Shards, tmp_path: Path) -> None:
    add(shards)
    for i, window in enumerate(([], ["shuffle_window=500"])):
        results = []
        for j, flags in enumerate((["--threads", "1"], ["--threads", "3", "block_rows=3"])):
            output = tmp_path / f"{i}-{j}"
            assert shards.run(*ON_TRAIN, *LEARNING, *window, *flags, output=output) == 0
            results.append(features_of(output))
        assert results[0] == results[1]
    # Without a window, all rows are in memory; otherwise they are streamed.
    assert not same(load_model(tmp_path / "0-0"), load_model(tmp_path / "1-0"))


@pytest.mark.slow
def test_each_row_is_trained_with_its_own_target(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MIN_STEPS", 2), ("_MIN_ROUNDS", 6), ("_MIN_STEPS_PER_ROUND", 1)):
        monkeypatch.setattr(replicas, name, value)
    values = add(shards, n=600)
    column = values["rows"][:, 1].astype(np.float64)
    add(shards, n=600, score=column)  # the target of a row is its second column
    is_train = values["split"] == b"train"
    mean = column[is_train].mean()
    deviation = column[is_train].std()
    n_checked = []
    begin = standin.TrainingStep.begin

    def check(self: Any, minibatches: np.ndarray, noise: Any, batch_size: int, targets: np.ndarray) -> None:
        rows = minibatches if self._resident is None else self._resident[minibatches]
        np.testing.assert_allclose(targets, (rows[:, 1] - mean) / deviation, atol=1e-5)
        n_checked.append(len(rows))
        begin(self, minibatches, noise, batch_size, targets)

    monkeypatch.setattr(standin.TrainingStep, "begin", check)
    streamed = ["shuffle_window=2000"]
    for i, flags in enumerate(([], streamed, ["--replicas", "2"], ["--replicas", "2", *streamed])):
        with case(flags):
            n_checked.clear()
            settings = [*ON_SCORE, "--batch-size", "4", "--epochs", "4", *flags]
            assert shards.run(*ON_TRAIN, *settings, output=tmp_path / str(i)) == 0
            assert sum(n_checked) >= 4 * 0.9 * is_train.sum()


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_worker_processes_learn_the_same_targets(tmp_path: Path) -> None:
    from shardpress import cli

    folder = tmp_path / "shards"
    folder.mkdir()
    some = Shards.__new__(Shards)
    some.folder = folder
    some.arrays = []
    add(some, n=9000)
    results = []
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        settings = ["--n-features", "2", "--epochs", "2", "--replicas", "2", *ON_TRAIN, "--target", "kind", *flags]
        assert cli.main("", ["--input", str(folder), "--output", str(tmp_path / name), *settings]) == 0
        results.append(features_of(tmp_path / name))
    assert results[0] == results[1]


@pytest.mark.process
def test_other_values_of_the_same_name_train_again(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = add(shards)
    extras = {"a/kind": values["kind"], "b/kind": values["kind"][::-1], "split": values["split"]}
    for path in shards.folder.iterdir():
        path.unlink()
    write_shard(shards.folder / "0.h5", values["rows"], extras=extras)
    one, other = (["--include", f"{group}/kind", *ON_TRAIN, *LEARNING] for group in "ab")
    assert shards.run(*other, output=tmp_path / "fresh") == 0
    assert shards.run(*one) == 0
    assert not same(load_model(shards.output), load_model(tmp_path / "fresh"))
    caplog.clear()
    assert shards.run(*other) == 78
    assert mentions(errors(caplog), "the values of target")
    assert shards.run(*other, "--retrain") == 0
    assert open_features(shards.output).manifest["generation"] == 2
    assert features_of(shards.output) == features_of(tmp_path / "fresh")
    assert shards.run(*one, "--overwrite") == 0
    assert shards.run(*other, "--overwrite") == 0
    assert features_of(shards.output) == features_of(tmp_path / "fresh")
    caplog.clear()
    assert shards.run(*other, "--overwrite", "--on-drift", "clip") == 0
    assert same(load_model(shards.output), load_model(tmp_path / "fresh"))
    assert "training:" not in caplog.text


@pytest.mark.process
def test_unreadable_shards_keep_the_targets_of_the_others(shards: Shards, tmp_path: Path) -> None:
    values = add(shards)
    third = {"kind": np.full(30, 1), "split": np.full(30, b"train"), "y": np.arange(30)}
    write_shard(shards.folder / "00.h5", values["rows"][:30], extras=third, chunks=(10, 4), fletcher32=True)
    damage(shards.folder / "00.h5", "X", 1)
    flags = [*ON_TRAIN, *LEARNING, "--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags) == 0
    found = open_features(shards.output)
    assert np.flatnonzero(~found.valid.compute()).tolist() == list(range(66, 96))
    history = load_model(shards.output).about["training"]["history"]
    assert history[-1]["accuracy"] is not None


def test_training_on_all_rows_is_warned_of(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    add(shards)
    assert shards.run(*LEARNING) == 0
    assert mentions(caplog.text, "WARNING", "target", "kind", "--fit-on")
    caplog.clear()
    assert shards.run(*LEARNING, *ON_TRAIN, "--overwrite") == 0
    assert not mentions(caplog.text, "WARNING", "target", "--fit-on")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--target", "sort"], 78, ["target", "sort", "kind, split, y"]),
        (["--target", "same"], 78, ["target", "same", "only one value"]),
        (["--target-weight", "2"], 64, ["target_weight", "target"]),
        (["--target", "kind", "--target-weight", "0"], 64, ["--target-weight", "above 0"]),
        (["--target", "kind", "--model", "m"], 64, ["target and model"]),
    ],
)
def test_useless_targets_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, flags: list[str], code: int, words: list[str]
) -> None:
    extra = {} if "sort" in flags else {"same": np.ones(N, dtype=np.int64)}
    add(shards, **extra)
    assert shards.run(*flags) == code
    assert mentions(errors(caplog), *words)


@pytest.mark.parametrize("setting", ["target", "labels"])
def test_numbers_and_strings_in_one_extra_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    rows = add(shards)["rows"][:30]
    write_shard(shards.folder / "2.h5", rows, extras={"kind": np.array([b"0", b"1", b"2"] * 10), "y": np.arange(30)})
    assert shards.run(f"--{setting}", "kind") == 65
    assert mentions(errors(caplog), setting, "kind", "left out", "int64", "0.h5", "|S1", "2.h5")
    assert not shards.output.exists()


@pytest.mark.parametrize("n", [N, 3000])
def test_a_plan_measures_the_training_of_a_head(shards: Shards, capsys: Any, n: int) -> None:
    """200 rows have too few validation rows to watch; 3000 rows have more than a hundred."""
    add(shards, n=n)
    flags = ["--input", str(shards.folder), "--output", str(shards.output), "--n-features", "2", *ON_TRAIN]
    assert command(["plan", *flags, "--target", "kind"]) == 0
    assert mentions(capsys.readouterr().out, "no problems found")
    assert not h5py.is_hdf5(str(shards.output / "index.h5"))


@pytest.mark.slow
def test_random_labels_score_at_chance_on_rows_that_are_left_out(shards: Shards) -> None:
    """The rows contain no information about the labels, which the features could only have memorized."""
    rng = np.random.default_rng(0)
    n = 900
    values = {"rows": rng.normal(size=(n, 4)).astype(np.float32), "kind": rng.integers(0, 2, n)}
    add(shards, n=n, **values)
    assert shards.run(*ON_TRAIN, *LEARNING, "--target-weight", "5") == 0
    probe = Result.open(shards.output).report()["sample"]["probe"]
    assert probe["labels"] == "kind"
    assert abs(probe["features"] - 0.5) < 0.1


@pytest.mark.slow
def test_supervised_features_are_marked_and_not_scored_on_their_rows(shards: Shards, tmp_path: Path) -> None:
    add(shards)
    for name, flags, fit_on in (("all", [], None), ("some", ON_TRAIN, "split == train")):
        output = tmp_path / name
        assert shards.run(*LEARNING, *flags, output=output) == 0
        mark = {"name": "kind", "kind": "classes", "fit_on": fit_on}
        assert open_features(output).manifest["target"] == mark
        assert Result.open(output).report()["target"] == mark
        assert mentions((output / "report.html").read_text(), "supervised", "kind")
        exported = onnx.load_model_from_string(encoder_onnx(load_model(output)))
        properties = {each.key: each.value for each in exported.metadata_props}
        assert json.loads(properties["target"]) == mark
    judgment = Result.open(tmp_path / "all").report()["judgment"]
    assert mentions(judgment["classifier"], "--fit-on")

    other = shards.another("other")
    add(other, seed=5)
    assert other.run("--model", str(tmp_path / "all"), output=tmp_path / "new") == 0
    target = open_features(tmp_path / "new").manifest["target"]
    assert target == {"name": "kind", "kind": "classes", "fit_on": None}


# -- the judgment of the target --------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_number_is_judged_by_r2_on_rows_that_are_left_out(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    """The extra `kind`, which the report would choose as labels, is not the target."""
    values = add(shards, n=600)
    score = values["rows"].sum(axis=1, dtype=np.float64)
    score[::7] = np.nan
    values = add(shards, n=600, score=score)
    is_test = (values["split"] == b"test") & ~np.isnan(score)
    assert shards.run(*ON_TRAIN, *ON_SCORE) == 0
    report = Result.open(shards.output).report()
    probe = report["sample"]["probe"]
    assert (probe["labels"], probe["score"], probe["n_test"]) == ("score", "R2", is_test.sum())
    assert probe["n_train"] == np.count_nonzero(~np.isnan(score)) - is_test.sum()
    assert probe["columns"] == pytest.approx(1, abs=0.01), "the score is a linear function of the columns"
    assert {*BASELINES, "constant"} == set(probe["margins"])
    sentence = report["judgment"]["classifier"]
    assert mentions(sentence, "score", is_test.sum(), "R2", f"{probe['features']:.3f}")
    assert sentence in capsys.readouterr().out
    for name in ("columns", "standardized", "components"):
        assert mentions(text_of(page_of(report)), f"{probe[name]:.3f}"), name
    assert "--scale" not in report["judgment"]["suggestion"]

    assert shards.run(*ON_TRAIN, *ON_SCORE, "--labels", "kind") == 0
    probe = Result.open(shards.output).report()["sample"]["probe"]
    assert (probe["labels"], probe["score"]) == ("kind", "accuracy")


@pytest.mark.slow
def test_validation_rows_test_a_target_if_no_other_rows_are_left_out(shards: Shards, tmp_path: Path) -> None:
    score = np.random.default_rng(0).normal(size=800)
    add(shards, n=800, score=score)
    for fraction, n_test in (("0.25", 200), ("0.03", None)):
        output = tmp_path / fraction
        assert shards.run(*ON_SCORE, "--validation-fraction", fraction, output=output) == 0
        report = Result.open(output).report()
        probe = report["sample"]["probe"]
        if n_test is None:
            assert mentions(report["judgment"]["classifier"], 30, "score", "--fit-on")
            assert report["judgment"]["is_good"]
        else:
            assert (probe["n_test"], probe["n_train"]) == (n_test, 800 - n_test)
            assert probe["features"] < 0.1, "the score is random"


@pytest.mark.slow
def test_masked_rows_of_a_target_are_left_out(shards: Shards) -> None:
    values = add(shards, n=300, score=np.random.default_rng(0).normal(size=300))
    write_shard(shards.folder / "2.h5", values["rows"], extras={"kind": values["kind"], "split": values["split"]})
    assert shards.run(*ON_TRAIN, *ON_SCORE) == 0
    probe = Result.open(shards.output).report()["sample"]["probe"]
    assert (probe["labels"], probe["n_test"] + probe["n_train"]) == ("score", 300)
