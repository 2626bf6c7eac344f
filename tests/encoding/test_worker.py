"""Tests of the state of a worker process: one model, loaded once, and memory that each thread reuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.base.errors import ReadFailed
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding import worker as module
from shardpress.encoding.worker import IN_MEMORY, EncodeSettings, Worker, worker_of
from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress.output.disk import Disk
from shardpress.output.folder import unique_name, write_file
from shardpress.result.records import Entry
from shardpress_kernels.network import Network

DTYPES = ["u1", "f4", "i8", "f8"]
W = np.zeros((3, 2), np.float32)
MODEL = Model(Scaler(np.zeros(3), np.ones(3)), Network((3, 2)), {"W": W, "b_hidden": W[0], "b_output": W[:, 0]})


def encode_nothing(rows: np.ndarray, out: np.ndarray) -> None:
    pass


@pytest.fixture
def settings(tmp_path: Path) -> EncodeSettings:
    """Return the settings of tasks that name the model's file."""
    return replace(EncodeSettings(str(tmp_path), IN_MEMORY, 4, 8, 2), model=write_model(tmp_path, MODEL))


def write_model(folder: Path, model: Model) -> Entry:
    (folder / "work").mkdir(exist_ok=True)
    return write_file(folder, Disk(), unique_name("work/model", ".h5"), model.to_hdf5())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Replace compilation; return the list of arguments and parameters that it receives."""
    found: list[Any] = []

    def make(*what: Any) -> Any:
        found.append(what)
        return SimpleNamespace(set_parameters=found.append, encode_checked=encode_nothing)

    monkeypatch.setattr(module, "start_device", lambda: None)
    monkeypatch.setattr(module, "autoencoder_of", make)
    module._workers.clear()
    yield found
    module._workers.clear()


def test_a_model_is_made_once_for_all_threads(compiled: list[Any], settings: EncodeSettings) -> None:
    def encode(i: int) -> Worker:
        worker = worker_of(replace(settings, row_error=bool(i % 2)))
        worker.encode(np.zeros((2, 3), DTYPES[i % len(DTYPES)]), np.empty((2, 2), np.float32))
        return worker

    with threads(4) as pool:
        found = compute([(encode, i) for i in range(20)], pool, 4)
    assert all(each is found[0] for each in found)
    made = [each for each in compiled if isinstance(each, tuple)]
    assert {(scaler.maximum.tolist()[0], network) for scaler, network, _ in made} == {(1, MODEL.network)}
    assert sorted(np.can_cast(dtype, np.float32) for _, _, dtype in made) == [False, True], "one for each scaling"
    assert found[0].model.fingerprint == MODEL.fingerprint


def test_another_model_or_size_replaces_the_worker(compiled: list[Any], settings: EncodeSettings) -> None:
    previous = worker_of(settings)
    other = replace(MODEL, parameters={**MODEL.parameters, "b_hidden": W[0] + 1})
    file = write_model(Path(settings.directory), other)
    for changed in (replace(settings, part_rows=12), replace(settings, model=file), settings):
        worker = worker_of(changed)
        assert worker is not previous
        assert len(module._workers) == 1
        previous = worker
    assert compiled == [], "only rows are a reason to compile"


def test_another_file_in_place_of_the_model_is_refused(compiled: list[Any], settings: EncodeSettings) -> None:
    """A worker would find another file if it has a different disk under the same path."""
    path = Path(settings.directory) / settings.model.file
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ReadFailed, match=rf"file={path}\b.*\bBLAKE3\b"):
        worker_of(settings)
    path.unlink()
    with pytest.raises(ReadFailed, match=rf"file={path}\b.*{os.strerror(errno.ENOENT)}"):
        worker_of(settings)
    assert compiled == []
