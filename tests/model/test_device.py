"""Tests of errors of Theano and its compiler: they become our errors, which say what to do."""

from __future__ import annotations

import errno
import os

import pytest

from shardpress.base.errors import (
    DataError,
    DeviceError,
    DeviceLost,
    NotPermitted,
    ReadFailed,
    ShardpressError,
    SystemLimit,
    WriteFailed,
)
from shardpress.model.device import theanos_errors
from shardpress_kernels.backend import DeviceUnavailable
from shardpress_kernels.compilecache import UnsafeCompileCache
from shardpress_kernels.compiler import CompilerFailed
from tests.support.cases import each

FULL = os.strerror(errno.ENOSPC)


@each(
    "error, kind, advice",
    [
        (MemoryError(), SystemLimit, "--memory-budget"),
        (RuntimeError("cublasSgemm(h->h): (cublas) GPU resource allocation failed."), DeviceError, "memory"),
        (RuntimeError("gpuarray error: k: cuLaunchKernel: CUDA_ERROR_ECC_UNCORRECTABLE: x"), DeviceLost, "gpuarray"),
        (RuntimeError(f"{FULL}: out of memory"), WriteFailed, "base_compiledir"),
        (CompilerFailed(["g++"], f"as: {FULL}"), WriteFailed, "base_compiledir"),
        (UnsafeCompileCache("others may write"), NotPermitted, "others may write"),
        (DeviceUnavailable("no cuda"), DeviceError, "THEANO_FLAGS=device=cpu"),
    ],
)
def test_device_errors_become_errors_with_advice(error: Exception, kind: type[ShardpressError], advice: str) -> None:
    with pytest.raises(kind) as caught, theanos_errors():
        raise error
    assert advice in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_failing_disk_is_recognized_in_an_error_of_theano() -> None:
    # Theano raises an assertion error while it handles the error of the system.
    words = f"file=/cache/x: {os.strerror(errno.EIO)}"
    failed = AssertionError("Input/output error")
    failed.__context__ = OSError(errno.EIO, os.strerror(errno.EIO), "/cache/x")
    with pytest.raises(ReadFailed, match=words) as caught, theanos_errors():
        raise failed
    assert caught.value.exit_code == 74


def test_other_errors_are_unchanged() -> None:
    error = DataError("ours: out of memory")
    with pytest.raises(DataError) as caught, theanos_errors():
        raise error
    assert caught.value is error
