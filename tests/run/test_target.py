"""Tests of `--target`: targets train the features of the selected rows, and no other row's target has any influence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shardpress.interop.onnx import encoder_onnx
from shardpress.report.summary import report_of
from shardpress.result.features import open_features
from shardpress.result.finished import Result, load_model
from shardpress.result.records import plain
from tests.support import standin
from tests.support.bad_shards import Shards
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.logged import COMPLETE, mentions

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
    assert load_model(shards.output).about.training.target.n_classes == 3
    assert load_model(shards.output).fingerprint == load_model(other.output).fingerprint
    assert shards.run(*ON_TRAIN, *LEARNING, "--target-weight", "5", "--overwrite") == 0
    assert load_model(shards.output).fingerprint != load_model(other.output).fingerprint


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
    for i, flags in enumerate(([], ["--replicas", "2", "shuffle_window=2000"])):
        with case(flags):
            n_checked.clear()
            settings = [*ON_SCORE, "--batch-size", "4", "--epochs", "4", *flags]
            assert shards.run(*ON_TRAIN, *settings, output=tmp_path / str(i)) == 0
            assert sum(n_checked) >= 4 * 0.9 * is_train.sum()


@pytest.mark.process
def test_the_missing_label_is_no_target_and_an_append_keeps_it(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is that of a target with NaN. Without the flag, or with another value, it is another model."""
    values = add(shards)
    kinds = np.where(np.arange(N) % 3, -1, values["kind"])
    add(shards, kind=kinds)
    other = shards.another("other")
    add(other, kind=np.where(kinds < 0, np.nan, kinds))
    missing = ("--missing-label", "-1")
    assert shards.run(*LEARNING, *missing) == 0
    assert other.run(*LEARNING) == 0
    fingerprint = load_model(shards.output).fingerprint
    assert fingerprint == load_model(other.output).fingerprint
    assert "looks like" not in caplog.text
    assert shards.run(*LEARNING, *missing) == 0
    assert mentions((shards.output / "run.log").read_text(), COMPLETE)
    assert shards.run(*LEARNING) == 78
    assert mentions(caplog.text, "WARNING", "kind", "--missing-label -1")

    write_shard(shards.folder / "2.h5", values["rows"][:30], extras={name: values[name][:30] for name in values})
    assert shards.run(*LEARNING, "--append", "--missing-label", "2") == 78
    assert shards.run(*LEARNING, "--append") == 0
    result = Result.open(shards.output)
    assert result.facts.rows.config["missing_label"] == "-1"
    assert result.facts.rows.sample.points.names == ["0", "1", "2"]
    assert shards.run(*LEARNING, "--retrain") == 0
    assert load_model(shards.output).about.training.target.n_classes == 4


def test_useless_targets_are_refused(shards: Shards) -> None:
    """The extra `texts` contains numbers in one file, and strings in another."""
    values = add(shards, same=np.ones(N, dtype=np.int64), texts=np.arange(N) % 3)
    extras = {"texts": np.array([b"0", b"1", b"2"] * 10)}
    extras |= {name: values[name][:30] for name in ("kind", "split", "y", "same")}
    write_shard(shards.folder / "2.h5", values["rows"][:30], extras=extras)
    for name, code in (("sort", 78), ("same", 78), ("texts", 65)):
        assert shards.run("--target", name) == code
    assert not shards.output.exists()


@pytest.mark.slow
def test_random_labels_score_at_chance_on_rows_that_are_left_out(shards: Shards) -> None:
    """The rows contain no information about the labels, which the features could only have memorized."""
    rng = np.random.default_rng(0)
    add(shards, n=900, rows=rng.normal(size=(900, 4)).astype(np.float32), kind=rng.integers(0, 2, 900))
    assert shards.run(*ON_TRAIN, *LEARNING, "--target-weight", "5") == 0
    probe = Result.open(shards.output).facts.rows.sample.probe
    assert probe.labels == "kind"
    assert abs(probe.features - 0.5) < 0.1


@pytest.mark.slow
def test_supervised_features_are_marked(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their model has no head, but says what it was trained for."""
    add(shards)
    for name, flags, fit_on in (("all", [], None), ("some", ON_TRAIN, "split == train")):
        output = tmp_path / name
        assert shards.run(*LEARNING, *flags, output=output) == 0
        target = report_of(Result.open(output)).target
        assert target is not None
        assert (target.name, target.kind, target.fit_on) == ("kind", "classes", fit_on)
        assert open_features(output).manifest["target"] == plain(target)
        exported = onnx.load_model_from_string(encoder_onnx(load_model(output)))
        properties = {each.key: each.value for each in exported.metadata_props}
        assert json.loads(properties["target"]) == plain(target)
    assert mentions(caplog.text, "WARNING", "target", "kind", "--fit-on")
    assert mentions(report_of(Result.open(tmp_path / "all")).judgment.classifier, "--fit-on")
    assert shards.run("--model", str(tmp_path / "all"), output=tmp_path / "new") == 0
    assert open_features(tmp_path / "new").manifest["target"]["name"] == "kind"
    assert load_model(tmp_path / "new").network.head is None
