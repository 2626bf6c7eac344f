"""The classifier on features, raw columns and principal components: the same rows, the same split, out of core."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scripts import classify, extract
from scripts.classify import main
from tests.helpers import write_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two clouds of points, and of other points of the same kind."""
    folder = tmp_path_factory.mktemp("classify")
    for name, seed in [("train", 0), ("test", 1)]:
        y = np.random.default_rng(seed).integers(0, 2, 2500)
        x = np.random.default_rng(seed + 10).normal(size=(2500, 10)) + 6 * y[:, None]
        write_shard(folder / f"{name}.h5", x, riders={"label": y, "one": np.ones(2500)})
    flags = ["--n-features", "3", "--epochs", "3", "--quiet"]
    train, test = ["--input", str(folder / "train.h5")], ["--input", str(folder / "test.h5")]
    assert extract.main([*train, "--output", str(folder / "a"), *flags]) == 0
    assert extract.main([*test, "--output", str(folder / "b"), "--model", str(folder / "a"), "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("test", [[], ["--test", "b"]], ids=["held out", "test set"])
def test_clouds_far_apart_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], test: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["--features", "a", "--labels", "label", "--passes", "60", *test]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {words[1]: float(words[0]) for words in (re.split(r"\s+on\s+", line.strip()) for line in lines[1:])}
    assert set(found) == {"3 features", "3 principal components", "10 raw columns"}
    assert min(found.values()) > 0.97


def test_the_split_is_the_same_for_every_representation(folder: Path) -> None:
    found = classify.open_features(folder / "a")
    model = classify.load_model(folder / "a")
    encoded = classify._split(found, None, "label", 0, classify.encoded_rows)
    raw = classify._split(found, None, "label", 0, lambda features: classify.raw_rows(features, model))
    for one, other in [(encoded.train, raw.train), (encoded.test, raw.test)]:
        assert np.array_equal(*(np.concatenate([y for _, y in batches()]) for batches in (one, other)))
    h, x = (np.concatenate([rows for rows, _ in batches()]) for batches in (encoded.test, raw.test))
    expected = 1 / (1 + np.exp(-(x @ model.parameters["W"] + model.parameters["b_hidden"])))
    assert np.allclose(h, expected, atol=1e-5), "features and raw columns are of the same rows"
    n_train, n_test = (sum(len(y) for _, y in batches()) for batches in (encoded.train, encoded.test))
    assert n_train + n_test == 2500
    assert 400 < n_test < 600


@pytest.mark.parametrize("limit", [0, 10**9])
def test_remembered_passes_are_the_same_passes(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    made = []

    def batches():
        made.append(1)
        for i in range(3):
            yield np.full((2, 2), i), np.array([i, i])

    monkeypatch.setattr(classify, "REMEMBERED_BYTES", limit)
    passes = classify.remembered(batches)
    for _ in range(3):
        assert [y[0] for _, y in passes()] == [0, 1, 2]
    assert len(made) == (1 if limit else 3)


@pytest.mark.parametrize(
    ("flags", "code", "phrase"),
    [
        (["--features", "nowhere"], 66, "expected the output directory of a finished run"),
        (["--features", "a", "--labels", "y"], 65, "no dataset 'y' rides along, found ['label', 'one']"),
        (["--features", "a", "--labels", "one"], 65, "one class only"),
    ],
)
def test_mistakes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    phrase: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(flags) == code
    assert phrase in capsys.readouterr().err
