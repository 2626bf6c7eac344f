"""Fashion-MNIST with default settings: as good as the README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.model import load_model
from pipeline.shards.open import blocks, open_shards, read
from scripts import classify, extract, make_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and features of training and test rows."""
    if not make_data.FASHION_FOLDER.exists():
        pytest.skip("this machine has no Fashion-MNIST (Debian: dataset-fashion-mnist)")
    folder = tmp_path_factory.mktemp("fashion")
    for name in ("fashion-mnist", "fashion-mnist-test"):
        assert make_data.main([name, "--output", str(folder / name)]) == 0
    train, test = str(folder / "train"), str(folder / "test")
    assert extract.main(["--input", str(folder / "fashion-mnist"), "--output", train, "--quiet"]) == 0
    flags = ["--input", str(folder / "fashion-mnist-test"), "--output", test, "--model", train, "--quiet"]
    assert extract.main(flags) == 0
    return folder


def test_rows_it_has_not_seen_are_reconstructed_well(folder: Path) -> None:
    model = load_model(folder / "train")
    rows = np.concatenate([read(block) for block in blocks(open_shards([str(folder / "fashion-mnist-test")]), 10_000)])
    x = model.scaler.transform(rows)
    y = model.encode(rows) @ model.parameters["W"].T + model.parameters["b_output"]
    assert np.mean((x - y) ** 2) <= 0.0135
    assert len(json.loads((folder / "train" / "report.json").read_text())["training"]["history"]) <= 20


def test_units_are_neither_dead_nor_saturated(folder: Path) -> None:
    found = classify.open_features(folder / "test").features.compute()
    assert found.std(axis=0).min() > 0.1
    assert np.mean((found < 0.01) | (found > 0.99)) < 0.1


def test_a_classifier_on_the_features_is_nearly_as_good_as_on_components(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify.main(["--features", str(folder / "train"), "--test", str(folder / "test")]) == 0
    found = dict(re.findall(r"([\d.]+)  on 64 (features|principal)", capsys.readouterr().out))
    accuracy = {kind: float(value) for value, kind in found.items()}
    assert accuracy["features"] >= 0.82
    assert accuracy["principal"] >= accuracy["features"] - 0.02
