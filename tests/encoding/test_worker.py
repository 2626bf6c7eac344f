"""Tests of the worker of a process: it has the model of the task, and no other one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardpress.base.errors import ReadFailed
from shardpress.encoding import worker as module
from shardpress.encoding.worker import IN_MEMORY, EncodeSettings, worker_of
from shardpress.output.disk import Disk
from shardpress.output.folder import unique_name, write_file
from shardpress.result.records import Entry
from tests.support.hostilemodels import model_of


def write_model(folder: Path, seed: int) -> Entry:
    (folder / "work").mkdir(exist_ok=True)
    return write_file(folder, Disk(), unique_name("work/model", ".h5"), model_of(seed=seed).to_hdf5())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EncodeSettings]:
    """Return the settings of tasks that name the model's file. No device is opened."""
    monkeypatch.setattr(module, "start_device", lambda: None)
    module._workers.clear()
    yield replace(EncodeSettings(str(tmp_path), IN_MEMORY, 4, 8, 2), model=write_model(tmp_path, seed=0))
    module._workers.clear()


def test_another_model_or_size_replaces_the_worker(settings: EncodeSettings) -> None:
    previous = worker_of(settings)
    file = write_model(Path(settings.directory), seed=1)
    for changed in (replace(settings, part_rows=12), replace(settings, model=file), settings):
        worker = worker_of(changed)
        assert worker is not previous
        assert len(module._workers) == 1
        previous = worker


def test_another_file_in_place_of_the_model_is_refused(settings: EncodeSettings) -> None:
    """A worker would find another file if it has a different disk under the same path."""
    path = Path(settings.directory) / settings.model.file
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ReadFailed, match=rf"file={path}\b.*\bBLAKE3\b"):
        worker_of(settings)
    path.unlink()
    with pytest.raises(ReadFailed, match=rf"file={path}\b.*{os.strerror(errno.ENOENT)}"):
        worker_of(settings)
