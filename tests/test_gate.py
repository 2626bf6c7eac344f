"""The gate: what is a shard is described, and everything else is refused by name, before a row is read."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.shards import (
    Block,
    open_shards,
    read_riders,
)
from tests.helpers import as_nobody, numbered, refused, write_shard


def low_level(path, kind, name=b"X", shape=(3, 2)):
    """A dataset of a type that h5py itself would not make."""
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, name, kind, h5py.h5s.create_simple(shape))
    return str(path)


def three_byte_integer():
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    return kind


# -- which dataset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "asked", "chosen"),
    [
        ({"X": 2, "Y": 2}, None, "X"),
        ({"X": 2, "Y": 2}, "Y", "Y"),
        ({"Y": 2, "labels": 1}, None, "Y"),
        ({"deep/er/images": 3, "labels": 1}, None, "deep/er/images"),
        ({"deep/X": 2, "deep/Y": 2}, "/deep/Y", "/deep/Y"),
    ],
    ids=str,
)
def test_the_dataset_is_the_one_asked_for_else_x_else_the_only_candidate(tmp_path, held, asked, chosen):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, rank in held.items():
            file[name] = np.zeros((3, 2, 2)[:rank])
        file["text"] = [["a"], ["b"]]
    assert open_shards([str(tmp_path / "x.h5")], asked)[0].dataset == chosen


def test_several_candidates_are_refused_and_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "a/one", {"two": numbered(3), "labels": range(3)})
    with refused(65, path, "candidates a/one, two", "--dataset"):
        open_shards([path])


def test_without_a_candidate_all_names_are_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", [1, 2, 3], "labels")
    with refused(65, path, "no candidate among labels", "--dataset"):
        open_shards([path])


def test_a_missing_dataset_is_refused_with_a_list_of_what_is_there(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "images", {"labels": [1, 2, 3]})
    with refused(65, path, "dataset=pictures", "not there", "images, labels"):
        open_shards([path], "pictures")


# -- riders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, -1, 2**62, 0]),
        np.array([1, 2, 3, 4], ">u2"),
        np.array([0.5, np.nan, 1, 2], np.float32),
        np.array([True, False, True, True]),
        np.array([b"a", b"bc", b"", b"def"], "S3"),
        np.array(["one", "zwölf", "", "4"], object),
        np.array([(1, 2.0)] * 4, [("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda values: str(values.dtype),
)
def test_riders_are_found_and_read_back(tmp_path, values):
    riders = {"r": values, "short": [1, 2], "wide": numbered(4)}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), riders=riders)])
    assert shard.riders == ("r",)
    found = read_riders(Block(shard, 1, 4))["r"]
    if values.dtype.kind == "O":
        found = np.array([text.decode() for text in found], object)
    np.testing.assert_array_equal(found, values[1:])


def test_riders_lie_beside_the_rows_not_elsewhere(tmp_path):
    riders = {"g/label": range(4), "label": range(4)}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), "g/rows", riders)], "g/rows")
    assert shard.riders == ("label",)
    np.testing.assert_array_equal(read_riders(Block(shard, 2, 3))["label"], [2])


def test_links_that_lead_nowhere_do_not_ride(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4), riders={"y": range(4)})
    with h5py.File(path, "a") as file:
        file["soft"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("nowhere.h5", "/y")
    assert open_shards([path])[0].riders == ("y",)


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"label,x,y\n1,2,3\n", b"\0" * 3_000_000])
def test_a_file_that_is_not_hdf5_is_refused_with_its_first_bytes(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with refused(65, str(path), "not an HDF5 file", repr(content[:16])):
        open_shards([str(path)])


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        (None, ["a group", "expected a dataset"]),
        (["a", "b"], ["rank 1"]),
        (np.array([["a"], ["b"]], object), ["strings"]),
        (np.array([["a"], ["b"]], "S1"), ["strings"]),
        (np.zeros((2, 2), [("a", "i4"), ("b", "f4")]), ["compound records of 2 fields"]),
        (np.zeros((2, 2), np.complex64), ["complex64", "expected integers, bool"]),
        (np.zeros((2, 2), "V4"), ["dtype |V4"]),
        (h5py.Empty("f4"), ["an empty dataset", "no shape"]),
        (np.zeros((3, 0)), ["an empty dataset", "(3, 0)", "no columns"]),
        (np.zeros((3, 2, 0)), ["(3, 2, 0)", "no columns"]),
        (np.zeros(3), ["shape (3,) has rank 1", "rank 2 or more"]),
        (np.float64(3), ["shape () has rank 0"]),
        (np.zeros((0, 3)), ["no rows in any of 1 shards"]),
    ],
    ids=str,
)
def test_what_is_no_table_of_numbers_is_refused_by_name(tmp_path, content, phrases):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        if content is None:
            file.create_group("X")
        else:
            file["X"] = content
    with refused(65, f"file={path} dataset=X", *phrases):
        open_shards([str(path)])


@pytest.mark.parametrize("asked", [None, "X"])
@pytest.mark.parametrize("kind", [three_byte_integer(), h5py.h5t.UNIX_D32LE], ids=["int24", "time"])
def test_a_type_that_numpy_does_not_know_is_refused_by_name(tmp_path, kind, asked):
    path = low_level(tmp_path / "x.h5", kind)
    with refused(65, path, "dataset=X", "expected integers, bool"):
        open_shards([path], asked)


def test_a_type_that_numpy_does_not_know_elsewhere_in_the_file_does_no_harm(tmp_path):
    path = low_level(tmp_path / "x.h5", three_byte_integer(), b"odd")
    with h5py.File(path, "a") as file:
        file["rows"] = numbered(3)
    assert open_shards([path])[0].dataset == "rows"


@pytest.mark.parametrize("how", [{}, {"compression": "gzip", "chunks": (64, 2)}], ids=str)
@pytest.mark.parametrize("eighths", range(8))
def test_a_file_truncated_anywhere_is_refused_on_opening(tmp_path, how, eighths):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(1024), riders={"y": range(1024)}, **how)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * eighths // 8])
    phrase = f"truncated: {len(content) * eighths // 8} bytes, expected {len(content)} bytes"
    with refused(65, str(path), phrase if eighths else "not an HDF5 file"):
        open_shards([str(path)])


def test_a_file_with_damaged_structure_is_refused_by_name(tmp_path):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(8))
    content = path.read_bytes()
    for signature in (b"TREE", b"HEAP", b"SNOD"):
        content = content.replace(signature, b"\0\0\0\0")
    path.write_bytes(content)
    with refused(65, str(path)):
        open_shards([str(path)])


def test_a_fifo_is_refused_without_waiting_for_its_other_end(tmp_path):
    path = tmp_path / "x.h5"
    os.mkfifo(path)
    # Held open, so that a reader that does open it fails on reading instead of hanging.
    descriptor = os.open(path, os.O_RDWR)
    try:
        with refused(66, str(path), "not a regular file"):
            open_shards([str(path)])
    finally:
        os.close(descriptor)


def test_a_directory_called_like_a_shard_is_refused(tmp_path):
    (tmp_path / "x.h5").mkdir()
    with refused(66, "x.h5", "not a regular file"):
        open_shards([str(tmp_path)])


@pytest.mark.parametrize("target", ["x.h5", "nowhere.h5"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, target):
    path = tmp_path / "x.h5"
    path.symlink_to(target)
    with refused(66, str(path), "expected an HDF5 file"):
        open_shards([str(path)])


def test_a_file_without_read_permission_is_refused(open_path):
    path = write_shard(open_path / "x.h5", numbered(2))
    Path(path).chmod(0)
    exit_code, sentence = as_nobody(lambda: open_shards([path]))
    assert exit_code == 77, sentence
    assert path in sentence
    assert "no permission to read" in sentence


def test_a_directory_without_read_permission_is_refused(open_path):
    folder = open_path / "closed"
    folder.mkdir(mode=0o300)
    exit_code, sentence = as_nobody(lambda: open_shards([str(folder)]))
    assert exit_code == 77, sentence
    assert str(folder) in sentence


def test_a_filter_that_nobody_has_is_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        add_unknown_filter(file, b"X", (4, 2))
    with refused(69, str(path), "dataset=X", "HDF5 filter 300", "pip install hdf5plugin"):
        open_shards([str(path)])


def test_a_filter_that_nobody_has_is_refused_on_a_rider_too(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4))
    with h5py.File(path, "a") as file:
        add_unknown_filter(file, b"label", (4,))
    with refused(69, path, "label", "HDF5 filter 300"):
        open_shards([path])


def add_unknown_filter(file, name, shape):
    """A dataset with one chunk that went through filter 300, which HDF5 keeps free for tests."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name, h5py.h5t.STD_I64LE, space, dcpl=properties)
    made.write_direct_chunk((0,) * len(shape), b"\1" * (8 * int(np.prod(shape))))
