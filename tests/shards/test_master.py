"""Tests of master files, whose rows are in other files: they are refused, and nothing outside them is read."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.shards.open import open_shards
from tests.support.helpers import refused, write_shard

pytestmark = pytest.mark.process


def virtual(path: Path, name: str = "X") -> Path:
    """Write a master file with a virtual dataset."""
    layout = h5py.VirtualLayout((6, 2), "i8")
    for i in range(2):
        layout[3 * i : 3 * i + 3] = h5py.VirtualSource(f"raw/{i}.h5", "X", (3, 2))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset(name, layout)
    return path


def links(path: Path) -> Path:
    """Write a master file with a group of external links, as detectors do."""
    with h5py.File(path, "w") as file:
        for i in range(2):
            file[f"entry/data/data_{i}"] = h5py.ExternalLink(f"raw/{i}.h5", "/X")
    return path


@pytest.fixture(params=[virtual, links])
def master(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    for i in range(2):
        write_shard(tmp_path / "raw" / f"{i}.h5", np.full((3, 2), i))
    write: Callable[[Path], Path] = request.param
    return write(tmp_path / "master.h5")


def test_a_master_file_is_refused_with_advice(master: Path) -> None:
    with h5py.File(master) as file:
        dataset = "X" if "X" in file else "entry/data/data_0"
    with refused(65, f"file={master}", "master file", "--input"):
        open_shards([str(master)], dataset)
    with refused(65, f"file={master}"):
        open_shards([str(master)])


def test_a_mask_in_a_master_file_is_not_taken_for_the_rows(master: Path) -> None:
    with h5py.File(master, "a") as file:
        file["entry/mask"] = np.zeros((2, 2), "u4")
        if "X" in file:
            file.move("X", "entry/rows")
    with refused(65, "entry/mask (2, 2) uint32", "--dataset"):
        open_shards([str(master)])
    assert open_shards([str(master)], "entry/mask")[0].shape == (2, 2)
