"""Tests of inspecting files: the facts equal those of h5py, and similar files are one group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.shards.inspect import Inspection, inspect_files
from shardpress.shards.vet import Selection
from tests.support.cases import case
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


def test_a_list_that_is_too_long_ends_with_a_remark(tmp_path: Path) -> None:
    for n, has_remark in ((MOST_LEFT_OUT - 1, False), (MOST_LEFT_OUT, True)):
        path = write_shard(tmp_path / f"{n}.h5", numbered(40, 3), extras={f"y{i}": np.zeros(40) for i in range(n)})
        (files,) = inspected(path).files
        assert bool(files.datasets[-1]["what"]) == has_remark
        assert sum(not dataset["what"] for dataset in files.datasets) == MOST_LEFT_OUT


def test_files_that_differ_in_more_than_numbers_are_not_grouped(tmp_path: Path) -> None:
    def write(name: str, n_rows: int, **options: Any) -> None:
        extras = {"y": np.arange(n_rows), "short": np.arange(n_rows + 3), "grid": np.zeros((7, n_rows))}
        write_shard(tmp_path / name, np.zeros((n_rows, 40)), extras=extras, **options)

    for i, n_rows in enumerate((0, 300, 2000, 17_000)):
        write(f"{i}.h5", n_rows)
    write("4.h5", 9, dtype="f4")
    write("5.h5", 9, compression="gzip")
    write_shard(tmp_path / "6.h5", np.zeros((9, 40)))
    (tmp_path / "7.h5").write_text("no HDF5")
    found = inspected(tmp_path)
    assert [len(files.names) for files in found.files] == [4, 1, 1, 1]
    assert [set(files.left_out) for files in found.files] == [{"short", "grid"}] * 3 + [{"y"}]
    assert [Path(refused["file"]).name for refused in found.refused] == ["7.h5"]
    assert inspected(tmp_path / "7.h5").shards == ()
