"""Names and paths in a file: apart and together again, and whatever their bytes."""

from pipeline.hdf5.paths import beside, normal, parts_of, split, text, under
from pipeline.hdf5.riders import is_utf8


def test_a_path_is_taken_apart_as_hdf5_does():
    for path in ("a/b/X", "/a//b/./X", "a/b/X/"):
        assert parts_of(path) == [b"a", b"b", b"X"]
        assert normal(path) == "a/b/X"
    assert parts_of("/") == parts_of("") == []
    assert [split(path) for path in ("X", "/X", "a/X", "/a/b/X/")] == [("", "X"), ("", "X"), ("a", "X"), ("/a/b", "X")]


def test_a_path_is_put_together_as_the_one_beside_it_is_spelled():
    assert [beside(path, "y") for path in ("X", "/X", "a/X", "/a/X")] == ["y", "y", "a/y", "/a/y"]
    assert [under(group, "y") for group in ("/", "a", "a/")] == ["/y", "a/y", "a/y"]


def test_a_name_of_any_bytes_comes_back():
    for name in (b"a\xff", b"\xc3\xbc", b"\xed\xa0\x80", b"\xc3"):
        assert parts_of(text(name)) == [name]
        assert is_utf8(name) == (name == b"\xc3\xbc")
