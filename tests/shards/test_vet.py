"""Tests of vetting: shards are described, and all other files are refused by name, before a row is read."""

import errno
import os
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child.ask import retire
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.vet import vet
from tests.support import hostile
from tests.support.cases import case
from tests.support.helpers import names, numbered, refused, without_privileges, write_shard


def low_level(path, kind, name=b"X", shape=(3, 2)):
    """Write a dataset of a type that h5py's high-level interface cannot create."""
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, name, kind, h5py.h5s.create_simple(shape))
    return str(path)


def three_byte_integer():
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    return kind


# -- choice of the dataset ---------------------------------------------------------------------------------------


@pytest.mark.process
def test_requested_dataset_or_x_or_the_only_candidate_is_read(tmp_path):
    for datasets, requested, chosen in [
        ({"X": 2, "Y": 2}, None, "X"),
        ({"X": 2, "Y": 2}, "Y", "Y"),
        ({"Y": 2, "labels": 1}, None, "Y"),
        ({"deep/er/images": 3, "labels": 1}, None, "deep/er/images"),
        ({"deep/X": 2, "deep/Y": 2}, "/deep/Y", "/deep/Y"),
    ]:
        with case(datasets, requested, chosen):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                for name, rank in datasets.items():
                    file[name] = np.zeros((3, 2, 2)[:rank])
                file["text"] = [["a"], ["b"]]
            assert open_shards([str(tmp_path / "x.h5")], requested)[0].dataset == chosen


@pytest.mark.process
def test_several_candidates_are_refused_and_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "a/one", {"two": numbered(3), "labels": range(3)})
    with refused(65, path, "a/one (3, 2) int64, two (3, 2) int64", "--dataset"):
        open_shards([path])


@pytest.mark.process
def test_without_a_candidate_all_names_are_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", [1, 2, 3], "labels")
    with refused(65, path, " labels", "--dataset"):
        open_shards([path])


@pytest.mark.process
def test_missing_dataset_is_refused_with_existing_names(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "images", {"labels": [1, 2, 3]})
    with refused(65, path, "dataset=pictures", "images, labels"):
        open_shards([path], "pictures")


# -- extras ------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_extras_are_found_and_read(tmp_path):
    for values in [
        np.array([3, -1, 2**62, 0]),
        np.array([1, 2, 3, 4], ">u2"),
        np.array([0.5, np.nan, 1, 2], np.float32),
        np.array([True, False, True, True]),
        np.array([b"a", b"bc", b"", b"def"], "S3"),
        np.array(["one", "zwölf", "", "4"], object),
        np.array([(1, 2.0)] * 4, [("a", "i4"), ("b", "f8")]),
    ]:
        with case(values):
            extras = {"r": values, "short": [1, 2], "wide": numbered(4)}
            (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), extras=extras)])
            assert names(shard) == ("r",)
            found = read_extras(Block(shard, 1, 4))["r"]
            if values.dtype.kind == "O":
                found = np.array([text.decode() for text in found], object)
            np.testing.assert_array_equal(found, values[1:])


def test_extras_are_siblings_of_the_rows(tmp_path):
    extras = {"g/label": range(4), "label": range(4)}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), "g/rows", extras)], "g/rows")
    assert names(shard) == ("label",)
    np.testing.assert_array_equal(read_extras(Block(shard, 2, 3))["label"], [2])


@pytest.mark.process
def test_links_are_no_extras(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4), extras={"y": range(4)})
    with h5py.File(path, "a") as file:
        file["soft"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("nowhere.h5", "/y")
    assert names(open_shards([path])[0]) == ("y",)


# -- refused files -----------------------------------------------------------------------------------------------


def test_file_that_is_not_hdf5_is_refused_with_its_first_bytes(tmp_path):
    for content in [
        b"",
        b"label,x,y\n1,2,3\n",
        bytes(3_000_000),
        bytes(256) + b"\x89HDF\r\n\x1a\n" + bytes(1000),
        bytes(1536) + b"\x89HDF\r\n\x1a\n" + bytes(1000),
        b"\x1b[31m\n\r\0red",
        b"\x89HDF\r\n\x1a",
        b"\x89HDF\n\x1a\n" + bytes(100),
    ]:
        with case(content):
            path = tmp_path / "x.h5"
            path.write_bytes(content)
            with refused(65, str(path), repr(content[:16])):
                open_shards([str(path)])


@pytest.mark.process
def test_dataset_that_is_no_table_of_numbers_is_refused(tmp_path):
    for content, phrases in [
        (None, ["a group"]),
        (["a", "b"], ["rank 1"]),
        (np.array([["a"], ["b"]], object), ["strings"]),
        (np.array([["a"], ["b"]], "S1"), ["strings"]),
        (np.zeros((2, 2), [("a", "i4"), ("b", "f4")]), ["2 fields"]),
        (np.zeros((2, 2), np.complex64), ["complex64"]),
        (np.zeros((2, 2), "V4"), ["dtype |V4"]),
        (h5py.Empty("f4"), ["empty dataset"]),
        (np.zeros((3, 0)), ["(3, 0)"]),
        (np.zeros((3, 2, 0)), ["(3, 2, 0)"]),
        (np.zeros(3), ["shape (3,)", "rank 1"]),
        (np.float64(3), ["shape ()", "rank 0"]),
        (np.zeros((0, 3)), ["1 shards"]),
    ]:
        with case(content, phrases):
            path = tmp_path / "x.h5"
            with h5py.File(path, "w") as file:
                if content is None:
                    file.create_group("X")
                else:
                    file["X"] = content
            with refused(65, f"file={path} dataset=X", *phrases):
                open_shards([str(path)])


@pytest.mark.process
@pytest.mark.parametrize("requested", [None, "X"])
@pytest.mark.parametrize("kind", [three_byte_integer(), h5py.h5t.UNIX_D32LE], ids=["int24", "time"])
def test_type_unknown_to_numpy_is_refused(tmp_path, kind, requested):
    path = low_level(tmp_path / "x.h5", kind)
    with refused(65, path, "dataset=X", "expected"):
        open_shards([path], requested)


@pytest.mark.process
def test_type_unknown_to_numpy_elsewhere_is_harmless(tmp_path):
    path = low_level(tmp_path / "x.h5", three_byte_integer(), b"odd")
    with h5py.File(path, "a") as file:
        file["rows"] = numbered(3)
    assert open_shards([path])[0].dataset == "rows"


@pytest.mark.process
@pytest.mark.parametrize("layout", [{}, {"compression": "gzip", "chunks": (64, 2)}], ids=str)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_truncated_file_is_refused(tmp_path, layout, libver):
    for sixteenths in range(16):
        with case(sixteenths):
            path = tmp_path / "x.h5"
            with h5py.File(path, "w", libver=libver) as file:
                file.create_dataset("X", data=numbered(1024), **layout)
                file["y"] = range(1024)
            content = path.read_bytes()
            n_bytes = len(content) * sixteenths // 16
            path.write_bytes(content[:n_bytes])
            phrases = [f" {n_bytes} bytes", f"expected {len(content)} bytes"]
            with refused(65, f"file={path}", *(phrases if sixteenths else [])):
                open_shards([str(path)])


@pytest.mark.process
def test_file_truncated_in_its_first_bytes_is_refused(tmp_path):
    for libver in ["earliest", "v108", "latest"]:
        with case(libver):
            path = tmp_path / "x.h5"
            with h5py.File(path, "w", libver=libver) as file:
                file["X"] = numbered(3)
            content = path.read_bytes()
            for n_bytes in range(100):
                path.write_bytes(content[:n_bytes])
                with refused(65, f"file={path}", repr(content[:n_bytes]) if n_bytes < 8 else ""):
                    open_shards([str(path)])


@pytest.mark.process
def test_file_with_a_damaged_structure_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(8))
    content = path.read_bytes()
    for signature in (b"TREE", b"HEAP", b"SNOD"):
        content = content.replace(signature, b"\0\0\0\0")
    path.write_bytes(content)
    with refused(65, str(path)):
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


def test_directory_named_like_a_shard_is_refused(tmp_path):
    (tmp_path / "x.h5").mkdir()
    with refused(66, "x.h5"):
        open_shards([str(tmp_path)])


@pytest.mark.parametrize("target", ["x.h5", "nowhere.h5"])
def test_dangling_link_is_refused(tmp_path, target):
    path = tmp_path / "x.h5"
    path.symlink_to(target)
    with refused(66, str(path)):
        open_shards([str(path)])


@pytest.mark.process
def test_file_without_read_permission_is_refused(open_path):
    path = write_shard(open_path / "x.h5", numbered(2))
    Path(path).chmod(0)
    exit_code, sentence = without_privileges(lambda: open_shards([path]))
    assert exit_code == 77, sentence
    assert path in sentence


@pytest.mark.process
def test_directory_without_read_permission_is_refused(open_path):
    folder = open_path / "closed"
    folder.mkdir(mode=0o300)
    exit_code, sentence = without_privileges(lambda: open_shards([str(folder)]))
    assert exit_code == 77, sentence
    assert str(folder) in sentence


@pytest.mark.process
def test_unknown_filter_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        add_unknown_filter(file, b"X", (4, 2))
    with refused(65, str(path), "dataset=X", "filter 300", "h5repack -f GZIP=4"):
        open_shards([str(path)])


@pytest.mark.process
def test_extra_with_an_unknown_filter_is_left_out(tmp_path, caplog):
    path = write_shard(tmp_path / "x.h5", numbered(4))
    with h5py.File(path, "a") as file:
        add_unknown_filter(file, b"label", (4,))
    assert names(open_shards([path])[0]) == ()
    assert "dataset=label: filter 300" in caplog.text


def add_unknown_filter(file, name, shape):
    """Write a dataset with one chunk through filter 300, which HDF5 reserves for tests."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name, h5py.h5t.STD_I64LE, space, dcpl=properties)
    dataset.write_direct_chunk((0,) * len(shape), b"\1" * (8 * int(np.prod(shape))))


# -- checks before the rows --------------------------------------------------------------------------------------


@pytest.mark.process
def test_file_with_a_user_block_is_read(tmp_path):
    for is_plain, libver, layout in product(
        [True, False],
        ["earliest", "v108", "latest"],
        ["contiguous", "chunks", "chunks that may grow", "compact", "put before"],
    ):
        with case(is_plain, libver, layout):
            rows = numbered(30)
            path = tmp_path / "x.mat"
            user_block = 0 if layout == "put before" else 1024
            storage = {"chunks": {"chunks": (7, 1), "compression": "gzip", "fletcher32": True}}
            storage["chunks that may grow"] = {"chunks": (7, 2), "maxshape": (None, 2), "shuffle": True}
            with h5py.File(path, "w", userblock_size=user_block, libver=(libver, "latest")) as file:
                if layout == "compact":
                    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                    created.set_layout(h5py.h5d.COMPACT)
                    space = h5py.h5s.create_simple(rows.shape)
                    dataset = h5py.h5d.create(file.id, b"X", h5py.h5t.STD_I64LE, space, dcpl=created)
                    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows)
                else:
                    file.create_dataset("X", data=rows, **storage.get(layout, {}))
                file["y"] = np.arange(30)
                if not is_plain:
                    file["text"] = ["a"] * 30
            content = path.read_bytes()
            path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(1024) + content[user_block:])
            (shard,) = open_shards([str(path)])
            block = Block(shard, 0, 30)
            np.testing.assert_array_equal(read(block), rows)
            extras = read_extras(block)
            np.testing.assert_array_equal(extras["y"], np.arange(30))
            assert ("text" in extras) != is_plain


@pytest.mark.process
def test_truncated_file_with_a_user_block_is_refused(tmp_path):
    for cut in [1, 20, 500]:
        with case(cut):
            with h5py.File(tmp_path / "x.h5", "w", userblock_size=512) as file:
                file["X"] = numbered(3)
            content = (tmp_path / "x.h5").read_bytes()
            (tmp_path / "x.h5").write_bytes(content[:-cut])
            with refused(65, f" {len(content) - cut} bytes", f"expected {len(content)} bytes"):
                open_shards([str(tmp_path)])


@pytest.mark.process
def test_file_left_open_is_refused_and_not_repaired(tmp_path):
    path = hostile.left_open(tmp_path)
    before = path.read_bytes()
    with refused(65, str(path), "h5clear -s"):
        open_shards([str(path)])
    assert path.read_bytes() == before


@pytest.mark.process
@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
@pytest.mark.parametrize("driver", ["family", "split"])
def test_multi_file_driver_is_refused(tmp_path, driver, libver):
    # The strategy for free space is next to the driver, in a header message that readers must not skip.
    for space in (None, "none"):
        with case(space):
            path = hostile.in_several_files(tmp_path, driver, libver, space)
            with refused(65, str(path)):
                open_shards([str(path)])


@pytest.mark.process
def test_unknown_superblock_is_refused(tmp_path):
    for offset, value in [(8, 4), (8, 255), (13, 3)]:
        with case(offset, value):
            path = hostile.plain(tmp_path)
            content = bytearray(path.read_bytes())
            content[offset] = value
            path.write_bytes(content)
            with refused(65, str(path)):
                open_shards([str(path)])


@pytest.mark.process
def test_files_of_every_version_of_hdf5_are_read(tmp_path):
    for libver in ["earliest", "v108", "v110", "v112", "latest"]:
        with case(libver):
            with h5py.File(
                tmp_path / "x.h5", "w", libver=(libver, "latest"), track_order=True, fs_strategy="page"
            ) as file:
                file.create_dataset("X", data=numbered(9), chunks=(2, 2), maxshape=(None, 2), compression="gzip")
                file["y"] = np.arange(9)
            (shard,) = open_shards([str(tmp_path)])
            np.testing.assert_array_equal(read(Block(shard, 0, 9)), numbered(9))


# -- the system --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["open", "stat", "fstat", "preadv"])
def test_failing_storage_is_no_bad_shard(tmp_path, monkeypatch, name):
    path = write_shard(tmp_path / "x.h5", numbered(3))
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)

    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FILES, name, fail)
    with refused(74, f"file={path}", "Input/output error", "4 times"):
        open_shards([path], on_bad_shard=lambda path, error: pytest.fail("the shard was left out"))


def test_file_changed_while_it_is_vetted_is_refused(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "x.h5", numbered(3))
    real = FILES.preadv

    def grow(*arguments):
        with open(path, "ab") as file:
            file.write(b"more")
        return real(*arguments)

    monkeypatch.setattr(FILES, "preadv", grow)
    with refused(65, f"file={path}", "changed"):
        open_shards([path])


@pytest.mark.process
@pytest.mark.parametrize("is_plain", [True, False])
def test_opened_file_is_vetted_even_if_its_path_is_replaced(tmp_path, monkeypatch, is_plain):
    """Another file may be at the path by then, so the child does not open the path again."""
    extras = {} if is_plain else {"text": np.array(["a", "b", "c"], object)}
    path = Path(write_shard(tmp_path / "x.h5", numbered(3), extras=extras))
    other = Path(write_shard(tmp_path / "other.h5", numbered(5)))
    real = FILES.open

    def swap(name):
        descriptor = real(name)
        os.replace(other, path)
        return descriptor

    monkeypatch.setattr(FILES, "open", swap)
    assert vet(path).shape == (3, 2)


@pytest.mark.process
def test_vetting_leaves_no_descriptor_open(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3))
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"bad")

    def n_open() -> int:
        retire()  # an idle child, perhaps of an earlier test, has open pipes
        return len(os.listdir("/proc/self/fd"))

    open_shards([path])
    before = n_open()
    for _ in range(3):
        open_shards([path])
        with refused(65):
            open_shards([str(bad)])
        with refused(65):
            open_shards([path], "nowhere")
    assert n_open() == before
