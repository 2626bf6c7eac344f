"""Tests of raw reads: values equal h5py's bit for bit, and damaged, changed and missing files are distinguished.

Sample: 120 random files, and with TEST_CASES=all 300.
"""

import ctypes
import dataclasses
import errno
import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.hdf5.values import read_values
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case, sample
from tests.support.helpers import numbered, numbered_shards, refused, write_shard

DTYPES = ["?", "u1", "i1", *(f"{order}{code}" for order in "<>" for code in ("u2", "i4", "u8", "f2", "f4", "f8"))]
PIPELINES = [
    {},
    {"compression": "gzip", "compression_opts": 1},
    {"compression": "gzip", "shuffle": True},
    {"compression": "lzf"},
    {"compression": "lzf", "shuffle": True, "fletcher32": True},
    {"fletcher32": True},
    {"shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
]
LIBVERS = ["earliest", "v108", "v110", "latest"]


def read_all(shard):
    return read(Block(shard, 0, shard.n_rows))


# -- equal to h5py -----------------------------------------------------------------------------------------------


def random_rows(rng, dtype, shape):
    """Return rows that are repetitive in one half, so that filters shrink some chunks only."""
    if dtype == np.dtype(bool):
        return rng.integers(0, 2, shape).astype(bool)
    noise = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    return np.where(rng.random(shape[:1] + (1,) * (len(shape) - 1)) < 0.5, noise, dtype.type(3)).astype(dtype)


def random_storage(rng, shape):
    options = dict(PIPELINES[rng.integers(len(PIPELINES))])
    if options or rng.random() < 0.6:
        options["chunks"] = tuple(int(rng.integers(1, n + 1)) for n in shape)
    if "chunks" in options and rng.random() < 0.4:
        options["maxshape"] = tuple(None if rng.random() < 0.5 else n + 3 for n in shape)
    return options


@pytest.mark.process
def test_every_storage_and_dtype_is_read_as_by_h5py(tmp_path):
    for seed in sample(range(300), 120):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
            shape = tuple(int(n) for n in rng.integers(1, (40, 9, 4, 3)[: rng.integers(2, 5)]))
            options = random_storage(rng, shape)
            path = tmp_path / "x.h5"
            with h5py.File(path, "w", libver=(LIBVERS[rng.integers(len(LIBVERS))], "latest")) as file:
                file.create_dataset("X", data=random_rows(rng, dtype, shape), **options)
                y = random_rows(rng, dtype, shape[:1])
                file.create_dataset("y", data=y, chunks=(int(rng.integers(1, shape[0] + 1)),))
            (shard,) = open_shards([str(path)])
            for _ in range(4):
                start, stop = sorted(int(i) for i in rng.integers(0, shape[0] + 1, 2))
                with h5py.File(path) as file:
                    stored = file["X"][start:stop]
                    labels = file["y"][start:stop]
                found = read(Block(shard, start, stop))
                expected = stored.reshape(stop - start, shard.n_inputs).astype(shard.dtype)
                assert (found.dtype, found.shape) == (expected.dtype, (stop - start, shard.n_inputs))
                assert found.flags.c_contiguous
                assert found.tobytes() == expected.tobytes()
                extra = read_extras(Block(shard, start, stop))["y"]
                assert (extra.dtype, extra.tobytes()) == (labels.dtype, labels.tobytes())


def low_level(path, data, libver="latest", **properties):
    """Write a dataset with property lists that h5py's high-level interface does not offer."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for name, arguments in properties.items():
        getattr(created, name)(*arguments)
    with h5py.File(path, "w", libver=libver) as file:
        space = h5py.h5s.create_simple(data.shape)
        dataset = h5py.h5d.create(file.id, b"X", h5py.h5t.py_create(data.dtype), space, dcpl=created)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
    return str(path)


@pytest.mark.process
def test_compact_data_is_read_from_the_metadata(tmp_path):
    rows = numbered(5, dtype=np.float16)
    (shard,) = open_shards([low_level(tmp_path / "x.h5", rows, set_layout=(h5py.h5d.COMPACT,))])
    assert shard.layouts[0].kind == "inline"
    np.testing.assert_array_equal(read(Block(shard, 1, 4)), rows[1:4])


@pytest.mark.process
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("chunks", [(2, 2), (5, 3), (1, 3)])
def test_chunks_allocated_early_are_found_without_an_index(tmp_path, libver, chunks):
    rows = numbered(5, 3)
    early = {"set_chunk": (chunks,), "set_alloc_time": (h5py.h5d.ALLOC_TIME_EARLY,)}
    (shard,) = open_shards([low_level(tmp_path / "x.h5", rows, libver, **early)])
    np.testing.assert_array_equal(read_all(shard), rows)


@pytest.mark.process
@pytest.mark.parametrize(
    "filtered", [("set_shuffle",), ("set_deflate",), ("set_fletcher32",), ("set_shuffle", "set_deflate")]
)
def test_edge_chunks_stored_without_filters_are_read(tmp_path, filtered):
    """HDF5 marks these chunks by a property that h5py does not support, not by filter masks."""
    rows = numbered(5, 3, dtype=np.int32)
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((2, 2))
    for name in filtered:
        getattr(created, name)(*([4] if name == "set_deflate" else []))
    set_options = ctypes.CDLL(h5py.h5p.__file__).H5Pset_chunk_opts
    assert set_options(ctypes.c_int64(created.id), ctypes.c_uint(2)) == 0
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        dataset = h5py.h5d.create(file.id, b"X", h5py.h5t.STD_I32LE, h5py.h5s.create_simple(rows.shape), dcpl=created)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows)
    (shard,) = open_shards([str(tmp_path / "x.h5")])
    np.testing.assert_array_equal(read_all(shard), rows)


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
    np.testing.assert_array_equal(read_all(shard), rows)


@pytest.mark.process
@pytest.mark.parametrize(
    "values",
    [
        np.array([(1, 2.0, b"x", [1, 2])] * 4, [("a", ">i4"), ("b", "f8"), ("c", "S3"), ("d", "u1", 2)]),
        np.zeros(4, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.array([1, 2, 0, 1], h5py.enum_dtype({"no": 0, "yes": 1, "maybe": 2}, "i2")),
        np.array([b"a", b"bcd", b"", b"\xc3\xbc"], h5py.string_dtype("utf-8", 4)),
        np.array([1, 2, 3, 4], "M8[s]").astype(h5py.opaque_dtype(np.dtype("M8[s]"))),
        np.arange(4).astype(np.complex64),
        np.zeros(4, "V5"),
        np.zeros(4, np.longdouble),
    ],
    ids=lambda values: str(values.dtype),
)
def test_extras_of_every_dtype_keep_the_metadata_of_h5py(tmp_path, values):
    path = write_shard(tmp_path / "x.h5", numbered(4), extras={"r": values})
    (shard,) = open_shards([path])
    found = read_extras(Block(shard, 1, 4))["r"]
    with h5py.File(path) as file:
        expected = file["r"][1:4]
    assert (found.dtype, found.dtype.metadata) == (expected.dtype, expected.dtype.metadata)
    assert found.tobytes() == expected.tobytes()


def test_long_extra_values_are_read_along_either_axis(tmp_path):
    texts = np.array([[f"{i}" * 200_000 for i in range(4)]], "S200000")
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), extras={"across": texts, "y": texts[0]})])
    found = read_extras(Block(shard, 1, 4))
    assert found["across"].tolist() == found["y"].tolist() == texts[0, 1:].tolist()


@pytest.mark.process
@pytest.mark.parametrize("padding", [h5py.h5t.STR_NULLTERM, h5py.h5t.STR_SPACEPAD])
def test_texts_with_any_padding_are_read_as_by_h5py(tmp_path, padding):
    path = write_shard(tmp_path / "x.h5", numbered(4))
    with h5py.File(path, "a") as file:
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(4)
        kind.set_strpad(padding)
        dataset = h5py.h5d.create(file.id, b"r", kind, h5py.h5s.create_simple((4,)))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([b"a", b"bc", b"", b"def"], "S4"))
        expected = file["r"][:]
    (shard,) = open_shards([path])
    found = read_extras(Block(shard, 0, 4))["r"]
    assert found.tolist() == expected.tolist() == [b"a", b"bc", b"", b"def"]


@pytest.mark.process
def test_long_texts_are_read_in_several_answers(tmp_path, monkeypatch):
    texts = np.array([b"x" * (i % 7 * 10_000) for i in range(3000)], object)
    path = write_shard(tmp_path / "x.h5", numbered(3000))
    with h5py.File(path, "a") as file:
        file.create_dataset("text", data=texts, dtype=h5py.string_dtype(), chunks=(100,), compression="gzip")
    (shard,) = open_shards([path])
    found = read_extras(Block(shard, 1, 3000))["text"]
    assert found.tolist() == texts[1:].tolist()


# -- damaged chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [0, 99, 101, 2**20])
def test_chunk_of_another_size_is_refused_with_rows_and_place(tmp_path, n_bytes):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("X", (10, 10), "u1", chunks=(10, 10), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(n_bytes)))
    (shard,) = open_shards([str(path)])
    with refused(65, f"file={path} dataset=X rows=0:10", "[0, 0]", "expected 10"):
        read_all(shard)


def test_wrong_checksum_is_reported_with_its_rows(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(8), chunks=(4, 2), fletcher32=True)
    (shard,) = open_shards([path])
    offset = int(shard.layouts[0].index[0, 1])
    content = bytearray(Path(path).read_bytes())
    content[offset + 3] ^= 1
    stamp = os.stat(path)
    Path(path).write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    np.testing.assert_array_equal(read(Block(shard, 0, 4)), numbered(4))
    with refused(65, f"file={path} dataset=X rows=3:8", "[4, 0]", "checksum", "expected 0x"):
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


def failing(number, times):
    """Return a function that raises an error in its first `times` calls, and the list of calls."""
    calls_made = []

    def act(real, *arguments):
        calls_made.append(arguments)
        if len(calls_made) <= times:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    return act, calls_made


LAYOUTS = [{}, {"chunks": (2, 2), "compression": "gzip"}]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_short_reads_change_nothing(tmp_path, calls, options):
    (shard,) = numbered_shards(tmp_path, 9, **options)
    calls("preadv", lambda real, descriptor, buffer, offset: real(descriptor, buffer[:1], offset))
    np.testing.assert_array_equal(read_all(shard), numbered(9))


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["open", "stat", "fstat", "preadv"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT])
def test_failed_read_is_repeated_with_a_new_descriptor(tmp_path, calls, options, name, number):
    (shard,) = numbered_shards(tmp_path, 9, **options)
    act, _ = failing(number, 3)
    opened = []
    calls(name, act)
    calls("open", lambda real, path: opened.append(path) or real(path))
    np.testing.assert_array_equal(read_all(shard), numbered(9))
    assert len(opened) == (1 if name == "stat" else 4)


@pytest.mark.parametrize("name", ["open", "stat", "fstat", "preadv"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_persistent_read_failure_is_a_storage_error(tmp_path, calls, name, number):
    (shard,) = numbered_shards(tmp_path, 9)
    act, all_calls = failing(number, 10**6)
    calls(name, act)
    with refused(74, f"file={shard.path} dataset=X rows=2:7", os.strerror(number), "4 times"):
        read(Block(shard, 2, 7))
    assert len(all_calls) == 4


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_names_the_limit_to_raise(tmp_path, calls, number):
    (shard,) = numbered_shards(tmp_path, 9)
    calls("open", failing(number, 10**6)[0])
    with refused(71, shard.path, os.strerror(number), "ulimit -n"):
        read_all(shard)
    with refused(71, shard.path, "ulimit -n"):
        open_shards([shard.path])


def test_lost_permission_is_reported_as_such(tmp_path, calls):
    (shard,) = numbered_shards(tmp_path, 9)
    calls("open", failing(errno.EACCES, 10**6)[0])
    with refused(77, shard.path, "chmod"):
        read_all(shard)


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


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


CHANGES = [append, touch, replace, truncate]


@pytest.mark.parametrize("change", CHANGES)
def test_file_changed_after_vetting_is_refused(tmp_path, change):
    (shard,) = numbered_shards(tmp_path, 100)
    change(shard.path)
    with refused(65, f"file={shard.path}", "changed"):
        read_all(shard)


def test_file_vetted_on_another_host_is_accepted(tmp_path):
    """On a shared file system a file has one inode number, but each host assigns its own device number."""
    (shard,) = numbered_shards(tmp_path, 100)
    identity = dataclasses.replace(shard.identity, device=shard.identity.device + 1)
    assert np.array_equal(read_all(dataclasses.replace(shard, identity=identity)), read_all(shard))


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("change", [append, touch, truncate])
def test_file_changed_during_a_read_is_refused(tmp_path, calls, options, change):
    (shard,) = numbered_shards(tmp_path, 100, **options)

    def act(real, *arguments):
        change(shard.path)
        return real(*arguments)

    calls("preadv", act)
    with refused(65, f"file={shard.path}", "changed"):
        read_all(shard)


def test_file_deleted_during_a_read_is_read_to_its_end(tmp_path, calls):
    (shard,) = numbered_shards(tmp_path, 100)

    def act(real, *arguments):
        Path(shard.path).unlink(missing_ok=True)
        return real(*arguments)

    calls("preadv", act)
    np.testing.assert_array_equal(read_all(shard), numbered(100))


def test_fifo_in_place_of_a_vetted_file_does_not_block(tmp_path):
    (shard,) = numbered_shards(tmp_path, 3)
    os.unlink(shard.path)
    os.mkfifo(shard.path)
    with refused(66, shard.path):
        read_all(shard)


@pytest.mark.parametrize("options", [*LAYOUTS, {"chunks": (2, 2), "compression": "lzf"}], ids=str)
def test_reads_leave_no_descriptor_open(tmp_path, calls, options):
    (shard,) = numbered_shards(tmp_path, 9, **options)
    read_all(shard)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read_all(shard)
    calls("preadv", failing(errno.EIO, 10**6)[0])
    with refused(74):
        read_all(shard)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.process
def test_reads_by_the_child_leave_no_descriptor_open(tmp_path):
    text = np.array([b"a", b"bc", b""], object)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(3), extras={"text": text})])
    assert read_extras(Block(shard, 0, 3))["text"].tolist() == text.tolist()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read_extras(Block(shard, 0, 3))
    assert len(os.listdir("/proc/self/fd")) == before


def test_conversion_holds_one_piece_in_memory_twice(tmp_path):
    """Values are converted in pieces of a megabyte; chunks are read one by one."""
    rows = np.zeros((2**14, 512), ">f4")
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    tracemalloc = pytest.importorskip("tracemalloc")
    tracemalloc.start()
    try:
        found = read_values(shard.path, shard.identity, shard.layouts[0], 0, np.empty((2**14, 512), "f4"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < found.nbytes + 2**22
