"""Tests of docs/recipes.md: the files that it writes are read as the page says."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from PIL import Image

from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^\*\*(\w+)\*\*[^`]*?(?:`[^`\n]+`[^`]*?)*\n\n```python\n(.*?)```$", PAGE, re.M | re.S))
ROWS = np.arange(12.0).reshape(4, 3)
NAMES = ["ant", "bee", "cat", "ant"]


class Column:
    """Replaces a text column of pandas, because this environment has none of these libraries."""

    def astype(self, kind):
        assert kind is str
        return self

    def to_numpy(self):
        return np.array(NAMES, object)


class Frame:
    columns = ("a", "b", 3)

    def to_numpy(self, dtype):
        return ROWS.astype(dtype)


class Cells:
    """Replaces an AnnData object in which every second column is selected."""

    def __init__(self, form):
        self.form = form
        self.var = {"highly_variable": np.array([True, False, True])}
        self.obs = {"cell_type": Column()}

    def __getitem__(self, key):
        return SimpleNamespace(X=self.form(ROWS[key]), obs=self.obs, var_names=["g0", "g2"])


class Array:
    """Replaces an array of xarray with the times as last axis."""

    def transpose(self, first, _):
        assert first == "time"
        return self

    def __getitem__(self, name):
        assert name == "time"
        return SimpleNamespace(values=np.arange(4).astype("datetime64[s]").astype("datetime64[ns]"))

    values = ROWS


def images():
    Path("photos").mkdir()
    for i in range(4):
        Image.fromarray(np.full((5, 7), 50 * i, "u1")).save(f"photos/{i}.png")


INPUTS = {
    "pandas": [lambda: {"frame": Frame(), "labels": Column()}],
    "AnnData": [lambda: {"adata": Cells(scipy.sparse.csr_matrix)}, lambda: {"adata": Cells(np.asarray)}],
    "xarray": [lambda: {"array": Array()}],
    "Images": [images],
    "NumPy": [lambda: np.save("rows.npy", ROWS)],
}
EXPECTED = {
    "pandas": (ROWS, {"y": NAMES}),
    "AnnData": (ROWS[:, ::2], {"y": NAMES}),
    "xarray": (ROWS, {"time": [0, 1, 2, 3]}),
    "Images": (np.repeat([[0], [50], [100], [150]], 32 * 32 * 3, axis=1), {"name": [f"{i}.png" for i in range(4)]}),
    "NumPy": (ROWS, {}),
}


def test_every_recipe_is_tested():
    assert list(RECIPES) == list(INPUTS) == list(EXPECTED)


@pytest.mark.process
@pytest.mark.parametrize(("name", "given"), [(name, given) for name, choices in INPUTS.items() for given in choices])
def test_recipes_write_shards_with_labels_and_names(tmp_path, monkeypatch, name, given):
    monkeypatch.chdir(tmp_path)
    exec(RECIPES[name], given() or {})
    (shard,) = open_shards(["shards" if Path("shards").exists() else "shard.h5"])
    rows, extras = EXPECTED[name]
    np.testing.assert_array_equal(read(Block(shard, 0, 4)), rows)
    found = read_extras(Block(shard, 0, 4))
    values = {key: [each.decode() if isinstance(each, bytes) else each for each in found[key]] for key in found}
    assert values == extras
    assert shard.columns.names == {"pandas": ("a", "b", "3"), "AnnData": ("g0", "g2")}.get(name, ())
