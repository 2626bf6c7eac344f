"""Tests of parts and exported files as other programs load them.

Hugging Face's `datasets.load_dataset("hdf5")` is not installed for the tests, so `assert_loadable` checks its
conditions: all datasets of the root group and of other groups have the same length, and all values are in the file.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import categories_of, open_features
from shardpress.hdf5.shard import Block
from shardpress.interop.export import export
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case
from tests.support.helpers import names, write_shard
from tests.support.parts import feature_rows, finished_parts, part_bytes

CATEGORIES = {
    "kind": ("T cell", "ß", "none"),
    "number": (3, 5),
    "many": tuple(f"clone {i}" for i in range(20_000)),
    "empty": (),
}
CODES = {name: np.array([0, -1, 1, 0] if values else [-1] * 4, "i2") for name, values in CATEGORIES.items()}


def assert_loadable(path: Path) -> None:
    lengths = set()

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            assert item.shape
            assert not item.is_virtual
            assert not item.external
            lengths.add(item.shape[0])

    with h5py.File(path) as file:
        file.visititems(visit)
    assert len(lengths) == 1


def write_part(path: Path) -> None:
    cells = np.array([b"a", b"b", b"c", b"d"], object)
    extras = {**CODES, "_index": cells}
    path.write_bytes(part_bytes(feature_rows(4), np.ones(4, bool), extras, categories=CATEGORIES))


def write_part_of_version_0_1(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((4, 2), np.float32)
        file["valid"] = np.ones(4, bool)
        file["_index"] = [b"a", b"b", b"c", b"d"]
        for name, categories in CATEGORIES.items():
            file[name] = CODES[name]
            texts = [each.encode() for each in categories if isinstance(each, str)]
            file[f"__categories/{name}"] = np.array(texts, "S12") if texts else np.array(categories)


@pytest.mark.process
def test_parts_and_exported_files_have_one_value_for_each_row(tmp_path: Path) -> None:
    part = tmp_path / "part.h5"
    write_part(part)
    output = finished_parts(tmp_path / "out", [(4, part.read_bytes())] * 2)
    export(output, "hdf5")
    for path in (part, output / "features.h5"):
        assert_loadable(path)
        found = {name: tuple(values.tolist()) for name, values in categories_of(path).items()}
        assert found == CATEGORIES
    opened = open_features(output / "features.h5")
    assert opened.extras["kind"].compute().tolist() == 2 * CODES["kind"].tolist()
    assert opened.categories["kind"].tolist() == ["T cell", "ß", "none"]


@pytest.mark.process
def test_categories_of_a_part_are_read_from_it_as_an_input(tmp_path: Path) -> None:
    for write in (write_part, write_part_of_version_0_1):
        with case(write.__name__):
            write(tmp_path / "part.h5")
            (shard,) = open_shards([str(tmp_path / "part.h5")], dataset="features")
            assert {each.name: each.categories for each in shard.extras if each.categories is not None} == CATEGORIES
            found = read_extras(Block(shard, 0, 4))
            assert all(found[name].tolist() == CODES[name].tolist() for name in CATEGORIES)


@pytest.mark.process
def test_attribute_in_files_of_other_programs_is_ignored(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.h5", np.zeros((3, 2), np.float32), extras={"y": [1, 2, 3]})
    with h5py.File(path, "a") as file:
        file["y"].attrs["categories"] = np.array([b"a", b"b"])
    (shard,) = open_shards([path])
    assert names(shard) == ("y",)
    assert shard.extras[0].categories is None
    assert read_extras(Block(shard, 0, 3))["y"].tolist() == [1, 2, 3]
