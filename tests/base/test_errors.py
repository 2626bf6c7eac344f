"""Tests of errors: errors of the system become ours, and file names cannot forge lines of the log."""

import errno
import os

import pytest

from shardpress.base.errors import ReadFailed, SystemLimit, WriteFailed, printable, system_failures


def test_names_are_shown_on_one_printable_line():
    assert printable("plain.h5") == "plain.h5"
    assert printable("not UTF-8 \udcff") == "not UTF-8 \\udcff"
    for name in ("a\nERROR forged\r\t\x00", "fdp.\u202egnp\u2028\u200b\U000e0041"):
        assert printable(name).isprintable()
        printable(name).encode("utf-8")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libstdc++.so.6: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "x"),
    ],
    ids=repr,
)
def test_exhausted_resources_raise_system_limit_and_keep_notes(error):
    error.add_note("Not finished.")
    with pytest.raises(SystemLimit, match="ulimit") as caught, system_failures():
        raise error
    assert caught.value.__notes__ == ["Not finished."]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, WriteFailed), (errno.EIO, ReadFailed)])
def test_failures_of_the_storage_name_the_file(number, kind):
    with pytest.raises(kind, match="file=/tmp/x"), system_failures():
        raise OSError(number, os.strerror(number), "/tmp/x")
