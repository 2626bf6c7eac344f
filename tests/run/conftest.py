"""Data sets of runs as real processes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from tests.support.helpers import write_shard
from tests.support.killing import Victim, features_of
from tests.support.processes import Small


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A data set large enough to be met at work."""
    return Victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    (folder / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    for i in range(2):
        beside = {"nothing": h5py.Empty("f4")} if i else None  # by which this one needs the child
        write_shard(folder / "shards" / f"{i}.h5", rows[150 * i : 150 * (i + 1)], riders=beside)
    untouched = Small(folder, "")
    assert untouched.program().run(folder / "out").code == 0
    return Small(folder, features_of(folder / "out"))
