"""Tests of vetting: shards are described, and all other files are refused by name, before a row is read."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5t

from shardpress.hdf5.child.ask import retire
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from shardpress.shards.vet import vet
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import numbered, refused, whole, without_privileges, write_shard

pytestmark = pytest.mark.process


# -- types and contents ------------------------------------------------------------------------------------------


@each(
    "content, phrase",
    [
        (None, "a group"),
        (np.array([["a"], ["b"]], object), "strings"),
        (np.array([["a"], ["b"]], "S1"), "strings"),
        (np.zeros((2, 2), [("a", "i4"), ("b", "f4")]), "2 fields"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.zeros((2, 2), "V4"), "dtype |V4"),
        (h5py.Empty("f4"), "empty dataset"),
        (np.zeros((3, 2, 0)), "(3, 2, 0)"),
        (np.zeros(3), "rank 1"),
        (np.float64(3), "rank 0"),
        (np.zeros((0, 3)), "1 shards"),
    ],
)
def test_dataset_that_is_no_table_of_numbers_is_refused(tmp_path, content, phrase):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        if content is None:
            file.create_group("X")
        else:
            file["X"] = content
    with refused(65, f"file={path} dataset=X", phrase):
        open_shards([str(path)])


FLOATS = np.random.default_rng(0).integers(-8, 9, (20, 4)).astype(np.float32) / 4  # exact with 4 bits of mantissa


def float_type(size, n_exponent, n_mantissa):
    """Return a floating-point type of `size` bytes, with sign bit, exponent and mantissa in this order."""
    kind = h5t.IEEE_F32LE.copy() if size <= 4 else h5t.IEEE_F64LE.copy()
    if size > 8:
        kind.set_size(size)
        kind.set_precision(8 * size)
    n_bits = 1 + n_exponent + n_mantissa
    kind.set_fields(n_bits - 1, n_mantissa, n_exponent, 0, n_mantissa)
    kind.set_ebias(2 ** (n_exponent - 1) - 1)
    kind.set_size(size)
    kind.set_precision(n_bits)
    return kind


def three_byte_integer():
    kind = h5t.STD_I32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    return kind


def write_as(path, dtype, rows=None, chunks=None, name=b"X"):
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            properties.set_chunk(chunks)
        dataset = h5py.h5d.create(file.id, name, dtype, h5py.h5s.create_simple((20, 4)), properties)
        if rows is not None:
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows, h5t.NATIVE_FLOAT)
    return str(path)


@each("chunks", [None, (7, 4)])
@each("size, n_exponent, n_mantissa", [(2, 8, 7), (3, 8, 15), (4, 8, 15), (6, 7, 40)])
def test_float_types_that_numpy_lacks_are_read(tmp_path, chunks, size, n_exponent, n_mantissa):
    kind = float_type(size, n_exponent, n_mantissa)
    (shard,) = open_shards([write_as(tmp_path / "x.h5", kind, FLOATS, chunks)])
    np.testing.assert_array_equal(whole(shard), FLOATS)
    with refused(65, "dataset=X", "never written"):
        open_shards([write_as(tmp_path / "y.h5", kind, None, chunks)])


@each("kind", [three_byte_integer(), h5t.UNIX_D32LE, h5t.NATIVE_LDOUBLE, float_type(20, 19, 140)])
def test_types_that_hdf5_cannot_convert_are_refused(tmp_path, kind):
    path = write_as(tmp_path / "x.h5", kind)
    for requested in (None, "X"):
        with refused(65, path, "dataset=X", "expected"):
            open_shards([path], requested)


def test_type_unknown_to_numpy_elsewhere_is_harmless(tmp_path):
    path = write_as(tmp_path / "x.h5", three_byte_integer(), name=b"odd")
    with h5py.File(path, "a") as file:
        file["rows"] = numbered(3)
    assert open_shards([path])[0].dataset == "rows"


@each(
    "value, expected",
    [
        (np.float32(0.5), 0.5),
        ([2], 2),
        (np.nan, None),
        (np.inf, None),
        ("none", None),
        ([1, 2], None),
        (h5py.Empty("f4"), None),
        (np.zeros((), "i4,f4"), None),
    ],
)
def test_fill_value_is_one_finite_number_and_logged(tmp_path, caplog, value, expected):
    caplog.clear()
    caplog.set_level("INFO", "shardpress")
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with h5py.File(path, "a") as file:
        file["X"].attrs["_FillValue"] = value
    assert open_shards([path])[0].fill_value == expected
    assert (f"--missing-value {expected}" in caplog.text) == (expected is not None)


# -- files that are no shards ------------------------------------------------------------------------------------


@each(
    "content",
    [
        b"",
        b"label,x,y\n1,2,3\n",
        bytes(3_000_000),
        bytes(256) + b"\x89HDF\r\n\x1a\n" + bytes(1000),
        bytes(1536) + b"\x89HDF\r\n\x1a\n" + bytes(1000),
        b"\x1b[31m\n\r\0red",
        b"\x89HDF\n\x1a\n" + bytes(100),
    ],
)
def test_file_that_is_not_hdf5_is_refused_with_its_first_bytes(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with refused(65, str(path), repr(content[:16])):
        open_shards([str(path)])


@pytest.mark.parametrize("userblock_size", [0, 512])
@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
def test_truncated_file_is_refused(tmp_path, libver, userblock_size):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=(libver, "latest"), userblock_size=userblock_size) as file:
        file.create_dataset("X", data=numbered(1024), chunks=(64, 2), compression="gzip")
    content = path.read_bytes()
    for n_bytes in (*range(userblock_size, userblock_size + 100, 3), *range(700, len(content), 997), len(content) - 1):
        path.write_bytes(content[:n_bytes])
        phrases = [f" {n_bytes} bytes", f"expected {len(content)} bytes"] if n_bytes >= 700 else []
        with case(n_bytes), refused(65, f"file={path}", *phrases):
            open_shards([str(path)])


def test_file_with_a_damaged_structure_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(8))
    content = path.read_bytes()
    for signature in (b"TREE", b"HEAP", b"SNOD"):
        path.write_bytes(content.replace(signature, b"\0\0\0\0"))
        with case(signature), refused(65, str(path)):
            open_shards([str(path)])


def test_fifo_is_refused_without_blocking(tmp_path):
    path = tmp_path / "x.h5"
    os.mkfifo(path)
    # Keep the FIFO open, so that a reader that opens it fails instead of blocking.
    descriptor = os.open(path, os.O_RDWR)
    try:
        with refused(66, f"file={path}"):
            open_shards([str(path)])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("path", ["/dev/full", "/dev/zero"])  # any other program may open /dev/null
def test_device_file_is_refused_without_opening_it(path):
    with hostile.opens(Path(path)) as counts, refused(66, f"file={path}"):
        open_shards([path])
    assert counts == [0]


def test_directory_or_link_named_like_a_shard_is_refused(tmp_path):
    (tmp_path / "in/x.h5").mkdir(parents=True)
    (tmp_path / "circle.h5").symlink_to("circle.h5")
    (tmp_path / "dangling.h5").symlink_to("nowhere.h5")
    for name, found in (("in", "x.h5"), ("circle.h5", "circle.h5"), ("dangling.h5", "dangling.h5")):
        with case(name), refused(66, found):
            open_shards([str(tmp_path / name)])


def test_path_without_read_permission_is_refused(open_path):
    path = Path(write_shard(open_path / "x.h5", numbered(2)))
    path.chmod(0)
    folder = open_path / "closed"
    folder.mkdir(mode=0o300)
    for closed in (path, folder):
        exit_code, sentence = without_privileges(lambda closed=closed: open_shards([str(closed)]))
        assert exit_code == 77, sentence
        assert str(closed) in sentence


# -- checks before the rows --------------------------------------------------------------------------------------


@each("user_block", [512, 1024, -1])  # -1: one that was put before the file later
@each("options", [{}, {"chunks": (7, 1), "compression": "gzip"}, {"chunks": (7, 2), "maxshape": (None, 2)}])
def test_file_with_a_user_block_is_read(tmp_path, user_block, options):
    path = tmp_path / "x.mat"
    with h5py.File(path, "w", userblock_size=max(0, user_block)) as file:
        file.create_dataset("X", data=numbered(30), **options)
        file["y"] = np.arange(30)
        file["text"] = ["a"] * 30
    if user_block < 0:
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(1024) + path.read_bytes())
    (shard,) = open_shards([str(path)])
    np.testing.assert_array_equal(whole(shard), numbered(30))
    extras = read_extras(Block(shard, 0, 30))
    np.testing.assert_array_equal(extras["y"], np.arange(30))
    assert extras["text"].tolist() == [b"a"] * 30


def test_file_left_open_is_refused_and_not_repaired(tmp_path):
    path = hostile.left_open(tmp_path)
    before = path.read_bytes()
    with refused(65, str(path), "h5clear -s"):
        open_shards([str(path)])
    assert path.read_bytes() == before


@each("libver", ["earliest", "latest"])
@each("driver", ["family", "split"])
def test_multi_file_driver_is_refused(tmp_path, driver, libver):
    path = hostile.in_several_files(tmp_path, driver, libver)
    with refused(65, str(path)):
        open_shards([str(path)])


@each("offset, value", [(8, 4), (8, 255), (13, 3)])
def test_unknown_superblock_is_refused(tmp_path, offset, value):
    path = hostile.plain(tmp_path)
    content = bytearray(path.read_bytes())
    content[offset] = value
    path.write_bytes(content)
    with refused(65, str(path)):
        open_shards([str(path)])


# -- the system --------------------------------------------------------------------------------------------------


def test_opened_file_is_vetted_even_if_its_path_is_replaced(tmp_path, monkeypatch):
    """Another file may be at the path by then, so the child does not open the path again."""
    path = Path(write_shard(tmp_path / "x.h5", numbered(3)))
    other = Path(write_shard(tmp_path / "other.h5", numbered(5)))
    real = FILES.open

    def swap(name):
        descriptor = real(name)
        os.replace(other, path)
        return descriptor

    monkeypatch.setattr(FILES, "open", swap)
    assert vet(path).shape == (3, 2)


def test_vetting_and_reading_leave_no_descriptor_open(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), extras={"text": np.array([b"a", b"bc", b""], object)})
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"bad")

    def n_open() -> int:
        retire()  # an idle child, perhaps of an earlier test, has open pipes
        return len(os.listdir("/proc/self/fd"))

    open_shards([path])
    before = n_open()
    for _ in range(3):
        (shard,) = open_shards([path])
        whole(shard)
        read_extras(Block(shard, 0, 3))
        with refused(65):
            open_shards([str(bad)])
        with refused(65):
            open_shards([path], "nowhere")
    assert n_open() == before
