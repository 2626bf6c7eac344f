"""Tests of errors: errors of the system become ours, and file names cannot forge lines of the log."""

import errno
import os
import pickle

import pytest

from shardpress.base.errors import (
    ConfigError,
    Problem,
    ReadFailed,
    SystemLimit,
    WriteFailed,
    system_failures,
)


def test_each_front_end_names_settings_in_its_own_way():
    problem = Problem(("batch_size",), "9, expected 1 to 3", "Lower it, or {n_features}")
    error = pickle.loads(pickle.dumps(ConfigError(problem, Problem("file={x}", "is too short"))))
    expected = "--batch-size: 9, expected 1 to 3. Lower it, or --n-features. file={x}: is too short."
    assert str(error) == expected
    assert error.text(str.upper) == expected.replace("--batch-size", "BATCH_SIZE").replace("--n-features", "N_FEATURES")


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
