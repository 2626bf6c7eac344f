"""Tests of a training run that diverges: it keeps its last good weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from shardpress.output.folder import LAST_GOOD
from shardpress.result.finished import INDEX, load_model
from tests.support import standin
from tests.support.bad_shards import Shards, check, errors
from tests.support.logged import mentions, resumed_step


class Bursting(standin.TrainingStep):
    """Takes huge steps while the schedule lowers the rate below one half, but not while the rate rises."""

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        rate = 1e9 if 0.041 < learning_rate < 0.049 else learning_rate
        return super().take_one(minibatch, rate, with_cost)


@pytest.mark.process
@pytest.mark.parametrize(("rate", "epoch"), [("1e6", 0), ("0.1", 3)], ids=["at once", "late"])
def test_divergence_is_reproducible_and_keeps_the_last_weights(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rate: str, epoch: int
) -> None:
    """The training diverges at once, or after epochs whose checkpoints the same command resumes."""
    shards.fill(200)
    flags = ["--optimizer", "momentum", "--epochs", "6", "--learning-rate", rate, "checkpoint_seconds=0"]
    monkeypatch.setattr(sys.modules["shardpress_kernels.step"], "TrainingStep", Bursting)
    found = []
    for _ in range(2):
        with np.errstate(all="ignore"):
            assert shards.run(*flags) == 65
        message = errors(caplog)
        assert mentions(message, "TrainingDiverged", f"epoch {epoch}", "--learning-rate")
        assert not (shards.output / INDEX).exists()
        stopped = load_model(shards.output / LAST_GOOD)
        assert all(np.isfinite(array).all() for array in stopped.parameters.values())
        found.append((message, stopped.fingerprint))
    assert found[0] == found[1]
    assert resumed_step(caplog.text) is not None
    assert shards.run() == 0, "other settings start over"
    assert not (shards.output / LAST_GOOD).exists()
    check(shards.output, shards.arrays, [])
