"""Tests of log messages about the input: each one is logged once."""

import fcntl
import os

import h5py
import pytest

from shardpress.hdf5 import files
from shardpress.shards.open import open_shards
from tests.support.helpers import csr, numbered, numbered_shards, some_rows, write_csr, write_shard


@pytest.mark.process
def test_names_of_datasets_are_logged_unless_they_are_x(tmp_path, caplog):
    caplog.set_level("INFO", "shardpress")
    paths = [write_shard(tmp_path / f"{name[-1]}.h5", numbered(3), name) for name in ("X", "g/a", "b", "c")]
    open_shards(paths[:1])
    assert "dataset" not in caplog.text
    open_shards(paths[1:2])
    assert any(message.endswith("dataset g/a") for message in caplog.messages)
    open_shards(paths)
    assert any("X, g/a, b and 1 more" in message for message in caplog.messages)


def test_shards_without_rows_are_warned_about(tmp_path, caplog):
    assert [shard.n_rows for shard in numbered_shards(tmp_path, 2, 0)] == [2, 0]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "1.h5" in warning


@pytest.mark.process
def test_file_open_for_writing_is_warned_about(tmp_path, caplog):
    """h5py locks the files that it writes, and so do some other programs."""
    paths = [write_shard(tmp_path / f"{i}.h5", numbered(3)) for i in range(3)]
    with h5py.File(paths[1], "a"), open(paths[2], "a") as open_file:
        fcntl.flock(open_file, fcntl.LOCK_EX)
        open_shards(paths)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"file={paths[1]}: process {os.getpid()}" in warning
    assert "1 more" in warning
    caplog.clear()
    with h5py.File(paths[1]):
        open_shards(paths)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("content", ["", "1: FLOCK", "text\n" * 10, "1: FLOCK  ADVISORY  READ 1 fe:00:7 0 EOF\n"])
def test_unusable_list_of_locks_causes_no_warning(tmp_path, monkeypatch, content):
    (tmp_path / "locks").write_text(content)
    monkeypatch.setattr(files, "open", lambda _: (tmp_path / "locks").open(), raising=False)
    assert files.writers() == {}
    (tmp_path / "locks").unlink()
    assert files.writers() == {}


@pytest.mark.process
def test_number_of_sparse_shards_is_logged(tmp_path, caplog):
    caplog.set_level("INFO", "shardpress")
    write_shard(tmp_path / "0.h5", some_rows())
    for name in "12":
        path = write_csr(tmp_path / f"{name}.h5", csr(some_rows()), some_rows().shape)
    open_shards([path])
    assert "sparse" in caplog.text
    assert "2 shards" not in caplog.text
    open_shards([str(tmp_path)])
    assert any("sparse" in message and "2 shards" in message for message in caplog.messages)
