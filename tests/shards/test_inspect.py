"""Tests of inspecting files: the facts equal those of h5py, and similar files are one group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.shards.inspect import Inspection, inspect_files
from shardpress.shards.vet import Selection
from tests.support.cases import case, each
from tests.support.helpers import numbered, write_shard

pytestmark = pytest.mark.process


def inspected(path: Path | str) -> Inspection:
    return inspect_files([str(path)], Selection(None))


def test_every_dataset_is_listed_as_h5py_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=numbered(40, 3, dtype="f4"), chunks=(8, 3), compression="gzip", shuffle=True)
        file["deep/er/z"] = np.zeros((2, 2, 2), ">f8")
        file["names"] = ["a", "b"]
        file["nothing"] = h5py.Empty("f4")
        file["records"] = np.zeros(5, [("a", "i4"), ("b", "f8")])
        file["soft"] = h5py.SoftLink("/X")
    (files,) = inspected(path).files
    facts = {each["name"]: each for each in files.datasets}
    assert "soft link" in facts.pop("soft")["what"]
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        assert set(facts) == set(found)
        for name, item in found.items():
            with case(name):
                assert facts[name]["shape"] == (None if item.shape is None else list(item.shape))
                assert facts[name]["chunks"] == (None if item.chunks is None else list(item.chunks))
                assert facts[name]["n_bytes"] == item.id.get_storage_size()
    assert (facts["X"]["filters"], facts["X"]["dtype"]) == (["shuffle", "gzip"], "float32")
    assert facts["names"]["dtype"] == "text"
    assert "2 fields" in facts["records"]["dtype"]


@each("options", [{}, {"compression": "gzip", "maxshape": (None, 40)}])
def test_files_that_differ_only_in_numbers_are_one_group(options: dict[str, Any], tmp_path: Path) -> None:
    for i, n_rows in enumerate((0, 300, 2000, 17_000)):
        extras = {"y": np.arange(n_rows), "short": np.arange(n_rows + 3), "grid": np.zeros((7, n_rows))}
        write_shard(tmp_path / f"{i}.h5", np.zeros((n_rows, 40)), extras=extras, **options)
    (files,) = inspected(tmp_path).files
    assert len(files.names) == 4
    assert set(files.left_out) == {"short", "grid"}


def test_files_that_differ_in_more_than_numbers_are_not_grouped(tmp_path: Path) -> None:
    y = {"y": np.arange(9)}
    write_shard(tmp_path / "0.h5", numbered(9), extras=y)
    write_shard(tmp_path / "1.h5", numbered(9, dtype="f8"), extras=y)
    write_shard(tmp_path / "2.h5", numbered(9), extras=y, compression="gzip")
    write_shard(tmp_path / "3.h5", numbered(9))
    (tmp_path / "4.h5").write_text("no HDF5")
    found = inspected(tmp_path)
    assert [(len(files.names), files.n_rows) for files in found.files] == [(1, 9)] * 4
    assert [set(files.left_out) for files in found.files] == [set(), set(), set(), {"y"}]
    assert [Path(refused["file"]).name for refused in found.refused] == ["4.h5"]
    assert inspected(tmp_path / "4.h5").shards == ()


@each(
    "options, dtype, expected",
    [
        ({"chunks": (4096, 8), "compression": "gzip"}, ">f4", ["order", "gzip", "4 chunks"]),
        ({"chunks": (16, 32)}, "<f4", ["2048 bytes"]),
        ({"chunks": (150_000, 32)}, "<f4", ["19 MB"]),
    ],
)
def test_faster_storage_is_suggested(tmp_path: Path, options: dict[str, Any], dtype: str, expected: list[str]) -> None:
    path = write_shard(tmp_path / "a.h5", np.zeros((150_000, 32), dtype), **options)
    (files,) = inspected(path).files
    assert len(files.faster) == len(expected)
    assert all(words in facts for words, facts in zip(expected, files.faster, strict=True))
