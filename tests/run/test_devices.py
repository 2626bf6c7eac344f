"""Tests of a simulated device that runs out of memory or is lost: the run ends, and the same command resumes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.support.interruptions import STEPS
from tests.support.logged import mentions, resumed_step
from tests.support.standin import Workspace, features_of

NO_MEMORY = "b'cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory'"
LOST = "gpuarray error: cuLaunchKernel: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered"


class Device:
    """Device that fails like pygpu at its Nth call and at every later one, until it is repaired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self._monkeypatch = monkeypatch
        self._module, self._name, self._call = method.split()

    def fail(self, n_calls: int, message: str) -> None:
        kind = getattr(sys.modules[self._module], self._name)
        calls = count(1)
        call = getattr(kind, self._call)

        def failing(*arguments: object, **named: object) -> object:
            if next(calls) > n_calls:
                raise RuntimeError(message)
            return call(*arguments, **named)

        self._monkeypatch.setattr(kind, self._call, failing)
        self._original = call

    def repair(self) -> None:
        self._monkeypatch.setattr(getattr(sys.modules[self._module], self._name), self._call, self._original)


IN_TRAINING = "shardpress_kernels.step TrainingStep take_one"
IN_ENCODING = "shardpress_kernels.autoencoder Autoencoder encode_checked"


def test_training_resumes_after_device_memory_ran_out(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Smaller minibatches would give another model, so only a user may choose them."""
    device = Device(monkeypatch, IN_TRAINING)
    device.fail(3, NO_MEMORY)
    assert workspace.run(out, *STEPS) == 69
    assert mentions(caplog.text, "DeviceError", NO_MEMORY, "--device-memory-budget", "--batch-size")
    assert mentions(caplog.records[-1].message, "0 of 2", 3)
    device.repair()
    assert workspace.run(out, *STEPS) == 0
    assert resumed_step(caplog.text) == 3
    assert features_of(out) == expected()


@pytest.mark.parametrize(("method", "n_calls"), [(IN_TRAINING, 1), (IN_TRAINING, 3), (IN_ENCODING, 1)])
def test_a_run_resumes_after_losing_its_device(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    n_calls: int,
) -> None:
    device = Device(monkeypatch, method)
    device.fail(n_calls, LOST)
    assert workspace.run(out, *STEPS) == 75
    assert mentions(caplog.text, "DeviceLost", LOST)
    device.repair()
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    assert resumed_step(caplog.text) == (n_calls if method == IN_TRAINING else None)
    assert features_of(out) == expected()
