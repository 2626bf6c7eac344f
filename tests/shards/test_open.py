"""Tests of opening shards: they must match, each file is opened once, and messages name files once."""

import fcntl
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError, printable
from shardpress.hdf5 import files
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block, block_of, first_rows
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import each
from tests.support.damage import damage
from tests.support.helpers import csr, numbered, refused, some_rows, whole, write_csr, write_shard

pytestmark = pytest.mark.process


@pytest.fixture
def opened(monkeypatch):
    """Return the list of files that are opened."""
    paths = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: paths.append(path) or real(path))
    return paths


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_opening_reads_no_rows(tmp_path):
    """Vetting is fast for terabytes of data, because unreadable chunks are only found when they are read."""
    path = write_shard(tmp_path / "x.h5", numbered(8), compression="gzip")
    damage(path)
    assert open_shards([path])[0].shape == (8, 2)


@each(
    "name",
    [
        "with space.h5",
        "new\nline\x1b[31m.h5",
        os.fsdecode(b"not utf8 \xff\xfe.h5"),
        "fdp.\u202eh5.h5",
        "-x.h5",
        "n" * 252 + ".h5",
        "%s{}.h5",
    ],
)
def test_any_file_name_works_and_is_escaped(tmp_path, monkeypatch, name):
    folder = tmp_path / printable(name)[:20]
    folder.mkdir()
    path = folder / name
    write_shard(path, numbered(2), extras={"y": [1, 2]})
    monkeypatch.chdir(folder)
    for pattern in (path, folder, folder / "*.h5", name):
        (shard,) = open_shards([str(pattern)])
        np.testing.assert_array_equal(whole(shard), numbered(2))
        assert read_extras(Block(shard, 0, 2))["y"].tolist() == [1, 2]
    with refused(65, f"file={printable(path)} dataset=Z\\n"):
        open_shards([str(path)], "Z\n")


@each("name", ["größe\u202e", "new\nline", "a" * 300, "%s{}"])
def test_any_dataset_name_works_and_is_escaped(tmp_path, caplog, name):
    path = write_shard(tmp_path / "x.h5", numbered(2), f"{name}/{name}", {f"{name}/y": [b"one", b"two"]})
    with h5py.File(path, "a") as file:
        file[f"{name}/link {name}"] = h5py.SoftLink(name)
    (shard,) = open_shards([path])
    np.testing.assert_array_equal(whole(shard), numbered(2))
    assert read_extras(Block(shard, 1, 2))["y"].tolist() == [b"two"]
    assert all(record.getMessage().isprintable() for record in caplog.records)
    with refused(65, printable(name)):
        open_shards([path], "nowhere")


# -- bad shards -------------------------------------------------------------------------------------------------------


def test_bad_shards_are_left_out_and_reported_in_order(tmp_path):
    write_shard(tmp_path / "0.h5", numbered(3))
    (tmp_path / "1.h5").write_bytes(b"bad")
    write_shard(tmp_path / "2.h5", np.zeros((3, 5, 2)))
    write_shard(tmp_path / "3.h5", numbered(4))
    write_shard(tmp_path / "4.h5", numbered(4), "Y")
    left_out = {}

    def leave_out(path, error):
        assert isinstance(error, DataError)
        assert str(path) in str(error)
        left_out[path.name] = str(error)

    shards = open_shards([str(tmp_path)], "X", leave_out)
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "3.h5"]
    assert [*left_out] == ["1.h5", "2.h5", "4.h5"]
    for words in ("(3, 5, 2)", f"{tmp_path}/0.h5", "10 columns, expected 2"):
        assert words in left_out["2.h5"]
    left_out.clear()
    with refused(65, "3 files", "1.h5"):
        open_shards([str(tmp_path / f"{i}.h5") for i in (1, 2, 4)], "Z", leave_out)
    assert len(left_out) == 3


def test_few_files_are_opened_if_many_are_bad(tmp_path, opened):
    for i in range(2000):
        (tmp_path / f"{i}.h5").write_bytes(b"bad")
    with refused(65, f"{tmp_path}/0.h5", f"{tmp_path}/1.h5", "--on-bad-data skip"):
        open_shards([str(tmp_path)])
    assert len(opened) <= 1000


# -- the log ----------------------------------------------------------------------------------------------------------


def test_names_and_forms_of_unusual_rows_are_logged(tmp_path, caplog):
    caplog.set_level("INFO", "shardpress")
    paths = [write_shard(tmp_path / f"{name[-1]}.h5", some_rows(), name) for name in ("X", "g/a", "b", "c")]
    paths += [write_csr(tmp_path / f"{i}.h5", csr(some_rows()), some_rows().shape) for i in range(2)]
    open_shards(paths[:1])
    assert "dataset" not in caplog.text
    open_shards(paths)
    assert any("X, g/a, b and 1 more" in message for message in caplog.messages)
    assert any("sparse" in message and "2 shards" in message for message in caplog.messages)


def test_file_open_for_writing_is_warned_about(tmp_path, caplog):
    """h5py locks the files that it writes, and so do some other programs."""
    paths = [write_shard(tmp_path / f"{i}.h5", numbered(3)) for i in range(3)]
    with h5py.File(paths[1], "a"), open(paths[2], "a") as open_file:
        fcntl.flock(open_file, fcntl.LOCK_EX)
        shards = open_shards(paths)
        np.testing.assert_array_equal(whole(shards[2]), numbered(3))
    (warning,) = warnings_of(caplog)
    assert f"file={paths[1]}: process {os.getpid()}" in warning
    assert "1 more" in warning
    caplog.clear()
    with h5py.File(paths[1]):
        open_shards(paths)
    assert warnings_of(caplog) == []


@each("content", ["", "1: FLOCK", "1: FLOCK  ADVISORY  READ 1 fe:00:7 0 EOF\n"])
def test_unusable_list_of_locks_names_no_writer(tmp_path, content):
    locks = tmp_path / "locks"
    locks.write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", lambda _: locks.open(), raising=False)
        assert files.writers() == {}
        locks.unlink()
        assert files.writers() == {}


# -- many shards ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_shards_are_opened_once_in_bounded_memory(tmp_path, opened):
    first = Path(write_shard(tmp_path / "0.h5", numbered(3), extras={"y": range(3)}))
    for i in range(1, 500):
        (tmp_path / f"{i}.h5").write_bytes(first.read_bytes())
    open_shards([str(first)])
    opened.clear()
    tracemalloc.start()
    try:
        shards = open_shards([str(tmp_path)])
        n_held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(opened) == sorted(str(tmp_path / f"{i}.h5") for i in range(500))
    assert [Path(shard.path).stem for shard in shards] == [str(i) for i in range(500)]
    assert n_held < 500 * 5000
    assert peak < n_held + 2**22
    numbers = first_rows(shards)
    assert read(block_of(shards, numbers, 1497, 1500)).tolist() == numbered(3).tolist()
