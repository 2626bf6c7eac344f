"""Tests of docs/recipes.md: its files are read as the page says, and its recipes do what it says on made-up data."""

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shardpress.hdf5.shard import Block
from shardpress.result.features import open_features
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.interpreters import REPOSITORY
from tests.support.programs import run_blocks

PAGE = (REPOSITORY / "docs/recipes.md").read_text()
LINEAR = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
RECIPES = dict(re.findall(r"^\*\*(\w+)\*\*[^`]*?(?:`[^`\n]+`[^`]*?)*\n\n```python\n(.*?)```$", PAGE, re.M | re.S))
ROWS = np.arange(12.0).reshape(4, 3)
NAMES = ["ant", "bee", "cat", "ant"]


def images():
    Path("photos").mkdir()
    for i in range(4):
        Image.fromarray(np.full((5, 7), 50 * i, "u1")).save(f"photos/{i}.png")


INPUTS = {
    "pandas": lambda: {"frame": pd.DataFrame(ROWS, columns=["a", "b", 3]), "labels": pd.Series(NAMES)},
    "Images": images,
    "NumPy": lambda: np.save("rows.npy", ROWS),
}
EXPECTED = {
    "pandas": (ROWS, {"y": NAMES}),
    "Images": (np.repeat([[0], [50], [100], [150]], 32 * 32 * 3, axis=1), {"name": [f"{i}.png" for i in range(4)]}),
    "NumPy": (ROWS, {}),
}


def test_every_recipe_is_tested():
    assert list(RECIPES) == list(INPUTS) == list(EXPECTED)
    with_code = [name for name, section in SECTIONS.items() if "\n```" in section]
    assert with_code == ["Writing shards", "Fingerprints", "Windows of sensors", "Anomalies", "Cells", "Time series"]


@pytest.mark.process
@pytest.mark.parametrize("name", INPUTS)
def test_recipes_write_shards_with_labels_and_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    exec(RECIPES[name], INPUTS[name]() or {})
    (shard,) = open_shards(["shards" if Path("shards").exists() else "shard.h5"])
    rows, extras = EXPECTED[name]
    np.testing.assert_array_equal(read(Block(shard, 0, 4)), rows)
    found = read_extras(Block(shard, 0, 4))
    values = {key: [each.decode() if isinstance(each, bytes) else each for each in found[key]] for key in found}
    assert values == extras
    assert shard.columns.names == (("a", "b", "3") if name == "pandas" else ())


# -- recipes for kinds of data ----------------------------------------------------------------------------------------


@pytest.fixture
def few_epochs(tmp_path, monkeypatch):
    """Use an empty folder, and train for a few epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDPRESS_EPOCHS", "5")


def accuracy(classifier, rows, classes, is_training):
    """Return the accuracy of a classifier on the rows that did not train it."""
    classifier.fit(rows[is_training], classes[is_training])
    return classifier.score(rows[~is_training], classes[~is_training])


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.usefixtures("few_epochs")
def test_target_of_fingerprints_beats_bits():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 256, (100, 6))  # each group of atoms sets six bits
    has_group = rng.random((900, 100)) < 0.1
    rows = np.zeros((900, 256), np.uint8)
    for row, chosen in zip(rows, has_group, strict=True):
        row[groups[chosen]] = 1
    solubility = has_group @ rng.normal(size=100)
    classes = (solubility > np.median(solubility)).astype(int)
    split = ["train", "train", "test"] * 300
    run_blocks(SECTIONS["Fingerprints"], bits=scipy.sparse.csr_matrix(rows), classes=classes, split=split)
    is_training = np.array(split) == "train"
    features = open_features("features").features.compute()
    neighbours = KNeighborsClassifier(5)
    assert accuracy(neighbours, features, classes, is_training) > accuracy(neighbours, rows, classes, is_training)


def recording_with_gaps():
    """Return values of four sensors with days, seasons and noise. Each is silent for hours at a time."""
    rng = np.random.default_rng(0)
    hours = np.arange(50_000)
    cycles = np.stack([np.sin(2 * np.pi * hours / 24), np.sin(2 * np.pi * hours / 4000)], axis=1)
    recording = cycles @ rng.normal(size=(2, 4)) + 0.2 * rng.normal(size=(len(hours), 4))
    for sensor in range(4):
        for start in rng.integers(0, len(hours), 300):
            recording[start : start + rng.integers(1, 20), sensor] = np.nan
    return recording.astype(np.float32)


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.usefixtures("few_epochs")
def test_windows_with_gaps_get_features_and_a_broken_sensor_is_found():
    recording = recording_with_gaps()
    recording[42_000:42_010, 2] = 1048
    names, _ = run_blocks(SECTIONS["Windows of sensors"] + SECTIONS["Anomalies"], recording=recording)
    output = open_features("features")
    start = output.extras["start"].compute()
    assert output.valid.compute().all()
    is_summer = np.sin(2 * np.pi * (start + 32) / 4000) > 0
    assert accuracy(LINEAR, output.features.compute(), is_summer, start < 40_000) > 0.9
    has_broken_sensor = (start + 64 > 42_000) & (start < 42_010)
    assert set(start[has_broken_sensor]) <= set(names["anomalies"])
    assert len(names["anomalies"]) < 0.05 * np.sum(start >= 40_000)


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.usefixtures("few_epochs")
def test_cells_of_one_type_are_neighbours():
    rng = np.random.default_rng(0)
    types = rng.integers(3, size=600)
    means = rng.gamma(0.5, 1.0, 200) * np.exp(rng.normal(size=(3, 200)))[types]
    depths = rng.lognormal(0, 1, (600, 1))
    with h5py.File("cells.h5ad", "w") as file:
        file["X"] = rng.poisson(depths * means).astype(np.float32)
        file["obs/cell_type"] = [f"type {number}" for number in types]
    run_blocks(SECTIONS["Cells"])
    with h5py.File("features/features.h5ad") as file:
        features = file["obsm/X_shardpress"][:]
    assert accuracy(KNeighborsClassifier(5), features, types, np.arange(600) < 400) > 0.95


@pytest.mark.compiler
@pytest.mark.slow
def test_convolutions_find_shapes_at_any_time():
    rng = np.random.default_rng(0)
    classes = np.arange(120) % 2
    series = rng.normal(size=(120, 150))
    for row, label in zip(series, classes, strict=True):
        start = rng.integers(0, 110)
        row[start : start + 40] += 3 * np.sin(2 * np.pi * np.arange(40) / (4, 10)[label])
    is_training = np.arange(120) < 80
    names, _ = run_blocks(SECTIONS["Time series"], series=series[is_training], classes=classes[is_training])
    assert names["model"].score(series[~is_training], classes[~is_training]) > 0.9
