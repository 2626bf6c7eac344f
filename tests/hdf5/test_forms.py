"""Tests of rules on the structure of a file: records of equal types, and names and paths of any bytes."""

import numpy as np

from shardpress.hdf5.forms.table import numbers_of
from shardpress.hdf5.names import is_utf8, normal, parts_of, sibling, split, text, under
from tests.support.cases import each

F8 = np.dtype("<f8")


def fields(names, formats, offsets):
    return {"names": names, "formats": formats, "offsets": offsets, "itemsize": 24}


@each(
    "record, found",
    [
        ([("a", "<f8"), ("b", "<f8")], (F8, 0, 2, ("a", "b"))),
        ([("index", "S3"), ("values_block_0", "<f8", (3,))], (F8, 3, 3, ())),
        ([("index", "<f8"), ("a", "<f8")], (F8, 8, 1, ("a",))),
        ([("index", "<f8")], (F8, 0, 1, ("index",))),
        ([("a", "<f8"), ("block", "<f8", (2,))], (F8, 0, 3, ())),
        (fields(["b", "a"], ["<f8", "<f8"], [8, 0]), (F8, 0, 2, ("a", "b"))),
        ("<f8", None),
        ([("a", "<f8"), ("b", ">f8")], None),
        ([("a", "<f8"), ("index", "<i8"), ("b", "<f8")], None),
        ([("a", "<c16")], None),
        ([("a", "<f8", (2, 2))], None),
        ([("deep", [("a", "<f8")])], None),
        (fields(["a", "b"], ["<f8", "<f8"], [0, 16]), None),
        (fields(["a", "b"], ["<f8", "<f8"], [0, 4]), None),
    ],
)
def test_only_records_of_equal_adjacent_numbers_are_rows(record, found):
    assert numbers_of(np.dtype(record)) == found


def test_paths_are_split_as_in_hdf5():
    for path in ("a/b/X", "/a//b/./X", "a/b/X/"):
        assert parts_of(path) == [b"a", b"b", b"X"]
        assert normal(path) == "a/b/X"
    assert parts_of("/") == parts_of("") == []
    assert [split(path) for path in ("X", "/X", "a/X", "/a/b/X/")] == [("", "X"), ("", "X"), ("a", "X"), ("/a/b", "X")]
    assert [sibling(path, "y") for path in ("X", "/X", "a/X", "/a/X")] == ["y", "y", "a/y", "/a/y"]
    assert [under(group, "y") for group in ("/", "a", "a/")] == ["/y", "a/y", "a/y"]


def test_name_of_any_bytes_survives_a_round_trip():
    for name in (b"a\xff", b"\xc3\xbc", b"\xed\xa0\x80", b"\xc3"):
        assert parts_of(text(name)) == [name]
        assert is_utf8(name) == (name == b"\xc3\xbc")
