"""Tests of opening shards: each file is opened once and described, or refused by name, before a row is read."""

import fcntl
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5t

from shardpress.base.errors import printable
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block, block_of, first_rows
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import numbered, refused, warnings_of, whole, write_shard

pytestmark = pytest.mark.process


@each("name", ["new\nline\x1b[31m", os.fsdecode(b"not utf8 \xff\xfe"), "-x %s{}\u202e", "n" * 252])
def test_any_name_of_a_file_and_a_dataset_works_and_is_escaped(tmp_path, monkeypatch, caplog, name):
    path = tmp_path / f"{name}.h5"
    dataset = "".join(letter for letter in name if letter.isascii() or letter == "\u202e")
    write_shard(path, numbered(2), f"{dataset}/{dataset}", {f"{dataset}/y": [b"one", b"two"]})
    with h5py.File(path, "a") as file:
        file[f"{dataset}/link {dataset}"] = h5py.SoftLink(dataset)
    monkeypatch.chdir(tmp_path)
    for pattern in (path, tmp_path, tmp_path / "*.h5", f"{name}.h5"):
        (shard,) = open_shards([str(pattern)])
        np.testing.assert_array_equal(whole(shard), numbered(2))
        assert read_extras(Block(shard, 1, 2))["y"].tolist() == [b"two"]
    assert all(record.getMessage().isprintable() for record in caplog.records)
    with refused(65, f"file={printable(path)} dataset=Z\\n", printable(dataset)):
        open_shards([str(path)], "Z\n")
    path.unlink()


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


@pytest.mark.slow
def test_many_shards_are_opened_once_in_bounded_memory(tmp_path, monkeypatch):
    first = Path(write_shard(tmp_path / "0.h5", numbered(3), extras={"y": range(3)}))
    for i in range(1, 200):
        (tmp_path / f"{i}.h5").write_bytes(first.read_bytes())
    open_shards([str(first)])
    opened = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(path) or real(path))
    tracemalloc.start()
    try:
        shards = open_shards([str(tmp_path)])
        n_held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(opened) == sorted(str(tmp_path / f"{i}.h5") for i in range(200))
    assert [Path(shard.path).stem for shard in shards] == [str(i) for i in range(200)]
    assert n_held < 200 * 5000
    assert peak < n_held + 2**22
    numbers = first_rows(shards)
    assert read(block_of(shards, numbers, 597, 600)).tolist() == numbered(3).tolist()


# -- dtypes and attributes -------------------------------------------------------------------------------------------


@each("chunks", [None, (7, 4)])
def test_float_type_that_numpy_lacks_is_read(tmp_path, chunks):
    rows = (numbered(20, 4) % 17).astype(np.float32) / 4  # exact with few bits of mantissa
    bfloat16 = h5t.IEEE_F16LE.copy()
    bfloat16.set_fields(15, 7, 8, 0, 7)
    bfloat16.set_ebias(127)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows, dtype=h5py.Datatype(bfloat16), chunks=chunks)])
    np.testing.assert_array_equal(whole(shard), rows)


@each("value, expected", [([2], 2), (np.nan, None), ("none", None), ([1, 2], None)])
def test_fill_value_is_one_finite_number(tmp_path, value, expected):
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with h5py.File(path, "a") as file:
        file["X"].attrs["_FillValue"] = value
    assert open_shards([path])[0].fill_value == expected


@each("skips", [False, True])
@each("n_files", [1, 3, 30])
def test_a_wrong_dataset_is_one_error_with_a_question(tmp_path, caplog, n_files, skips):
    paths = [write_shard(tmp_path / f"{i:02}.h5", numbered(3), "counts") for i in range(n_files)]
    refuse = (lambda path, error: None) if skips else None
    with refused(65, f"file={paths[0]} dataset=Count: ", "Did you mean counts?") as error:
        open_shards(paths, "Count", refuse)
    assert "--on-bad-data" not in str(error.value)
    assert warnings_of(caplog) == []


@each("n_good", [0, 1])
def test_skipping_is_advised_only_if_a_file_is_left(tmp_path, n_good):
    for i in range(3):
        (tmp_path / f"{i}.h5").write_text("no HDF5")
    for i in range(n_good):
        write_shard(tmp_path / f"good {i}.h5", numbered(3))
    with refused(65, str(tmp_path / "0.h5"), str(tmp_path / "2.h5")) as error:
        open_shards([str(tmp_path)])
    assert ("--on-bad-data skip" in str(error.value)) == (n_good > 0)


# -- files that are no shards --------------------------------------------------------------------------------------


@each("libver, userblock_size", [("earliest", 0), ("v108", 512), ("latest", 0)])
def test_truncated_file_is_refused(tmp_path, libver, userblock_size):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=(libver, "latest"), userblock_size=userblock_size) as file:
        file.create_dataset("X", data=numbered(1024), chunks=(64, 2), compression="gzip")
    content = path.read_bytes()
    for n_bytes in (*range(userblock_size, userblock_size + 100, 9), *range(700, len(content), 1997), len(content) - 1):
        path.write_bytes(content[:n_bytes])
        phrases = [f" {n_bytes} bytes", f"expected {len(content)} bytes"] if n_bytes >= 700 else []
        with case(n_bytes), refused(65, f"file={path}", *phrases):
            open_shards([str(path)])


@pytest.mark.parametrize("path", ["/dev/full", "/dev/zero"])  # any other program may open /dev/null
def test_device_file_is_refused_without_opening_it(path):
    with hostile.opens(Path(path)) as counts, refused(66, f"file={path}"):
        open_shards([path])
    assert counts == [0]


@each("options", [{}, {"chunks": (7, 1), "compression": "gzip"}])
def test_file_with_a_later_user_block_is_read(tmp_path, options):
    """Addresses in the file do not include the user block, unlike those in files that were written with one."""
    path = Path(write_shard(tmp_path / "x.mat", numbered(30), extras={"text": ["a"] * 30}, **options))
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(1024) + path.read_bytes())
    (shard,) = open_shards([str(path)])
    np.testing.assert_array_equal(whole(shard), numbered(30))
    assert read_extras(Block(shard, 0, 30))["text"].tolist() == [b"a"] * 30


@each("libver", ["earliest", "latest"])
@each("driver, name, first", [("family", "x%d.h5", "x0.h5"), ("split", "x", "x-m.h5")])
def test_file_of_several_is_refused(tmp_path, driver, name, first, libver):
    options = {"memb_size": 4096} if driver == "family" else {}
    with h5py.File(tmp_path / name, "w", driver=driver, libver=libver, **options) as file:
        file["X"] = np.zeros((600, 2))
    with refused(65, str(tmp_path / first)):
        open_shards([str(tmp_path / first)])


def test_file_left_open_is_refused_and_not_repaired(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as file:
        file["X"] = np.zeros((6, 2))
        file.flush()
        before = Path(file.filename).read_bytes()  # as if the writer was killed here
    path.write_bytes(before)
    with refused(65, str(path), "h5clear -s"):
        open_shards([str(path)])
    assert path.read_bytes() == before
