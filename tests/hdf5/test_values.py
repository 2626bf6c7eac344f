"""Tests of raw reads: odd layouts, and damaged, changed and missing files, which are distinguished.

`test_libraries` and `shards/test_rows.py` compare the values of usual layouts with those of h5py.
"""

import ctypes
import dataclasses
import errno
import os
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from tests.support.cases import each
from tests.support.damage import damage
from tests.support.helpers import numbered, numbered_shards, refused, whole, write_shard

pytestmark = pytest.mark.process

BZIP2 = (hdf5plugin.BZip2.filter_id, h5py.h5z.FLAG_OPTIONAL, (9,))
CHUNKED = {"chunks": (2, 2), "compression": "gzip"}


# -- layouts that h5py's high-level interface does not write -----------------------------------------------------


def opened(path, rows, libver="latest", chunk_options=0, **properties):
    """Write rows with property lists, and open the shard."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for name, arguments in properties.items():
        getattr(created, name)(*arguments)
    if chunk_options:
        set_options = ctypes.CDLL(h5py.h5p.__file__).H5Pset_chunk_opts
        assert set_options(ctypes.c_int64(created.id), ctypes.c_uint(chunk_options)) == 0
    with h5py.File(path, "w", libver=libver) as file:
        space = h5py.h5s.create_simple(rows.shape)
        dataset = h5py.h5d.create(file.id, b"X", h5py.h5t.py_create(rows.dtype), space, dcpl=created)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows)
    return open_shards([str(path)])[0]


@each("libver", ["earliest", "latest"])
@each("chunks", [(2, 2), (5, 3), (1, 3)])
def test_chunks_allocated_early_are_found_without_an_index(tmp_path, libver, chunks):
    rows = numbered(5, 3)
    early = {"set_chunk": (chunks,), "set_alloc_time": (h5py.h5d.ALLOC_TIME_EARLY,)}
    np.testing.assert_array_equal(whole(opened(tmp_path / "x.h5", rows, libver, **early)), rows)


@each("filters", [{"set_shuffle": ()}, {"set_deflate": (4,)}, {"set_fletcher32": ()}, {"set_filter": BZIP2}])
def test_edge_chunks_stored_without_filters_are_read(tmp_path, filters):
    """HDF5 marks these chunks by a property that h5py does not support, not by filter masks."""
    rows = numbered(5, 3, dtype=np.int32)
    shard = opened(tmp_path / "x.h5", rows, chunk_options=2, set_chunk=((2, 2),), **filters)
    np.testing.assert_array_equal(whole(shard), rows)


def test_filters_masked_for_a_chunk_are_not_applied_to_it(tmp_path):
    rows = numbered(4, 2, dtype=np.int16)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("X", (4, 2), "<i2", chunks=(2, 2), compression="gzip", shuffle=True)
        dataset.id.write_direct_chunk((0, 0), rows[:2].tobytes(), filter_mask=0b11)
        shuffled = rows[2:].view(np.uint8).reshape(-1, 2).T.tobytes()
        dataset.id.write_direct_chunk((2, 0), shuffled, filter_mask=0b10)
        np.testing.assert_array_equal(dataset[:], rows)
    (shard,) = open_shards([str(path)])
    np.testing.assert_array_equal(whole(shard), rows)


# -- damaged chunks ----------------------------------------------------------------------------------------------


def test_wrong_checksum_is_reported_with_its_rows(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(8), chunks=(4, 2), fletcher32=True)
    damage(path, chunk=1)
    (shard,) = open_shards([path])
    np.testing.assert_array_equal(read(Block(shard, 0, 4)), numbered(4))
    with refused(65, f"file={path} dataset=X rows=3:8", "[4, 0]", "checksum"):
        read(Block(shard, 3, 8))


# -- the system --------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Return a function that replaces a system call of the reader: ``calls("preadv", act)``."""
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)

    def replace(name, act):
        real = getattr(FILES, name)
        monkeypatch.setattr(FILES, name, lambda *arguments: act(real, *arguments))

    return replace


def test_short_reads_change_nothing(tmp_path, calls):
    (shard,) = numbered_shards(tmp_path, 9, **CHUNKED)
    calls("preadv", lambda real, descriptor, buffer, offset: real(descriptor, buffer[:1], offset))
    np.testing.assert_array_equal(whole(shard), numbered(9))


@pytest.mark.parametrize(
    ("name", "number", "exit_code", "advice"),
    [
        ("fstat", errno.ESTALE, 74, "4 times"),
        ("preadv", errno.EIO, 74, "4 times"),
        ("open", errno.EMFILE, 71, "ulimit -n"),
        ("open", errno.EACCES, 77, "chmod"),
    ],
)
def test_persistent_failure_is_an_error_of_its_kind(tmp_path, calls, name, number, exit_code, advice):
    (shard,) = numbered_shards(tmp_path, 9)
    n_open = len(os.listdir("/proc/self/fd"))

    def fail(real, *arguments):
        raise OSError(number, os.strerror(number))

    calls(name, fail)
    with refused(exit_code, f"file={shard.path} dataset=X rows=2:7", advice):
        read(Block(shard, 2, 7))
    with refused(exit_code, f"file={shard.path}", advice):
        open_shards([shard.path], on_bad_shard=lambda path, error: pytest.fail("the shard was left out"))
    assert len(os.listdir("/proc/self/fd")) == n_open


def touch(path):
    stamp = os.stat(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))


def replace(path):
    stamp = os.stat(path)
    other = Path(f"{path}.other")
    other.write_bytes(Path(path).read_bytes())
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, path)


def truncate(path):
    os.truncate(path, os.stat(path).st_size - 100)


@pytest.mark.parametrize("change", [touch, replace, truncate])
def test_file_changed_after_vetting_is_refused(tmp_path, change):
    (shard,) = numbered_shards(tmp_path, 100)
    change(shard.path)
    with refused(65, f"file={shard.path}", "changed"):
        whole(shard)


@pytest.mark.parametrize("change", [touch, truncate])
def test_file_changed_during_a_read_is_refused(tmp_path, calls, change):
    (shard,) = numbered_shards(tmp_path, 100)

    def act(real, *arguments):
        change(shard.path)
        return real(*arguments)

    calls("preadv", act)
    for attempt in (lambda: whole(shard), lambda: open_shards([shard.path])):
        with refused(65, f"file={shard.path}", "changed"):
            attempt()


def test_file_vetted_on_another_host_is_accepted(tmp_path):
    """On a shared file system a file has one inode number, but each host assigns its own device number."""
    (shard,) = numbered_shards(tmp_path, 100)
    identity = dataclasses.replace(shard.identity, device=shard.identity.device + 1)
    assert np.array_equal(whole(dataclasses.replace(shard, identity=identity)), numbered(100))


def test_missing_file_is_a_storage_error_and_a_fifo_does_not_block(tmp_path, calls):
    (shard,) = numbered_shards(tmp_path, 3)
    os.unlink(shard.path)
    with refused(74, f"file={shard.path} dataset=X rows=0:3", "4 times"):
        whole(shard)
    os.mkfifo(shard.path)
    with refused(66, shard.path):
        whole(shard)
