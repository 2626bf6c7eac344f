"""Tests of rules on the structure of a file: names and paths, records of equal types, and matching datasets."""

import numpy as np
import pytest

from shardpress.hdf5.forms.table import numbers_of
from shardpress.hdf5.names import is_utf8, normal, parts_of, sibling, split, text, under

F8 = np.dtype("<f8")
I8 = np.dtype("<i8")
I4 = np.dtype("<i4")


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ([("a", "<f8"), ("b", "<f8")], (F8, 0, 2, ("a", "b"))),
        ([("index", "<i8"), ("values_block_0", "<f8", (3,))], (F8, 8, 3, ())),
        ([("index", "<i8"), ("a", "<f8"), ("b", "<f8")], (F8, 8, 2, ("a", "b"))),
        ([("index", "<i8"), ("a", "<i8")], (I8, 8, 1, ("a",))),
        ([("index", "S3"), ("a", "<f8")], (F8, 3, 1, ("a",))),
        ([("index", "<f8")], (F8, 0, 1, ("index",))),
        ([("a", "<f8"), ("block", "<f8", (2,))], (F8, 0, 3, ())),
        ({"names": ["b", "a"], "formats": ["<f8", "<f8"], "offsets": [8, 0], "itemsize": 24}, (F8, 0, 2, ("a", "b"))),
    ],
)
def test_record_of_equal_adjacent_numbers_is_recognized(record, found):
    assert numbers_of(np.dtype(record)) == found


@pytest.mark.parametrize(
    "record",
    [
        "<f8",
        [("a", "<f8"), ("b", "<f4")],
        [("a", "<f8"), ("b", ">f8")],
        [("a", "<f8"), ("index", "<i8"), ("b", "<f8")],
        [("a", "S8"), ("b", "S8")],
        [("a", "<c16")],
        [("a", "<f8", (2, 2))],
        [("index", "<i8"), ("values_block_0", "<f8", (3,)), ("values_block_1", "<i8", (1,))],
        [("deep", [("a", "<f8")])],
        {"names": ["a", "b"], "formats": ["<f8", "<f8"], "offsets": [0, 16], "itemsize": 24},
        {"names": ["a", "b"], "formats": ["<f8", "<f8"], "offsets": [0, 4], "itemsize": 24},
    ],
)
def test_other_records_are_not_recognized(record):
    assert numbers_of(np.dtype(record)) is None


def test_paths_are_split_as_in_hdf5():
    for path in ("a/b/X", "/a//b/./X", "a/b/X/"):
        assert parts_of(path) == [b"a", b"b", b"X"]
        assert normal(path) == "a/b/X"
    assert parts_of("/") == parts_of("") == []
    assert [split(path) for path in ("X", "/X", "a/X", "/a/b/X/")] == [("", "X"), ("", "X"), ("a", "X"), ("/a/b", "X")]


def test_sibling_path_keeps_the_spelling_of_the_given_path():
    assert [sibling(path, "y") for path in ("X", "/X", "a/X", "/a/X")] == ["y", "y", "a/y", "/a/y"]
    assert [under(group, "y") for group in ("/", "a", "a/")] == ["/y", "a/y", "a/y"]


def test_name_of_any_bytes_survives_a_round_trip():
    for name in (b"a\xff", b"\xc3\xbc", b"\xed\xa0\x80", b"\xc3"):
        assert parts_of(text(name)) == [name]
        assert is_utf8(name) == (name == b"\xc3\xbc")
