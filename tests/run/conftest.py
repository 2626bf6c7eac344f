"""Fixtures: data sets for real processes, and for runs of the stand-in."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.settings import replicas
from tests.support.bad_shards import Shards
from tests.support.helpers import write_shard
from tests.support.interruptions import SIZES
from tests.support.killing import Victim, features_of
from tests.support.processes import Small
from tests.support.standin import Workspace, install


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """Return a data set that is large enough to interrupt runs over it."""
    return Victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    (folder / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    for i in range(2):
        extras = {"nothing": h5py.Empty("f4")} if i else None  # needs the child process
        write_shard(folder / "shards" / f"{i}.h5", rows[150 * i : 150 * (i + 1)], extras=extras)
    untouched = Small(folder, "")
    assert untouched.program().run(untouched.output).code == 0
    return Small(folder, features_of(untouched.output))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    install(monkeypatch)
    return Workspace(tmp_path, *SIZES)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def replicas_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow replicas that take only a few steps each."""
    for name, value in (("_MIN_STEPS", 2), ("_MIN_ROUNDS", 6), ("_MIN_STEPS_PER_ROUND", 1)):
        monkeypatch.setattr(replicas, name, value)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Return an empty folder of shards; runs over it use the stand-in."""
    install(monkeypatch)
    return Shards(tmp_path)


@pytest.fixture
def model(shards: Shards) -> str:
    """Return the directory of a model that was trained on other rows, with values between -30 and 30."""
    training = shards.another("other")
    training.add(np.random.default_rng(9).uniform(-30, 30, (100, 4)).astype(np.float32))
    assert training.run() == 0
    return str(training.output)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a workspace without shards."""
    install(monkeypatch)
    return Workspace(tmp_path)
