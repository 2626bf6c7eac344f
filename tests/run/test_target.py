"""Tests of `--target`: targets train the features of the selected rows, and no other row's target has any influence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shardpress.features import open_features
from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import Result, load_model
from tests.support import standin
from tests.support.bad_shards import Shards, errors
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.logged import mentions
from tests.support.standin import features_of

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
    return values


def same(one: Model, other: Model) -> bool:
    return all(np.array_equal(array, other.parameters[name]) for name, array in one.parameters.items())


def report_of(output: Path) -> dict[str, Any]:
    return Result.open(output).report()


@pytest.mark.process
def test_the_model_has_no_head_but_says_what_it_was_trained_for(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(shards)
    assert shards.run(*ON_TRAIN, *LEARNING) == 0
    assert not mentions(caplog.text, "WARNING", "target", "--fit-on")
    model = load_model(shards.output)
    assert model.network.head is None
    assert set(model.parameters) == {"W", "b_hidden", "b_output"}
    target = model.about["training"]["target"]
    assert (target["name"], target["kind"], target["n_classes"]) == ("kind", "classes", 3)
    history = model.about["training"]["history"]
    assert len(history) == 6
    assert all(0 <= epoch["accuracy"] <= 1 and epoch["loss"] > 0 for epoch in history)
    assert not verify(str(shards.output), 1000).faults
    assert report_of(shards.output)["summary"]["cost"] == pytest.approx(history[-1]["validation_cost"])
    for flags in (LEARNING[2:], [*LEARNING, "--target-weight", "5"]):
        output = tmp_path / f"{len(flags)}"
        assert shards.run(*ON_TRAIN, *flags, output=output) == 0
        assert not same(load_model(output), model)


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
def test_each_row_is_trained_with_its_own_target(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas_of_few_rows: None
) -> None:
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
def test_other_values_of_the_same_name_train_again(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, N)
    extras = {"a/kind": kind, "b/kind": kind[::-1], "y": np.arange(N)}
    write_shard(shards.folder / "0.h5", rng.normal(size=(N, 4)).astype(np.float32), extras=extras)
    one, other = (["--include", f"{group}/kind", *LEARNING] for group in "ab")
    assert shards.run(*other, output=tmp_path / "fresh") == 0
    expected = features_of(tmp_path / "fresh")
    assert shards.run(*one) == 0
    assert features_of(shards.output) != expected
    assert shards.run(*other) == 78
    assert mentions(errors(caplog), "target")
    assert shards.run(*other, "--retrain") == 0
    assert features_of(shards.output) == expected
    for flags in (one, other):
        assert shards.run(*flags, "--overwrite") == 0
    assert features_of(shards.output) == expected


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--target", "sort"], 78, ["target", "sort", "kind, same, split, y"]),
        (["--target", "same"], 78, ["target", "same"]),
        (["--target-weight", "2"], 64, ["target_weight", "target"]),
        (["--target", "kind", "--target-weight", "0"], 64, ["--target-weight"]),
        (["--target", "kind", "--model", "m"], 64, ["target and model"]),
    ],
)
def test_useless_targets_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, flags: list[str], code: int, words: list[str]
) -> None:
    add(shards, same=np.ones(N, dtype=np.int64))
    assert shards.run(*flags) == code
    assert mentions(errors(caplog), *words)


@pytest.mark.parametrize("setting", ["target", "labels"])
def test_numbers_and_strings_in_one_extra_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    rows = add(shards)["rows"][:30]
    write_shard(shards.folder / "2.h5", rows, extras={"kind": np.array([b"0", b"1", b"2"] * 10), "y": np.arange(30)})
    assert shards.run(f"--{setting}", "kind") == 65
    assert mentions(errors(caplog), setting, "kind", "int64", "0.h5", "|S1", "2.h5")
    assert not shards.output.exists()


@pytest.mark.slow
def test_random_labels_score_at_chance_on_rows_that_are_left_out(shards: Shards) -> None:
    """The rows contain no information about the labels, which the features could only have memorized."""
    rng = np.random.default_rng(0)
    add(shards, n=900, rows=rng.normal(size=(900, 4)).astype(np.float32), kind=rng.integers(0, 2, 900))
    assert shards.run(*ON_TRAIN, *LEARNING, "--target-weight", "5") == 0
    probe = report_of(shards.output)["sample"]["probe"]
    assert probe["labels"] == "kind"
    assert abs(probe["features"] - 0.5) < 0.1


@pytest.mark.slow
def test_supervised_features_are_marked(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(shards)
    for name, flags, fit_on in (("all", [], None), ("some", ON_TRAIN, "split == train")):
        output = tmp_path / name
        assert shards.run(*LEARNING, *flags, output=output) == 0
        mark = {"name": "kind", "kind": "classes", "fit_on": fit_on}
        assert open_features(output).manifest["target"] == mark
        assert report_of(output)["target"] == mark
        exported = onnx.load_model_from_string(encoder_onnx(load_model(output)))
        properties = {each.key: each.value for each in exported.metadata_props}
        assert json.loads(properties["target"]) == mark
    assert mentions(caplog.text, "WARNING", "target", "kind", "--fit-on")
    assert mentions(report_of(tmp_path / "all")["judgment"]["classifier"], "--fit-on")
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
    add(shards, n=600, score=score)
    is_test = (values["split"] == b"test") & ~np.isnan(score)
    assert shards.run(*ON_TRAIN, *ON_SCORE) == 0
    report = report_of(shards.output)
    probe = report["sample"]["probe"]
    assert (probe["labels"], probe["score"], probe["n_test"]) == ("score", "R2", is_test.sum())
    assert probe["n_train"] == np.count_nonzero(~np.isnan(score)) - is_test.sum()
    assert probe["columns"] == pytest.approx(1, abs=0.01), "the score is a linear function of the columns"
    sentence = report["judgment"]["classifier"]
    assert mentions(sentence, "score", is_test.sum(), "R2", f"{probe['features']:.3f}")
    assert sentence in capsys.readouterr().out
    assert mentions(text_of(page_of(report)), f"{probe['standardized']:.3f}")

    assert shards.run(*ON_TRAIN, *ON_SCORE, "--labels", "kind") == 0
    probe = report_of(shards.output)["sample"]["probe"]
    assert (probe["labels"], probe["score"]) == ("kind", "accuracy")
